"""Oscillators of whole bars: stochastic, Williams %R, CCI, Fisher transform, relative vigor index."""

from __future__ import annotations

import numpy as np
import talib

from ktrdr_core.data.bars import FloatArray
from ktrdr_core.indicators.windows import (
    fading_sum,
    place_between,
    ratio,
    rolling_max,
    rolling_mean,
    rolling_min,
    rolling_sum,
)


def stochastic_oscillator(
    high: FloatArray, low: FloatArray, close: FloatArray, k_period: int = 14, k_smoothing: int = 3, d_period: int = 3
) -> tuple[FloatArray, FloatArray]:
    """Return %K and %D.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        k_period: Bars of the range; at least 1.
        k_smoothing: Bars of the mean that makes %K; 1 is the fast stochastic.
        d_period: Bars of the mean of %K.

    Returns:
        %K and %D in [0, 100], each shape (T,), float64; the first k_period + k_smoothing - 2 values of %K and
        d_period - 1 more of %D are NaN. Value t depends on bars up to t only. A range of 0 counts as 50.

    Source: G. C. Lane, Lane's Stochastics, 1984.
    """
    raw = place_between(close, rolling_min(low, k_period), rolling_max(high, k_period))
    raw *= 100
    k = rolling_mean(raw, k_smoothing)
    return k, rolling_mean(k, d_period)


def williams_percent_r(high: FloatArray, low: FloatArray, close: FloatArray, period: int = 14) -> FloatArray:
    """Return how far the close is below the highest high, in per cent of the range, negative.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Bars of the range; at least 1.

    Returns:
        %R in [-100, 0], shape (T,), float64; the first period - 1 values are NaN. Value t depends on bars up to t
        only. A range of 0 gives -50.

    Source: L. R. Williams, How I Made One Million Dollars Last Year Trading Commodities, 1973.
    """
    highest = rolling_max(high, period)
    below = ratio(highest - close, highest - rolling_min(low, period), 0.5)
    below *= -100
    below += 0.0  # a close at the high is 0, not -0
    return below


def commodity_channel_index(high: FloatArray, low: FloatArray, close: FloatArray, period: int = 20) -> FloatArray:
    """Return the distance of the typical price from its mean, in units of 0.015 mean absolute deviations.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Bars of mean and deviation; at least 2.

    Returns:
        Index, shape (T,), float64; the first period - 1 values are NaN. Value t depends on bars up to t only. Flat
        prices give 0.

    Source: D. R. Lambert, Commodity Channel Index, 1980.
    """
    cci: FloatArray = talib.CCI(high, low, close, timeperiod=period)
    return cci


def fisher_transform(high: FloatArray, low: FloatArray, period: int = 10) -> tuple[FloatArray, FloatArray]:
    """Return the Fisher transform of the median price and its value one bar before.

    x = 0.33 * (2 * place of the median price in its range of `period` bars - 1) + 0.67 * (x before), held within
    +-0.999 once beyond +-0.99; fisher = 0.5 * ln((1 + x) / (1 - x)) + 0.5 * (fisher before). Both begin with 0.

    Args:
        high, low: Prices, shape (T,), float64, oldest first, no NaN.
        period: Bars of the range; at least 2.

    Returns:
        fisher and trigger, each shape (T,), float64, within +-7.6; the first period - 1 values of fisher and `period`
        of trigger are NaN. Value t depends on bars up to t only. A range of 0 counts as the middle: 0.

    Source: J. F. Ehlers, Using the Fisher Transform, 2002.
    """
    T = len(high)
    fisher = np.full(T, np.nan)
    trigger = np.full(T, np.nan)
    first = period - 1
    if first >= T:
        return fisher, trigger
    median = (high + low) / 2
    place = place_between(median, rolling_min(median, period), rolling_max(median, period))
    smoothed = _limited_fading_sum(0.33 * (2 * place[first:] - 1))
    fisher[first:] = fading_sum(np.arctanh(smoothed), 0.5)
    trigger[period:] = fisher[first:-1]
    return fisher, trigger


_FADE = 0.67
_BLOCK = 256
# The state before a block is below the last bit after so many bars: 0.67 ** 256 = 3e-45.
_NUM_BARS_TO_FORGET = 256


def _limited_fading_sum(steps: FloatArray) -> FloatArray:
    """Return x with x[t] = steps[t] + 0.67 * x[t - 1], set to +-0.999 once beyond +-0.99.

    The limit feeds back, so the bars follow one another. But what was long ago has faded: blocks of bars, each begun
    so many bars before its first, go side by side.
    """
    num_before = _NUM_BARS_TO_FORGET if len(steps) > _BLOCK else 0
    length = min(_BLOCK, len(steps))
    num_blocks = -(-len(steps) // length)
    padded = np.zeros(num_before + num_blocks * length)
    padded[num_before : num_before + len(steps)] = steps
    blocks = np.lib.stride_tricks.sliding_window_view(padded, num_before + length)[::length]
    smoothed = np.array(blocks.T, order="C")  # one row a bar
    state = np.zeros(num_blocks)
    for row in smoothed:
        state *= _FADE
        state += row
        is_beyond = np.abs(state) > 0.99
        if is_beyond.any():
            state[is_beyond] = np.copysign(0.999, state[is_beyond])
        row[:] = state
    return smoothed[num_before:].T.ravel()[: len(steps)]


def relative_vigor_index(
    open: FloatArray, high: FloatArray, low: FloatArray, close: FloatArray, period: int = 10
) -> tuple[FloatArray, FloatArray]:
    """Return the smoothed close - open in units of the smoothed high - low, and its signal line.

    Both differences are weighted 1, 2, 2, 1 over four bars and summed over `period`; the signal is the index weighted
    likewise.

    Args:
        open, high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Bars of the sums; at least 1.

    Returns:
        Index and signal in [-1, 1], each shape (T,), float64; the first period + 2 values of the index and
        period + 5 of the signal are NaN. Value t depends on bars up to t only. Bars without a range give 0.

    Source: J. F. Ehlers, Relative Vigor Index, 2002.
    """
    moves = rolling_sum(_four_bar_mean(close - open), period)
    ranges = rolling_sum(_four_bar_mean(high - low), period)
    index = np.clip(ratio(moves, ranges, 0.0), -1, 1)
    return index, _four_bar_mean(index)


def _four_bar_mean(values: FloatArray) -> FloatArray:
    mean = np.full(len(values), np.nan)
    if len(values) > 3:
        mean[3:] = (values[3:] + 2 * values[2:-1] + 2 * values[1:-2] + values[:-3]) / 6
    return mean
