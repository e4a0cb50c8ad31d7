"""Confidence intervals of means over rows of a time series.

Rows near each other in time are alike: labels overlap, errors come in runs, and symbols move together. An interval that
takes rows for independent is too narrow. So the rows are divided into stretches of time, all symbols of a stretch
together, and the stretches, long enough to be nearly independent, are what varies.

Shape suffixes: N rows, B stretches, I quantities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_STRETCHES = 20
CONFIDENCE = 0.95


def assign_stretches(times_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of 20 stretches of time each row is in, by order; they have equally many rows but for equal times.

    Args:
        times_N: Time of each row, shape (N,), in any order.

    Returns:
        Shape (N,), int64, in [0, 20). Rows of one time are in one stretch; a stretch may be empty.
    """
    earlier_N = np.searchsorted(np.sort(times_N), times_N, side="left")
    return np.asarray(earlier_N * NUM_STRETCHES // max(len(times_N), 1), dtype=np.int64)


def mean_intervals(
    sums_IB: NDArray[np.float64], rows_B: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of each quantity over all rows, and the bounds of its 95 % confidence interval.

    The B stretches are taken for independent draws: with row counts n_b, sums s_b and N rows in all,
    mean = sum(s_b) / N, variance = B / (B - 1) * sum((s_b - mean * n_b) ** 2) / N ** 2, and the interval is Student's
    with B - 1 degrees of freedom. It covers the choice of the rows and whatever was drawn at each row.

    Args:
        sums_IB: Sum of each quantity over each stretch's rows, shape (I, B).
        rows_B: Rows of each stretch, shape (B,), at least one in all; empty stretches are left out.

    Returns:
        Means, lower and upper bounds, each (I,), float64; infinite bounds with fewer than two stretches.

    Source: W. G. Cochran, Sampling Techniques, 1977 (means of clusters of unequal size, as a ratio); A. M. Law and
    W. D. Kelton, Simulation Modeling and Analysis, 2000 (batch means of dependent observations).
    """
    # scipy comes with what trains a model; the services read results without it.
    from scipy.special import stdtrit

    is_used_B = rows_B > 0
    sums_IB, rows_B = sums_IB[:, is_used_B], rows_B[is_used_B]
    num_stretches, num_rows = len(rows_B), int(rows_B.sum())
    mean_I = sums_IB.sum(axis=1) / num_rows
    if num_stretches < 2:
        endless_I = np.full_like(mean_I, np.inf)
        return mean_I, -endless_I, endless_I
    deviations_IB = sums_IB - mean_I[:, None] * rows_B
    variance_I = num_stretches / (num_stretches - 1) * (deviations_IB**2).sum(axis=1) / num_rows**2
    half_I = float(stdtrit(num_stretches - 1, 0.5 + CONFIDENCE / 2)) * np.sqrt(variance_I)
    return mean_I, mean_I - half_I, mean_I + half_I
