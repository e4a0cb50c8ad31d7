from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.evaluation.metrics import (
    accuracy,
    compute_test_metrics,
    confusion_matrix,
    cross_entropy,
    softmax,
)


def slow_metrics(logits: Any, y: list[int]) -> dict[str, float]:
    """The definitions, row by row in Python."""
    predicted = [max(range(3), key=lambda c: (row[c], -c)) for row in logits]
    losses = []
    for row, true in zip(logits, y, strict=True):
        total = math.fsum(math.exp(v - max(row)) for v in row)
        losses.append(-(row[true] - max(row) - math.log(total)))
    precisions, recalls, f1s = [], [], []
    for c in range(3):
        hits = sum(p == t == c for p, t in zip(predicted, y, strict=True))
        precision = hits / predicted.count(c) if predicted.count(c) else 0.0
        recall = hits / y.count(c) if y.count(c) else 0.0
        precisions.append(precision)
        recalls.append(recall)
        f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return {
        "loss": sum(losses) / len(losses),
        "accuracy": sum(p == t for p, t in zip(predicted, y, strict=True)) / len(y),
        "precision": sum(precisions) / 3,
        "recall": sum(recalls) / 3,
        "f1_score": sum(f1s) / 3,
        "majority_baseline_accuracy": max(Counter(y).values()) / len(y),
    }


classes = st.integers(0, 2)
rows = st.lists(
    st.tuples(st.tuples(*[st.floats(-30, 30, width=32)] * 3), classes),
    min_size=1,
    max_size=30,
)


@given(rows=rows)
def test_metrics_equal_the_definitions_computed_row_by_row(rows: Any) -> None:
    logits = [row for row, _ in rows]
    y = [true for _, true in rows]
    found = compute_test_metrics(np.array(logits, dtype=np.float32), np.array(y))
    expected = slow_metrics(logits, y)
    assert dict(found) == pytest.approx(expected, abs=1e-9)


def test_always_answering_one_class_scores_its_baseline_and_shows_in_the_macro_averages() -> None:
    y = np.array([0] * 80 + [1] * 15 + [2] * 5)
    logits = np.tile(np.array([[5.0, 0.0, 0.0]], dtype=np.float32), (100, 1))
    found = compute_test_metrics(logits, y)
    assert found["accuracy"] == found["majority_baseline_accuracy"] == 0.8
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1_score"] == pytest.approx((2 * 0.8 / 1.8) / 3)


def test_baseline_is_the_best_constant_answer_on_the_rows_themselves() -> None:
    y = np.array([2, 2, 2, 0])
    assert compute_test_metrics(np.eye(3, dtype=np.float32)[y], y)["majority_baseline_accuracy"] == 0.75


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    assert confusion_matrix(np.array([0, 0, 2]), np.array([1, 0, 1])).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


def test_ties_go_to_the_lower_class() -> None:
    assert accuracy(np.zeros((2, 3), dtype=np.float32), np.array([0, 1])) == 0.5


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e30, -1e30, 0.0]], dtype=np.float32)
    assert cross_entropy(logits, np.array([0])) == 0.0
    assert softmax(logits).tolist() == [[1.0, 0.0, 0.0]]


def test_nan_logits_give_a_nan_loss() -> None:
    assert math.isnan(cross_entropy(np.array([[np.nan, 0.0, 0.0]], dtype=np.float32), np.array([1])))
