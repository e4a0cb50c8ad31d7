from __future__ import annotations

from statistics import mean, variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.evaluation.intervals import NUM_STRETCHES, assign_stretches, mean_intervals


def test_interval_of_equal_stretches_is_students_of_their_means() -> None:
    """By hand: t(3, 97.5 %) = 3.18245 (published tables), standard error = deviation of the means / 2."""
    means = [0.1, 0.4, 0.2, 0.1]
    found_mean, lower, upper = mean_intervals(np.array([[10 * m for m in means]]), np.full(4, 10))
    half = 3.182446 * (variance(means) / 4) ** 0.5
    assert found_mean[0] == pytest.approx(mean(means))
    assert (lower[0], upper[0]) == (pytest.approx(mean(means) - half), pytest.approx(mean(means) + half))


def test_unequal_stretches_count_by_their_rows() -> None:
    """By hand: mean 5 / 6, deviations -2 / 3 and 2 / 3, variance 2 * (8 / 9) / 36; t(1, 97.5 %) = 12.7062."""
    found_mean, lower, upper = mean_intervals(np.array([[1.0, 4.0]]), np.array([2, 4]))
    half = 12.706205 * (2 * (8 / 9) / 36) ** 0.5
    assert found_mean[0] == pytest.approx(5 / 6)
    assert (lower[0], upper[0]) == (pytest.approx(5 / 6 - half), pytest.approx(5 / 6 + half))


def test_empty_stretches_do_not_count() -> None:
    sums, rows = np.array([[1.0, 4.0, 2.0]]), np.array([5, 7, 6])
    with_empty = mean_intervals(np.array([[1.0, 0.0, 4.0, 2.0, 0.0]]), np.array([5, 0, 7, 6, 0]))
    assert [each.tolist() for each in with_empty] == [each.tolist() for each in mean_intervals(sums, rows)]


def test_one_stretch_says_nothing_about_its_spread() -> None:
    found = mean_intervals(np.array([[3.0]]), np.array([6]))
    assert [each[0] for each in found] == [0.5, -np.inf, np.inf]


@given(times=st.lists(st.integers(0, 60), min_size=1, max_size=300))
def test_stretches_follow_time_and_never_divide_a_moment(times: list[int]) -> None:
    found = assign_stretches(np.array(times))
    assert found.min() >= 0
    assert found.max() < NUM_STRETCHES
    order = np.argsort(times, kind="stable")
    assert np.all(np.diff(found[order]) >= 0)
    assert len({(time, stretch) for time, stretch in zip(times, found.tolist(), strict=True)}) == len(set(times))


def test_stretches_of_different_times_have_equally_many_rows() -> None:
    found = assign_stretches(np.random.default_rng(1).permutation(2_000))
    assert np.bincount(found).tolist() == [100] * NUM_STRETCHES


def test_interval_covers_the_truth_where_rows_come_in_runs_and_one_for_independent_rows_does_not() -> None:
    rng = np.random.default_rng(4)
    num_samples, num_rows, run = 600, 2_000, 20
    values = np.repeat(rng.normal(0.1, 1.0, size=(num_samples, num_rows // run)), run, axis=1)
    values += rng.normal(0, 0.5, size=values.shape)
    stretches = assign_stretches(np.arange(num_rows))
    sums = np.stack([values[:, stretches == one].sum(axis=1) for one in range(NUM_STRETCHES)], axis=1)
    _, lower, upper = mean_intervals(sums, np.bincount(stretches))
    covered = np.mean((lower <= 0.1) & (upper >= 0.1))
    half = 1.96 * values.std(axis=1, ddof=1) / num_rows**0.5
    covered_if_independent = np.mean(np.abs(values.mean(axis=1) - 0.1) <= half)
    assert covered == pytest.approx(0.95, abs=0.03)
    assert covered_if_independent < 0.6
