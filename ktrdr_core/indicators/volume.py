"""Volume: MFI, OBV, rolling VWAP, volume ratio, accumulation/distribution, Chaikin money flow."""

from __future__ import annotations

import numpy as np
import talib

from ktrdr_core.data.bars import FloatArray
from ktrdr_core.indicators.windows import ratio, rolling_mean, rolling_sum


def money_flow_index(
    high: FloatArray, low: FloatArray, close: FloatArray, volume: FloatArray, period: int = 14
) -> FloatArray:
    """Return the share, in per cent, of bars with a risen typical price in the traded value of the last `period`.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        volume: Shape (T,), at least 0.
        period: Bars; at least 2. A bar whose typical price has not changed counts to neither side.

    Returns:
        Index in [0, 100], shape (T,), float64; the first `period` values are NaN. Value t depends on bars up to t
        only. Flat prices or no volume give 50.

    Source: G. Quong and A. Soudack, Volume-Weighted RSI: Money Flow, 1989.
    """
    typical = (high + low + close) / 3
    change = np.diff(typical)
    flow = typical[1:] * volume[1:]
    index = np.full(len(close), np.nan)
    rises = rolling_sum(np.where(change > 0, flow, 0.0), period)
    falls = rolling_sum(np.where(change < 0, flow, 0.0), period)
    index[1:] = 100 * ratio(rises, rises + falls, 0.5)
    return index


def on_balance_volume(close: FloatArray, volume: FloatArray) -> FloatArray:
    """Return the running sum of volume, added where the close rises and taken off where it falls.

    Args:
        close: Prices, shape (T,), float64, oldest first, no NaN.
        volume: Shape (T,), at least 0.

    Returns:
        Sum, shape (T,), float64, without warm-up; it begins with the first bar's volume, so that its level depends on
        where the bars begin. Value t depends on bars up to t only. Flat prices leave it as it is.

    Source: J. E. Granville, Granville's New Key to Stock Market Profits, 1963.
    """
    total: FloatArray = talib.OBV(close, volume)
    return total


def volume_weighted_average_price(
    high: FloatArray, low: FloatArray, close: FloatArray, volume: FloatArray, period: int = 20
) -> FloatArray:
    """Return the mean of the typical price of the last `period` bars, weighted by volume.

    It rolls: no session starts it anew, so that it is defined for markets without one and never jumps at midnight.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        volume: Shape (T,), at least 0.
        period: Bars; at least 1.

    Returns:
        Mean, shape (T,), float64, price units; the first period - 1 values are NaN. Value t depends on bars up to t
        only. Without volume it is the plain mean of the typical price.

    Source: S. A. Berkowitz, D. E. Logue and E. A. Noser, The Total Cost of Transactions on the NYSE, 1988.
    """
    typical = (high + low + close) / 3
    traded = rolling_sum(volume, period)
    average = ratio(rolling_sum(typical * volume, period), traded, 0.0)
    is_silent = traded == 0
    if is_silent.any():
        average[is_silent] = rolling_mean(typical, period)[is_silent]
    return average


def volume_ratio(volume: FloatArray, period: int = 20) -> FloatArray:
    """Return volume as a multiple of its mean over the last `period` bars.

    Args:
        volume: Shape (T,), float64, oldest first, at least 0.
        period: Bars, the current one among them; at least 2.

    Returns:
        Ratio in [0, period], shape (T,), float64; the first period - 1 values are NaN. Value t depends on bars up to t
        only. No volume in the whole window gives 1.

    Source: R. D. Edwards and J. Magee, Technical Analysis of Stock Trends, 1948.
    """
    return ratio(volume, rolling_mean(volume, period), 1.0)


def accumulation_distribution_line(
    high: FloatArray, low: FloatArray, close: FloatArray, volume: FloatArray
) -> FloatArray:
    """Return the running sum of volume times ((close - low) - (high - close)) / (high - low).

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        volume: Shape (T,), at least 0.

    Returns:
        Sum, shape (T,), float64, without warm-up; its level depends on where the bars begin. Value t depends on bars
        up to t only. A bar without range adds 0.

    Source: M. Chaikin, in S. B. Achelis, Technical Analysis from A to Z, 1995.
    """
    total: FloatArray = talib.AD(high, low, close, volume)
    return total


def chaikin_money_flow(
    high: FloatArray, low: FloatArray, close: FloatArray, volume: FloatArray, period: int = 20
) -> FloatArray:
    """Return the mean of ((close - low) - (high - close)) / (high - low) over `period` bars, weighted by volume.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        volume: Shape (T,), at least 0.
        period: Bars; at least 1.

    Returns:
        Flow in [-1, 1], shape (T,), float64; the first period - 1 values are NaN. Value t depends on bars up to t only.
        A bar without range counts as 0; no volume in the whole window gives 0.

    Source: M. Chaikin, in S. B. Achelis, Technical Analysis from A to Z, 1995.
    """
    place = ratio((close - low) - (high - close), high - low, 0.0)
    place *= volume
    return np.clip(ratio(rolling_sum(place, period), rolling_sum(volume, period), 0.0), -1, 1)
