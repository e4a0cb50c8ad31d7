"""Metrics of answers over BUY, HOLD, SELL, in numpy alone.

Shape suffixes: N rows, C classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.training_sections import LabelsConfig
from ktrdr_core.domain.labels import CLASS_NAMES, NUM_CLASSES
from ktrdr_core.domain.result import ClassMetrics, TestMetrics
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.evaluation.decisions import classes

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]


def cross_entropy(logits_NC: FloatArray, y_N: IntArray) -> float:
    """Return the mean of -log softmax(logits)[y] over rows, computed in float64; NaN or inf logits give NaN or inf."""
    z_NC = logits_NC.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        z_NC = z_NC - z_NC.max(axis=1, keepdims=True)
        log_sum_N = np.log(np.exp(z_NC).sum(axis=1))
        return float(np.mean(log_sum_N - z_NC[np.arange(len(y_N)), y_N]))


def one_vs_rest_cross_entropy(logits_NC: FloatArray, y_N: IntArray) -> float:
    """Return the mean over rows and classes of the binary cross entropy of sigmoid(logits) against "is this class".

    Computed in float64; NaN logits give NaN.
    """
    z_NC = logits_NC.astype(np.float64)
    is_class_NC = np.eye(NUM_CLASSES)[y_N]
    with np.errstate(invalid="ignore"):
        return float(np.mean(np.logaddexp(0.0, z_NC) - is_class_NC * z_NC))


def mean_squared_error(predicted_N: FloatArray, targets_N: FloatArray) -> float:
    """Return the mean of (predicted - target) ** 2 over rows, computed in float64."""
    return float(np.mean((predicted_N.astype(np.float64) - targets_N.astype(np.float64)) ** 2))


def compute_loss(
    outputs_NC: FloatArray,
    y_N: IntArray,
    *,
    output_activation: str = "softmax",
    targets_N: FloatArray | None = None,
) -> float:
    """Return the loss that a kind of output is judged by, without class weights or focus, whatever it was trained with.

    Args:
        outputs_NC: The network's outputs, (N, 3), or (N, 1) with `linear`; N at least 1.
        y_N: True classes; not looked at with `linear`.
        output_activation: `softmax`: cross entropy; `sigmoid`: one-vs-rest cross entropy; `linear`: mean squared error.
        targets_N: True values; needed with `linear`, else not looked at.

    Raises:
        InvalidInputError: `linear` without one target a row.
    """
    if output_activation == "softmax":
        return cross_entropy(outputs_NC, y_N)
    if output_activation == "sigmoid":
        return one_vs_rest_cross_entropy(outputs_NC, y_N)
    if targets_N is None or len(targets_N) != len(outputs_NC):
        found = 0 if targets_N is None else len(targets_N)
        raise InvalidInputError(
            f"a regression needs a target for each of its {len(outputs_NC)} rows, found {found}", field="targets"
        )
    return mean_squared_error(outputs_NC[:, 0], targets_N)


def accuracy(logits_NC: FloatArray, y_N: IntArray) -> float:
    """Return the share of rows whose largest logit is at their class; ties go to the lower class."""
    return float(np.mean(logits_NC.argmax(axis=1) == y_N))


def confusion_matrix(y_N: IntArray, predicted_N: IntArray) -> IntArray:
    """Return counts (C, C): row is the true class, column the predicted one."""
    flat = np.bincount(y_N * NUM_CLASSES + predicted_N, minlength=NUM_CLASSES * NUM_CLASSES)
    return flat.reshape(NUM_CLASSES, NUM_CLASSES).astype(np.int64)


def balanced_accuracy(counts_CC: IntArray) -> float:
    """Return the mean recall over the classes that occur; 0 without rows.

    Args:
        counts_CC: Confusion matrix, true classes in rows.

    Source: K. H. Brodersen et al., The Balanced Accuracy and Its Posterior Distribution, 2010.
    """
    actual_C = counts_CC.sum(axis=1)
    occurs_C = actual_C > 0
    return float(np.mean(np.diag(counts_CC)[occurs_C] / actual_C[occurs_C])) if occurs_C.any() else 0.0


def matthews_correlation(counts_CC: IntArray) -> float:
    """Return the correlation R_K of true and predicted classes, in [-1, 1]; with two classes, Matthews' coefficient.

    Args:
        counts_CC: Confusion matrix, true classes in rows.

    Returns:
        0 where it is undefined: one class alone occurs, or one alone is predicted.

    Source: J. Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    # Python's integers: products of counts pass 2 ** 63 at some million rows.
    actual = [int(count) for count in counts_CC.sum(axis=1)]
    predicted = [int(count) for count in counts_CC.sum(axis=0)]
    total, hits = sum(actual), int(np.trace(counts_CC))
    covariance = hits * total - sum(a * p for a, p in zip(actual, predicted, strict=True))
    spread_actual = total**2 - sum(a * a for a in actual)
    spread_predicted = total**2 - sum(p * p for p in predicted)
    if spread_actual == 0 or spread_predicted == 0:
        return 0.0
    return covariance / math.sqrt(spread_actual * spread_predicted)


def compute_class_metrics(counts_CC: IntArray) -> dict[str, ClassMetrics]:
    """Return precision, recall, F1 and support of each class by its name.

    A class that is never predicted has precision 0, one that never occurs has recall 0, and F1 is 0 where both are.

    Args:
        counts_CC: Confusion matrix, true classes in rows.
    """
    hits = np.diag(counts_CC).astype(np.float64)
    predicted, actual = counts_CC.sum(axis=0), counts_CC.sum(axis=1)
    precision = np.divide(hits, predicted, out=np.zeros(NUM_CLASSES), where=predicted > 0)
    recall = np.divide(hits, actual, out=np.zeros(NUM_CLASSES), where=actual > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(NUM_CLASSES), where=both > 0)
    return {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1_score": float(f1[index]),
            "support": int(actual[index]),
        }
        for index, name in enumerate(CLASS_NAMES)
    }


def compute_test_metrics(
    outputs_NC: FloatArray,
    y_N: IntArray,
    *,
    output_activation: str = "softmax",
    labels: LabelsConfig | None = None,
    targets: FloatArray | None = None,
) -> TestMetrics:
    """Return loss, accuracy, macro precision, recall and F1, and what the best constant answer would score.

    The majority baseline is the share of the most frequent class among these very rows. A constant chosen on the
    training part can score less where the classes shift, and a model should not look good for that.

    The macro averages run over all three classes, so a model that ignores a class shows it.

    Args:
        outputs_NC: The network's outputs, before any activation, (N, 3), or (N, 1) with `linear`; N at least 1.
        y_N: True classes.
        output_activation: What the outputs are; decides the loss and how they become classes.
        labels: With `linear`, whose thresholds make a predicted return a class.
        targets: With `linear`, true forward returns, shape (N,).

    Raises:
        InvalidInputError: The outputs have another shape, or `linear` lacks thresholds or targets.
    """
    counts_CC = confusion_matrix(y_N, classes(outputs_NC, output_activation, labels))
    per_class = compute_class_metrics(counts_CC).values()
    return {
        "loss": compute_loss(outputs_NC, y_N, output_activation=output_activation, targets_N=targets),
        "accuracy": float(np.trace(counts_CC) / len(y_N)),
        "precision": sum(one["precision"] for one in per_class) / NUM_CLASSES,
        "recall": sum(one["recall"] for one in per_class) / NUM_CLASSES,
        "f1_score": sum(one["f1_score"] for one in per_class) / NUM_CLASSES,
        "majority_baseline_accuracy": float(counts_CC.sum(axis=1).max() / len(y_N)),
    }
