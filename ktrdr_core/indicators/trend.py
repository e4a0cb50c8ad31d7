"""Trend: ADX, Aroon, Ichimoku, parabolic SAR, SuperTrend."""

from __future__ import annotations

import numpy as np
import talib

from ktrdr_core.data.bars import FloatArray
from ktrdr_core.indicators.windows import rolling_max, rolling_min


def average_directional_index(
    high: FloatArray, low: FloatArray, close: FloatArray, period: int = 14
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return Wilder's ADX and the two directional indicators.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Smoothing length in bars; at least 2.

    Returns:
        adx, di_plus, di_minus in [0, 100], each shape (T,), float64; the first 2 period - 1 values of adx and `period`
        of the others are NaN. Value t depends on bars up to t only. The first smoothed movement is the sum of
        period - 1 bars, as TA-Lib does. Bars without movement from the start give 0; later they change nothing.

    Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978.
    """
    return (
        talib.ADX(high, low, close, timeperiod=period),
        talib.PLUS_DI(high, low, close, timeperiod=period),
        talib.MINUS_DI(high, low, close, timeperiod=period),
    )


def aroon(high: FloatArray, low: FloatArray, period: int = 25) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the Aroon oscillator, Aroon up and Aroon down.

    up = 100 * (period - bars since the highest high of the last period + 1 bars) / period, the latest of equal ones;
    down likewise of the lowest low; the oscillator is up - down.

    Args:
        high, low: Prices, shape (T,), float64, oldest first, no NaN.
        period: Bars; at least 2.

    Returns:
        oscillator in [-100, 100], up and down in [0, 100], each shape (T,), float64; the first `period` values are
        NaN. Value t depends on bars up to t only. A window without movement gives 0, 50, 50.

    Source: T. S. Chande, A Time Price Oscillator, 1995.
    """
    down, up = talib.AROON(high, low, timeperiod=period)
    is_flat = rolling_max(high, period + 1) == rolling_min(low, period + 1)
    up[is_flat] = down[is_flat] = 50
    return up - down, up, down


def ichimoku_cloud(
    high: FloatArray,
    low: FloatArray,
    close: FloatArray,
    conversion_period: int = 9,
    base_period: int = 26,
    span_period: int = 52,
    displacement: int = 26,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return conversion line, base line, the cloud's two spans at each bar, and where the close is beside it.

    The lines are middles of the range of so many bars; span A is the mean of both lines, span B the middle of the range
    of `span_period`. A chart draws the spans `displacement` bars ahead: the cloud at bar t is the one computed at
    bar t - displacement. The lagging span, the close drawn into the past, is no value of bar t and is left out.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        conversion_period, base_period, span_period: Bars of the ranges; at least 2.
        displacement: Bars by which the cloud is late; at least 1.

    Returns:
        conversion, base, span A, span B in price units and cloud (1 above both spans, -1 below both, else 0), each
        shape (T,), float64; each line is NaN until its ranges are full, and the spans `displacement` bars more. Value
        t depends on bars up to t only. Flat prices give the price and 0.

    Source: G. Hosoda, Ichimoku Kinko Hyo, 1969.
    """
    conversion = _middle(high, low, conversion_period)
    base = _middle(high, low, base_period)
    span_a = _delayed((conversion + base) / 2, displacement)
    span_b = _delayed(_middle(high, low, span_period), displacement)
    is_above = close > np.maximum(span_a, span_b)
    is_below = close < np.minimum(span_a, span_b)
    cloud = is_above.astype(np.float64)
    cloud -= is_below
    cloud[np.isnan(span_a) | np.isnan(span_b)] = np.nan
    return conversion, base, span_a, span_b, cloud


def parabolic_stop_and_reverse(
    high: FloatArray, low: FloatArray, step: float = 0.02, maximum: float = 0.2
) -> FloatArray:
    """Return Wilder's parabolic stop.

    Args:
        high, low: Prices, shape (T,), float64, oldest first, no NaN.
        step: Acceleration gained with each new extreme.
        maximum: Largest acceleration.

    Returns:
        Stop, shape (T,), float64, price units; the first value is NaN. Value t depends on bars up to t only. The first
        trend is down where the second bar's low fell by more than its high rose, else up. Flat prices give the price.

    Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978.
    """
    stop: FloatArray = talib.SAR(high, low, acceleration=step, maximum=maximum)
    return stop


def supertrend(
    high: FloatArray, low: FloatArray, close: FloatArray, period: int = 10, multiplier: float = 3.0
) -> tuple[FloatArray, FloatArray]:
    """Return the SuperTrend line and its direction.

    Bands lie `multiplier` average true ranges beside the median price; the upper one only falls and the lower one only
    rises until the close before has crossed it. The line is the lower band of a rising trend and the upper one of a
    falling one; the trend turns when the close crosses the line.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Of the average true range; at least 2.
        multiplier: Width of the bands, above 0.

    Returns:
        Line in price units and direction (1 rising, -1 falling), each shape (T,), float64; the first `period` values
        are NaN. Value t depends on bars up to t only. Flat prices give the price and keep the direction.

    Source: O. Seban, Le SuperTrend, 2008.
    """
    line, direction = talib.SUPERTREND(high, low, close, timeperiod=period, multiplier=multiplier)
    trend: FloatArray = direction.astype(np.float64)
    trend[:period] = np.nan
    return line, trend


def _middle(high: FloatArray, low: FloatArray, period: int) -> FloatArray:
    return (rolling_max(high, period) + rolling_min(low, period)) / 2


def _delayed(values: FloatArray, num_bars: int) -> FloatArray:
    delayed = np.full(len(values), np.nan)
    delayed[num_bars:] = values[:-num_bars]
    return delayed
