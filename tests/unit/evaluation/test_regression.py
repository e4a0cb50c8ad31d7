from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.evaluation.regression import compute_regression_metrics, rank_correlation


def slow_ranks(values: list[float]) -> list[float]:
    """1 + the number of smaller values + half the number of other equal ones."""
    return [1 + sum(b < a for b in values) + (values.count(a) - 1) / 2 for a in values]


def slow_spearman(x: list[float], y: list[float]) -> float:
    a, b = slow_ranks(x), slow_ranks(y)
    mean = (len(x) + 1) / 2
    covariance = sum((i - mean) * (j - mean) for i, j in zip(a, b, strict=True))
    spread = math.sqrt(sum((i - mean) ** 2 for i in a) * sum((j - mean) ** 2 for j in b))
    return covariance / spread if spread else 0.0


few_values = st.integers(-4, 4).map(float)
series = st.lists(st.tuples(few_values, few_values), min_size=1, max_size=40)


@given(pairs=series)
def test_rank_correlation_equals_the_definition_ties_included(pairs: list[tuple[float, float]]) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    assert rank_correlation(np.array(x), np.array(y)) == pytest.approx(slow_spearman(x, y), abs=1e-12)


def test_rank_correlation_of_a_published_example() -> None:
    """The example of scipy's spearmanr, with a tie."""
    found = rank_correlation(np.array([1, 2, 3, 4, 5.0]), np.array([5, 6, 7, 8, 7.0]))
    assert found == pytest.approx(0.8207826816681233, abs=1e-12)


@given(pairs=series)
def test_rank_correlation_sees_order_alone(pairs: list[tuple[float, float]]) -> None:
    x, y = np.array(pairs).T
    assert rank_correlation(np.exp(x), y) == rank_correlation(x, y)
    assert rank_correlation(-x, y) == pytest.approx(-rank_correlation(x, y), abs=1e-12)


def test_errors_of_a_published_example() -> None:
    """The example of scikit-learn's r2_score, mean_squared_error and mean_absolute_error: 0.948..., 0.375, 0.5."""
    found = compute_regression_metrics(np.array([2.5, 0.0, 2, 8]), np.array([3, -0.5, 2, 7]))
    assert found["r_squared"] == pytest.approx(0.9486081370449679)
    assert found["mean_squared_error"] == 0.375
    assert found["mean_absolute_error"] == 0.5
    assert found["directional_accuracy"] == 0.75


def test_direction_is_judged_where_the_price_moved() -> None:
    found = compute_regression_metrics(np.array([0.1, -0.1, 0.0, 0.3]), np.array([0.2, 0.2, -0.1, 0.0]))
    assert found["directional_accuracy"] == pytest.approx(1 / 3)


@given(targets=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
def test_answering_the_mean_explains_nothing_and_the_truth_everything(targets: list[float]) -> None:
    true = np.array(targets, dtype=np.float32)
    mean = np.full(len(true), true.astype(np.float64).mean())
    assert compute_regression_metrics(mean, true)["r_squared"] == pytest.approx(0.0, abs=1e-9)
    assert compute_regression_metrics(true, true)["r_squared"] in (0.0, 1.0)
    assert compute_regression_metrics(mean, true)["information_coefficient"] == 0.0


def test_targets_that_never_move_give_zeros_not_nan() -> None:
    found = compute_regression_metrics(np.array([0.1, 0.2]), np.zeros(2))
    assert [found["r_squared"], found["information_coefficient"], found["directional_accuracy"]] == [0.0, 0.0, 0.0]
