from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.evaluation.metrics import (
    balanced_accuracy,
    compute_class_metrics,
    compute_loss,
    compute_test_metrics,
    confusion_matrix,
    cross_entropy,
    matthews_correlation,
)

RETURN_LABELS = LabelsConfig(source="forward_return", label_lookahead=4, buy_threshold=0.01, sell_threshold=0.02)


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


def slow_matthews(y: list[int], predicted: list[int]) -> float:
    """Gorodkin's R_K as he defines it: the correlation of the two matrices of class indicators."""

    def covariance(a: list[int], b: list[int]) -> float:
        total = 0.0
        for c in range(3):
            mean_a, mean_b = a.count(c) / len(a), b.count(c) / len(b)
            total += sum(((i == c) - mean_a) * ((j == c) - mean_b) for i, j in zip(a, b, strict=True)) / 3
        return total

    spread = math.sqrt(covariance(y, y) * covariance(predicted, predicted))
    return covariance(y, predicted) / spread if spread else 0.0


classes = st.integers(0, 2)
rows = st.lists(
    st.tuples(st.tuples(*[st.floats(-30, 30, width=32)] * 3), classes),
    min_size=1,
    max_size=30,
)
pairs = st.lists(st.tuples(classes, classes), min_size=1, max_size=40)


def counts_of(pairs_of_classes: list[tuple[int, int]]) -> np.ndarray:
    y, predicted = np.array(pairs_of_classes).T
    return confusion_matrix(y, predicted)


@given(rows=rows)
def test_metrics_equal_the_definitions_computed_row_by_row(rows: Any) -> None:
    logits = [row for row, _ in rows]
    y = [true for _, true in rows]
    found = compute_test_metrics(np.array(logits, dtype=np.float32), np.array(y))
    expected = slow_metrics(logits, y)
    assert dict(found) == pytest.approx(expected, abs=1e-9)


def test_metrics_of_a_published_example() -> None:
    """The example of scikit-learn's precision_recall_fscore_support: 0.22..., 0.33..., 0.26... cut off."""
    y, predicted = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 2, 1, 0, 0, 1])
    found = compute_test_metrics(np.eye(3, dtype=np.float32)[predicted], y)
    assert [round(found[key], 2) for key in ("precision", "recall", "f1_score")] == [0.22, 0.33, 0.27]
    assert compute_class_metrics(confusion_matrix(y, predicted))["BUY"] == {
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1_score": pytest.approx(0.8),
        "support": 2,
    }


@given(pairs=pairs)
def test_matthews_correlation_equals_the_correlation_of_class_indicators(pairs: list[tuple[int, int]]) -> None:
    y, predicted = [a for a, _ in pairs], [b for _, b in pairs]
    assert matthews_correlation(counts_of(pairs)) == pytest.approx(slow_matthews(y, predicted), abs=1e-12)


@given(pairs=pairs)
def test_matthews_correlation_is_symmetric_within_bounds_and_1_only_for_right_answers(
    pairs: list[tuple[int, int]],
) -> None:
    found = matthews_correlation(counts_of(pairs))
    assert -1 - 1e-12 <= found <= 1 + 1e-12
    assert found == pytest.approx(matthews_correlation(counts_of(pairs).T))
    if all(a == b for a, b in pairs):
        assert found == (pytest.approx(1.0) if len({a for a, _ in pairs}) > 1 else 0.0)


def test_matthews_correlation_of_two_classes_is_the_published_one() -> None:
    """The example of scikit-learn's matthews_corrcoef: -0.33."""
    counts = confusion_matrix(np.array([0, 0, 0, 2]), np.array([0, 2, 0, 0]))
    assert matthews_correlation(counts) == pytest.approx(-1 / 3)


def test_matthews_correlation_of_constant_answers_is_0() -> None:
    assert matthews_correlation(confusion_matrix(np.array([0, 1, 2]), np.array([1, 1, 1]))) == 0.0


def test_matthews_correlation_survives_counts_whose_products_pass_64_bits() -> None:
    assert matthews_correlation(np.diag([10**10] * 3)) == pytest.approx(1.0)


def test_balanced_accuracy_of_a_published_example() -> None:
    """The example of scikit-learn's balanced_accuracy_score: 0.625. A class that never occurs does not count."""
    counts = confusion_matrix(np.array([0, 1, 0, 0, 1, 0]), np.array([0, 1, 0, 0, 0, 1]))
    assert balanced_accuracy(counts) == 0.625


@given(pairs=pairs)
def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur(pairs: list[tuple[int, int]]) -> None:
    recalls = []
    for c in {a for a, _ in pairs}:
        answers = [b for a, b in pairs if a == c]
        recalls.append(answers.count(c) / len(answers))
    assert balanced_accuracy(counts_of(pairs)) == pytest.approx(sum(recalls) / len(recalls))


@given(rows=rows)
def test_one_vs_rest_loss_is_the_mean_of_three_binary_cross_entropies(rows: Any) -> None:
    losses = []
    for row, true in rows:
        for c in range(3):
            p = 1 / (1 + math.exp(-row[c]))
            other = 1 / (1 + math.exp(row[c]))
            losses.append(-math.log(p) if c == true else -math.log(other))
    logits = np.array([row for row, _ in rows], dtype=np.float32)
    y = np.array([true for _, true in rows])
    found = compute_loss(logits, y, output_activation="sigmoid")
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-6, abs=1e-9)
    assert compute_test_metrics(logits, y, output_activation="sigmoid")["loss"] == found


def test_regression_is_judged_by_its_squared_error_and_the_classes_of_its_thresholds() -> None:
    outputs = np.array([[0.01], [0.0], [-0.02], [0.03]])
    targets = np.array([0.02, 0.0, 0.01, 0.03])
    y = np.array([0, 1, 0, 0])
    found = compute_test_metrics(outputs, y, output_activation="linear", labels=RETURN_LABELS, targets=targets)
    assert found["loss"] == pytest.approx((0.01**2 + 0.03**2) / 4)
    assert found["accuracy"] == 0.75


def test_regression_without_a_target_for_each_row_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="each of its 2 rows, found 0"):
        compute_loss(np.zeros((2, 1)), np.zeros(2, dtype=np.int64), output_activation="linear")


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
    assert compute_test_metrics(np.zeros((2, 3), dtype=np.float32), np.array([0, 1]))["accuracy"] == 0.5


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e30, -1e30, 0.0]], dtype=np.float32)
    assert cross_entropy(logits, np.array([0])) == 0.0
    assert compute_loss(logits, np.array([0]), output_activation="sigmoid") == pytest.approx(math.log(2) / 3)


@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
def test_nan_logits_give_a_nan_loss(output_activation: str) -> None:
    logits = np.array([[np.nan, 0.0, 0.0]], dtype=np.float32)
    assert math.isnan(compute_loss(logits, np.array([1]), output_activation=output_activation))
