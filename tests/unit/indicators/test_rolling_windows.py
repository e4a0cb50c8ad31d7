"""Rolling sums and what is built on them, against sums of slices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.indicators.windows import (
    fading_sum,
    place_between,
    ratio,
    rolling_max,
    rolling_mean,
    rolling_min,
    rolling_sum,
)


@given(st.integers(1, 70), st.integers(0, 80), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_rolling_sum_is_the_sum_of_each_slice(period: int, num_values: int, num_missing: int, seed: int) -> None:
    values = 10.0 ** np.random.default_rng(seed).uniform(-10, 10, num_values)
    values[:num_missing] = np.nan
    sums = rolling_sum(values, period)
    for t in range(num_values):
        expected = math.fsum(values[t - period + 1 : t + 1]) if t - period + 1 >= num_missing else math.nan
        if t < period - 1:
            expected = math.nan
        np.testing.assert_allclose(sums[t], expected, rtol=1e-14)


def test_sum_of_zeros_after_a_huge_value_is_zero() -> None:
    values = np.concatenate([[1e300, 1e17, 3.0], np.zeros(50)])
    assert (rolling_sum(values, 7)[9:] == 0).all()


@pytest.mark.parametrize("period", [1, 3, 20, 5_000, 40_000])
def test_long_series_have_the_same_sums_as_their_parts(period: int) -> None:
    values = np.random.default_rng(5).normal(size=50_000)
    sums = rolling_sum(values, period)
    for start, stop in ((0, 50_000), (0, 41_003), (7_001, 49_000)):
        part = rolling_sum(values[start:stop], period)
        np.testing.assert_array_equal(part[period - 1 :], sums[start + period - 1 : stop])
    np.testing.assert_allclose(sums[-1], math.fsum(values[-period:]), atol=1e-10)


def test_rolling_mean_is_the_sum_by_the_period() -> None:
    np.testing.assert_allclose(rolling_mean(np.arange(6.0), 4)[3:], [1.5, 2.5, 3.5])


def test_extremes_are_those_of_each_slice() -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    np.testing.assert_array_equal(rolling_max(values, 3), [np.nan, np.nan, 3, 5, 5])
    np.testing.assert_array_equal(rolling_min(values, 3), [np.nan, np.nan, 1, 1, 2])
    np.testing.assert_array_equal(rolling_max(values, 1), values)


@pytest.mark.parametrize("factor", [0.5, 0.67, 0.9])
@pytest.mark.parametrize("num_values", [0, 1, 2, 300, 40_000])
def test_fading_sum_is_the_recursion(factor: float, num_values: int) -> None:
    values = np.random.default_rng(1).normal(size=num_values)
    expected, before = [], 0.0
    for value in values.tolist():
        before = value + factor * before
        expected.append(before)
    np.testing.assert_allclose(fading_sum(values, factor), expected, rtol=0, atol=1e-13)


def test_ratio_to_nothing_is_what_was_asked_for() -> None:
    actual = ratio(np.array([1.0, 0.0, 1.0, np.nan]), np.array([2.0, 0.0, 0.0, 0.0]), 7.0)
    assert actual.tolist() == [0.5, 7.0, 7.0, 7.0]
    assert np.isnan(ratio(np.array([1.0]), np.array([np.nan]), 7.0)).all()


def test_place_is_the_middle_where_there_is_no_range() -> None:
    actual = place_between(np.array([1.0, 2.0, 5.0]), np.array([1.0, 1.0, 5.0]), np.array([3.0, 3.0, 5.0]))
    assert actual.tolist() == [0.0, 0.5, 0.5]
