from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.evaluation.calibration import NUM_BINS, compute_calibration


def slow_calibration(probabilities: list[list[float]], y: list[int]) -> tuple[float, float]:
    """Guo's error and Brier's score, from their definitions, row by row."""
    error = 0.0
    for index in range(NUM_BINS):
        lower, upper = index / NUM_BINS, (index + 1) / NUM_BINS
        members = []
        for row, true in zip(probabilities, y, strict=True):
            best = max(row)
            if lower <= best < upper or (index == NUM_BINS - 1 and best == 1):
                members.append((best, row.index(best) == true))
        if members:
            confidence = sum(best for best, _ in members) / len(members)
            share_right = sum(right for _, right in members) / len(members)
            error += len(members) / len(y) * abs(confidence - share_right)
    brier = sum(
        sum((p - (c == true)) ** 2 for c, p in enumerate(row)) for row, true in zip(probabilities, y, strict=True)
    ) / len(y)
    return error, brier


shares = st.lists(st.integers(1, 60), min_size=3, max_size=3)


@given(rows=st.lists(st.tuples(shares, st.integers(0, 2)), min_size=1, max_size=40))
def test_calibration_equals_the_definitions_computed_row_by_row(rows: list[tuple[list[int], int]]) -> None:
    probabilities = np.array([np.array(row) / sum(row) for row, _ in rows])
    y = np.array([true for _, true in rows])
    found = compute_calibration(probabilities, probabilities.argmax(axis=1), y)
    error, brier = slow_calibration(probabilities.tolist(), y.tolist())
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-12)
    assert found["brier_score"] == pytest.approx(brier, abs=1e-12)
    assert sum(one["count"] for one in found["bins"]) == len(y)


def test_model_that_is_as_often_right_as_it_says_has_no_calibration_error() -> None:
    probabilities = np.tile([0.8, 0.1, 0.1], (10, 1))
    y = np.array([0] * 8 + [1, 2])
    found = compute_calibration(probabilities, np.zeros(10, dtype=np.int64), y)
    assert found["expected_calibration_error"] == pytest.approx(0.0, abs=1e-12)
    # By hand: 8 rows of 0.04 + 0.01 + 0.01 and 2 of 0.64 + 0.81 + 0.01.
    assert found["brier_score"] == pytest.approx((8 * 0.06 + 2 * 1.46) / 10)


def test_brier_score_is_0_for_certain_and_right_and_2_for_certain_and_wrong() -> None:
    """The bounds that Brier (1950) gives."""
    certain = np.eye(3)[[0, 1]]
    answers = np.array([0, 1])
    assert compute_calibration(certain, answers, np.array([0, 1]))["brier_score"] == 0.0
    assert compute_calibration(certain, answers, np.array([2, 0]))["brier_score"] == 2.0


def test_bins_cover_everything_and_show_where_the_model_is_too_sure() -> None:
    probabilities = np.array([[1.0, 0.0, 0.0], [0.4, 0.35, 0.25], [0.4, 0.35, 0.25]])
    found = compute_calibration(probabilities, np.zeros(3, dtype=np.int64), np.array([0, 0, 1]))
    bins = found["bins"]
    assert [bins[0]["lower"], bins[-1]["upper"]] == [0.0, 1.0]
    assert all(left["upper"] == right["lower"] for left, right in itertools.pairwise(bins))
    assert bins[-1]["count"] == 1
    assert bins[6] == {
        "lower": 6 / 15,
        "upper": 7 / 15,
        "count": 2,
        "mean_confidence": pytest.approx(0.4),
        "accuracy": 0.5,
    }
    assert bins[3] == {"lower": 0.2, "upper": 4 / 15, "count": 0, "mean_confidence": 0.0, "accuracy": 0.0}
    assert found["expected_calibration_error"] == pytest.approx(2 / 3 * 0.1)
