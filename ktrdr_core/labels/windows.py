"""Extremes and variances of sliding windows, by doubling.

A window of 2k values is two of k values, so any length takes about 2 log2(length) passes over the series. What a window
gives depends on its own values alone: no rounding accumulates along the series, and no value looks beyond its window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from ktrdr_core.data.bars import FloatArray

BLOCK_WINDOWS = 16_384  # their values and what is made of them stay in the second-level cache


def window_extremes(values: FloatArray, length: int, operation: np.ufunc) -> FloatArray:
    """Return the maximum or minimum of each run of `length` values.

    Args:
        values: Shape (T,), no NaN.
        length: At least 1.
        operation: np.maximum or np.minimum.

    Returns:
        Shape (max(T - length + 1, 0),), float64: entry i is that of values[i : i + length].
    """

    def reduce(block: FloatArray, num_windows: int) -> FloatArray:
        (widest,) = deque(power_windows(block, length, operation), maxlen=1)
        last = len(widest) - num_windows  # two runs of 2**k values that overlap cover any window of up to twice as many
        extremes: FloatArray = operation(widest[:num_windows], widest[last:])
        return extremes

    return _in_blocks(values, length, reduce)


def window_variances(values: FloatArray, length: int) -> FloatArray:
    """Return the sample variance of each run of `length` values.

    Args:
        values: Shape (T,), no NaN.
        length: At least 2.

    Returns:
        Shape (max(T - length + 1, 0),), float64: entry i is that of values[i : i + length], with `length` - 1 as its
        divisor; exactly 0 if they are equal, and without cancellation.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances, 1979.
    """
    return _in_blocks(values, length, lambda block, num_windows: _variances(block, length, num_windows))


def _variances(values: FloatArray, length: int, num_windows: int) -> FloatArray:
    mean, squares, width = values, np.zeros(len(values)), 1  # of runs of `width` values; squares of deviations
    all_mean, all_squares, covered = np.empty(0), np.empty(0), 0  # of the first `covered` values of each window
    while True:
        if length & width:
            own = slice(covered, covered + num_windows)
            if covered == 0:
                all_mean, all_squares = mean[own], squares[own]
            else:
                change, share = mean[own] - all_mean, width / (covered + width)
                all_squares = all_squares + squares[own] + change * change * (covered * share)
                all_mean = all_mean + change * share
            covered += width
        if covered == length:
            return all_squares / (length - 1)
        change = mean[width:] - mean[:-width]
        squares = squares[:-width] + squares[width:] + change * change * (width / 2)
        mean = mean[:-width] + change / 2
        width *= 2


def power_windows(values: FloatArray, max_length: int, operation: np.ufunc) -> Iterator[FloatArray]:
    """Yield the extremes of the runs of 1, 2, 4, ... values, up to `max_length`; see `window_extremes`."""
    width = 1
    while True:
        yield values
        if width * 2 > max_length:
            return
        values = operation(values[:-width], values[width:])
        width *= 2


def _in_blocks(values: FloatArray, length: int, reduce: Callable[[FloatArray, int], FloatArray]) -> FloatArray:
    """Return `reduce` of every window of the series; it gets a block of values and the number of windows in it."""
    num_windows = max(len(values) - length + 1, 0)
    reduced = np.empty(num_windows)
    for start in range(0, num_windows, BLOCK_WINDOWS):
        stop = min(start + BLOCK_WINDOWS, num_windows)
        reduced[start:stop] = reduce(values[start : stop + length - 1], stop - start)
    return reduced
