from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.labels.windows import BLOCK_WINDOWS, power_windows, window_extremes, window_variances

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(values=VALUES, length=st.integers(1, 55))
def test_extremes_are_those_of_each_window(values: list[float], length: int) -> None:
    windows = [values[i : i + length] for i in range(len(values) - length + 1)]
    array = np.array(values)
    assert window_extremes(array, length, np.maximum).tolist() == [max(window) for window in windows]
    assert window_extremes(array, length, np.minimum).tolist() == [min(window) for window in windows]


@given(values=VALUES, length=st.integers(2, 55))
def test_variances_are_those_of_each_window(values: list[float], length: int) -> None:
    variances = window_variances(np.array(values), length).tolist()
    assert len(variances) == max(len(values) - length + 1, 0)
    for start, variance in enumerate(variances):
        expected = statistics.variance(values[start : start + length])
        assert variance == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("length", [2, 3, 7, 8, 13])
def test_equal_values_vary_by_exactly_nothing_whatever_came_before(length: int) -> None:
    values = np.array([1e9, -1e9, *[0.1] * 20])
    assert (window_variances(values, length)[2:] == 0).all()
    assert (window_variances(values, length)[:2] > 0).all()


@pytest.mark.parametrize("length", [2, 5, 64])
def test_windows_across_blocks_are_those_of_each_window(length: int) -> None:
    values = np.random.default_rng(2).normal(0, 1, 2 * BLOCK_WINDOWS + 77)
    windows = np.lib.stride_tricks.sliding_window_view(values, length)
    np.testing.assert_array_equal(window_extremes(values, length, np.minimum), windows.min(axis=1))
    np.testing.assert_allclose(window_variances(values, length), windows.var(axis=1, ddof=1), rtol=1e-12, atol=1e-15)


def test_a_small_spread_is_not_lost_beside_a_large_mean() -> None:
    values = 1e8 + np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert window_variances(values, 5).tolist() == [2.5]


def test_power_windows_stop_at_the_longest_that_fits() -> None:
    levels = list(power_windows(np.arange(10.0), 7, np.maximum))
    assert [len(level) for level in levels] == [10, 9, 7]
    assert levels[2].tolist() == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert [len(list(power_windows(np.arange(10.0), n, np.maximum))) for n in (1, 2, 3, 4, 8)] == [1, 2, 2, 3, 4]
