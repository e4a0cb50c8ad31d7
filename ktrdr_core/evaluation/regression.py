"""Metrics of predicted against true forward returns.

Shape suffixes: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.domain.result import RegressionMetrics
from ktrdr_core.evaluation.metrics import mean_squared_error

FloatArray = NDArray[np.floating]


def compute_regression_metrics(predicted_N: FloatArray, targets_N: FloatArray) -> RegressionMetrics:
    """Return errors, explained variance, rank correlation and the share of right directions.

    Args:
        predicted_N: Predicted returns, shape (N,), finite; N at least 1.
        targets_N: True returns, shape (N,), finite.

    Returns:
        `r_squared` compares with answering these targets' own mean and may be negative; 0 where they do not vary.
        `directional_accuracy` is over rows whose true return is not 0, and a prediction of 0 is wrong there; 0 without
        such rows.
    """
    predicted, targets = predicted_N.astype(np.float64), targets_N.astype(np.float64)
    error = mean_squared_error(predicted, targets)
    variance = float(np.mean((targets - targets.mean()) ** 2))
    moved = targets != 0
    return {
        "mean_squared_error": error,
        "mean_absolute_error": float(np.mean(np.abs(predicted - targets))),
        "r_squared": 1 - error / variance if targets.min() < targets.max() and variance > 0 else 0.0,
        "information_coefficient": rank_correlation(predicted, targets),
        "directional_accuracy": (
            float(np.mean(np.sign(predicted[moved]) == np.sign(targets[moved]))) if moved.any() else 0.0
        ),
    }


def rank_correlation(x_N: FloatArray, y_N: FloatArray) -> float:
    """Return Spearman's rho: the correlation of ranks, equal values sharing the mean of theirs; in [-1, 1].

    Args:
        x_N: Shape (N,), no NaN.
        y_N: Shape (N,), no NaN.

    Returns:
        0 where either does not vary.

    Source: C. Spearman, The Proof and Measurement of Association between Two Things, 1904; ties: M. G. Kendall, The
    Treatment of Ties in Ranking Problems, 1945.
    """
    x, y = (_centred_ranks(values) for values in (x_N, y_N))
    spread = float(np.dot(x, x)) ** 0.5 * float(np.dot(y, y)) ** 0.5
    return min(1.0, max(-1.0, float(np.dot(x, y)) / spread)) if spread > 0 else 0.0


def _centred_ranks(values_N: FloatArray) -> NDArray[np.float64]:
    _, which_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    # Minus the mean rank, (N + 1) / 2: exact in float64, so ranks that are all equal give exactly 0.
    return np.asarray(mean_ranks[which_N] - (len(values_N) + 1) / 2, dtype=np.float64)
