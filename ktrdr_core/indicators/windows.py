"""Sums, means and places over the last bars, exact where running sums drift."""

from __future__ import annotations

import numpy as np
import talib

from ktrdr_core.data.bars import FloatArray

# Values worked on at once: their partial sums stay in the processor's cache.
_CHUNK = 1 << 14


def rolling_sum(values: FloatArray, period: int) -> FloatArray:
    """Return the sum of each window of `period` values.

    Windows are put together from sums of 1, 2, 4, ... values: nothing is ever subtracted. A running sum keeps the
    rounding of every value it has seen, so that a window of zeros after one huge volume is not 0, and a window of small
    ones is wrong for ever.

    Args:
        values: Shape (T,), float64; NaN only as a leading prefix.
        period: Window length, at least 1.

    Returns:
        Shape (T,), float64; NaN until a window has `period` values that are numbers. Value t depends on values up to
        t only.
    """
    T = len(values)
    sums_T = np.full(T, np.nan)
    for start in range(0, T - period + 1, _CHUNK):
        stop = min(start + _CHUNK, T - period + 1)
        sums_T[start + period - 1 : stop + period - 1] = _window_sums(values[start : stop + period - 1], period)
    return sums_T


def _window_sums(values: FloatArray, period: int) -> FloatArray:
    total = np.zeros(len(values) - period + 1)
    partial, width, offset = values, 1, 0  # partial[i] is the sum of `width` values from i on
    while True:
        if period & width:
            total += partial[offset : offset + len(total)]
            offset += width
        if 2 * width > period:
            return total
        partial = partial[:-width] + partial[width:]
        width *= 2


def fading_sum(values: FloatArray, factor: float) -> FloatArray:
    """Return y with y[t] = values[t] + factor * y[t - 1], y before the first being 0.

    Args:
        values: Shape (T,), float64, no NaN.
        factor: In (0, 1).

    Returns:
        Shape (T,), float64, no NaN. Value t depends on values up to t only, and on those whose share is above 2 ** -60.
    """
    reach = 1
    while factor**reach > 2.0**-60:
        reach *= 2
    sums_T = np.empty(len(values))
    for start in range(0, len(values), _CHUNK):
        first = max(0, start - reach)
        sums_T[start : start + _CHUNK] = _fade(values[first : start + _CHUNK], factor, reach)[start - first :]
    return sums_T


def _fade(values: FloatArray, factor: float, reach: int) -> FloatArray:
    total = values.copy()
    width = 1  # total[i] covers `width` values up to i
    while width < min(reach, len(values)):
        faded = total[:-width] * factor**width
        total[width:] += faded
        width *= 2
    return total


def rolling_mean(values: FloatArray, period: int) -> FloatArray:
    """Return the mean of each window of `period` values; arguments and NaN as for `rolling_sum`."""
    mean_T = rolling_sum(values, period)
    mean_T /= period
    return mean_T


def rolling_max(values: FloatArray, period: int) -> FloatArray:
    """Return the largest of each window of `period` values, shape (T,); the first period - 1 values are NaN."""
    highest: FloatArray = talib.MAX(values, timeperiod=period) if period > 1 else values.copy()
    return highest


def rolling_min(values: FloatArray, period: int) -> FloatArray:
    """Return the smallest of each window of `period` values, shape (T,); the first period - 1 values are NaN."""
    lowest: FloatArray = talib.MIN(values, timeperiod=period) if period > 1 else values.copy()
    return lowest


def ratio(numerator: FloatArray, denominator: FloatArray, otherwise: float) -> FloatArray:
    """Return numerator / denominator, and `otherwise` where the denominator is 0; a NaN in either stays one."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        result = numerator / denominator
    is_zero = denominator == 0
    if is_zero.any():
        result[is_zero] = otherwise
    return result


def place_between(values: FloatArray, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Return 0 where `values` are at `lower`, 1 at `upper`, and 0.5 where the two are one; NaN where either is NaN."""
    return ratio(values - lower, upper - lower, 0.5)
