"""Volatility and bands: ATR, Bollinger, Keltner, Donchian, squeeze."""

from __future__ import annotations

import numpy as np
import talib

from ktrdr_core.data.bars import FloatArray
from ktrdr_core.indicators.windows import place_between, ratio, rolling_max, rolling_min


def average_true_range(high: FloatArray, low: FloatArray, close: FloatArray, period: int = 14) -> FloatArray:
    """Return Wilder's average true range.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Smoothing length in bars; at least 2.

    Returns:
        Range, shape (T,), float64, price units, at least 0; the first `period` values are NaN, the next is the mean of
        the first `period` true ranges. Value t depends on bars up to t only. Bars without movement give 0.

    Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978.
    """
    average: FloatArray = talib.ATR(high, low, close, timeperiod=period)
    return average


def normalised_average_true_range(high: FloatArray, low: FloatArray, close: FloatArray, period: int = 14) -> FloatArray:
    """Return the average true range in per cent of the close.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN, above 0.
        period: Smoothing length in bars; at least 2.

    Returns:
        Range, shape (T,), float64, at least 0; the first `period` values are NaN. Value t depends on bars up to t only.
        Bars without movement give 0.

    Source: J. Forman, Cross-Market Evaluations with Normalized Average True Range, 2006.
    """
    normalised: FloatArray = talib.NATR(high, low, close, timeperiod=period)
    return normalised


def bollinger_bands(
    prices: FloatArray, period: int = 20, num_std: float = 2.0
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return middle, upper and lower band, %b and band width.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        period: Bars of mean and deviation; at least 2.
        num_std: Standard deviations (of the population) from the middle to a band.

    Returns:
        middle, upper, lower in price units, %b (0 on the lower band, 1 on the upper one), width =
        (upper - lower) / middle, each shape (T,), float64; the first period - 1 values are NaN. Value t depends on bars
        up to t only. Flat prices give the price three times, 0.5 and 0.

    Source: J. Bollinger, Bollinger on Bollinger Bands, 2001.
    """
    middle = talib.SMA(prices, timeperiod=period)
    half = talib.STDDEV(prices, timeperiod=period)
    half *= num_std
    upper, lower = middle + half, middle - half
    return middle, upper, lower, place_between(prices, lower, upper), (upper - lower) / middle


def bollinger_band_width(prices: FloatArray, period: int = 20, num_std: float = 2.0) -> FloatArray:
    """Return the distance of the Bollinger bands as a share of the middle; see `bollinger_bands`."""
    width = talib.STDDEV(prices, timeperiod=period)
    width *= 2 * num_std
    width /= talib.SMA(prices, timeperiod=period)
    result: FloatArray = width
    return result


def keltner_channels(
    high: FloatArray,
    low: FloatArray,
    close: FloatArray,
    period: int = 20,
    atr_period: int = 10,
    multiplier: float = 2.0,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return middle, upper and lower band, and the place of the close between them.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Bars of the exponential average of the close; at least 2.
        atr_period: Of the average true range; at least 2.
        multiplier: Average true ranges from the middle to a band.

    Returns:
        middle, upper, lower in price units, position (0 on the lower band, 1 on the upper one), each shape (T,),
        float64; the first max(period - 1, atr_period) values are NaN. Value t depends on bars up to t only. Flat prices
        give the price three times and 0.5.

    Source: L. B. Raschke's version of C. W. Keltner, How to Make Money in Commodities, 1960.
    """
    middle = talib.EMA(close, timeperiod=period)
    half = talib.ATR(high, low, close, timeperiod=atr_period)
    half *= multiplier
    upper, lower = middle + half, middle - half
    return middle, upper, lower, place_between(close, lower, upper)


def donchian_channels(
    high: FloatArray, low: FloatArray, close: FloatArray, period: int = 20
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return middle, upper and lower band, the place of the close between them, and their distance.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN, above 0.
        period: Bars, the current one among them; at least 2.

    Returns:
        middle, upper (highest high), lower (lowest low) in price units, position (0 on the lower band, 1 on the upper
        one), width = (upper - lower) / middle, each shape (T,), float64; the first period - 1 values are NaN. Value t
        depends on bars up to t only. Flat prices give the price three times, 0.5 and 0.

    Source: R. Donchian, High Finance in Copper, 1960.
    """
    upper, lower = rolling_max(high, period), rolling_min(low, period)
    middle = (upper + lower) / 2
    return middle, upper, lower, place_between(close, lower, upper), (upper - lower) / middle


def squeeze_intensity(
    high: FloatArray,
    low: FloatArray,
    close: FloatArray,
    period: int = 20,
    num_std: float = 2.0,
    multiplier: float = 1.5,
) -> FloatArray:
    """Return how far the Bollinger bands have drawn inside the Keltner channel.

    Args:
        high, low, close: Prices, shape (T,), float64, oldest first, no NaN.
        period: Bars of the deviation and of the average true range; at least 2.
        num_std: Standard deviations from the middle to a Bollinger band.
        multiplier: Average true ranges from the middle to a Keltner band.

    Returns:
        max(0, 1 - Bollinger width / Keltner width), shape (T,), float64, in [0, 1]; 0 is no squeeze; the first `period`
        values are NaN. Value t depends on bars up to t only. Without any true range it is 0.

    Source: J. F. Carter, Mastering the Trade, 2005.
    """
    bollinger = talib.STDDEV(close, timeperiod=period)
    bollinger *= num_std
    keltner = talib.ATR(high, low, close, timeperiod=period)
    keltner *= multiplier
    return np.clip(1 - ratio(bollinger, keltner, 1.0), 0, 1)
