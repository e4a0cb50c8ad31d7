"""Metrics of a classifier over BUY, HOLD, SELL, in numpy alone.

Shape suffixes: N rows, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.domain.labels import NUM_CLASSES
from ktrdr_core.domain.result import TestMetrics

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]


def cross_entropy(logits_NC: FloatArray, y_N: IntArray) -> float:
    """Return the mean of -log softmax(logits)[y] over rows, computed in float64; NaN or inf logits give NaN or inf."""
    z_NC = logits_NC.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        z_NC = z_NC - z_NC.max(axis=1, keepdims=True)
        log_sum_N = np.log(np.exp(z_NC).sum(axis=1))
        return float(np.mean(log_sum_N - z_NC[np.arange(len(y_N)), y_N]))


def softmax(logits_NC: FloatArray) -> NDArray[np.float64]:
    """Return class probabilities (N, C), float64, rows summing to 1."""
    z_NC = logits_NC.astype(np.float64)
    exp_NC = np.exp(z_NC - z_NC.max(axis=1, keepdims=True))
    return np.asarray(exp_NC / exp_NC.sum(axis=1, keepdims=True))


def accuracy(logits_NC: FloatArray, y_N: IntArray) -> float:
    """Return the share of rows whose largest logit is at their class; ties go to the lower class."""
    return float(np.mean(logits_NC.argmax(axis=1) == y_N))


def confusion_matrix(y_N: IntArray, predicted_N: IntArray) -> IntArray:
    """Return counts (C, C): row is the true class, column the predicted one."""
    flat = np.bincount(y_N * NUM_CLASSES + predicted_N, minlength=NUM_CLASSES * NUM_CLASSES)
    return flat.reshape(NUM_CLASSES, NUM_CLASSES).astype(np.int64)


def compute_test_metrics(logits_NC: FloatArray, y_N: IntArray) -> TestMetrics:
    """Return loss, accuracy, macro precision, recall and F1, and what the best constant answer would score.

    The majority baseline is the share of the most frequent class among these very rows. A constant chosen on the
    training part can score less where the classes shift, and a model should not look good for that.

    A class that is never predicted has precision 0, one that never occurs has recall 0, and F1 is 0 where both are:
    the macro averages run over all three classes, so a model that ignores a class shows it.

    Args:
        logits_NC: Logits of the rows, shape (N, C), N at least 1.
        y_N: True classes.
    """
    counts = confusion_matrix(y_N, logits_NC.argmax(axis=1).astype(np.int64)).astype(np.float64)
    hits = np.diag(counts)
    predicted, actual = counts.sum(axis=0), counts.sum(axis=1)
    precision = np.divide(hits, predicted, out=np.zeros(NUM_CLASSES), where=predicted > 0)
    recall = np.divide(hits, actual, out=np.zeros(NUM_CLASSES), where=actual > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(NUM_CLASSES), where=both > 0)
    return {
        "loss": cross_entropy(logits_NC, y_N),
        "accuracy": accuracy(logits_NC, y_N),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1_score": float(f1.mean()),
        "majority_baseline_accuracy": float(actual.max() / len(y_N)),
    }
