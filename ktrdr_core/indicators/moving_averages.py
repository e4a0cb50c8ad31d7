"""Moving averages and the distance from one."""

from __future__ import annotations

import talib

from ktrdr_core.data.bars import FloatArray


def simple_moving_average(prices: FloatArray, period: int = 20) -> FloatArray:
    """Return the mean of the last `period` prices.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        period: Bars; at least 2.

    Returns:
        Mean, shape (T,), float64, price units; the first period - 1 values are NaN. Value t depends on bars up to t
        only. Flat prices give the price.

    Source: H. M. Gartley, Profits in the Stock Market, 1935.
    """
    average: FloatArray = talib.SMA(prices, timeperiod=period)
    return average


def exponential_moving_average(prices: FloatArray, period: int = 20) -> FloatArray:
    """Return the exponential average with smoothing 2 / (period + 1).

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        period: Bars; at least 2.

    Returns:
        Average, shape (T,), float64, price units; the first period - 1 values are NaN, the next is the mean of the
        first `period` prices. Value t depends on bars up to t only. Flat prices give the price.

    Source: P. N. Haurlan, Measuring Trend Values, 1968.
    """
    average: FloatArray = talib.EMA(prices, timeperiod=period)
    return average


def weighted_moving_average(prices: FloatArray, period: int = 20) -> FloatArray:
    """Return the mean of the last `period` prices with weights period, ..., 2, 1 from the last one backwards.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        period: Bars; at least 2.

    Returns:
        Average, shape (T,), float64, price units; the first period - 1 values are NaN. Value t depends on bars up to
        t only. Flat prices give the price.

    Source: J. J. Murphy, Technical Analysis of the Financial Markets, 1999.
    """
    average: FloatArray = talib.WMA(prices, timeperiod=period)
    return average


def double_exponential_moving_average(prices: FloatArray, period: int = 20) -> FloatArray:
    """Return 2 EMA - EMA(EMA).

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        period: Bars of each EMA; at least 2.

    Returns:
        Average, shape (T,), float64, price units; the first 2 (period - 1) values are NaN. Value t depends on bars up
        to t only. Flat prices give the price; after a fall it may be below every price.

    Source: P. G. Mulloy, Smoothing Data with Faster Moving Averages, 1994.
    """
    average: FloatArray = talib.DEMA(prices, timeperiod=period)
    return average


def triple_exponential_moving_average(prices: FloatArray, period: int = 20) -> FloatArray:
    """Return 3 EMA - 3 EMA(EMA) + EMA(EMA(EMA)).

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        period: Bars of each EMA; at least 2.

    Returns:
        Average, shape (T,), float64, price units; the first 3 (period - 1) values are NaN. Value t depends on bars up
        to t only. Flat prices give the price; after a fall it may be below every price.

    Source: P. G. Mulloy, Smoothing Data with Less Lag, 1994.
    """
    average: FloatArray = talib.TEMA(prices, timeperiod=period)
    return average


def kaufman_adaptive_moving_average(prices: FloatArray, period: int = 10) -> FloatArray:
    """Return the average whose smoothing follows the efficiency of the price.

    The efficiency is |change over `period` bars| / sum of |one-bar changes|; the smoothing is
    (efficiency (2/3 - 2/31) + 2/31) squared. It starts from the price before the first value.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        period: Bars of the efficiency; at least 2.

    Returns:
        Average, shape (T,), float64, price units; the first `period` values are NaN. Value t depends on bars up to t
        only. Flat prices give the price.

    Source: P. J. Kaufman, Smarter Trading, 1995.
    """
    average: FloatArray = talib.KAMA(prices, timeperiod=period)
    return average


def distance_from_moving_average(prices: FloatArray, period: int = 20) -> FloatArray:
    """Return how far each price is from the mean of the last `period`, in per cent of the mean.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        period: Bars; at least 2.

    Returns:
        Distance, shape (T,), float64; the first period - 1 values are NaN. Value t depends on bars up to t only. Flat
        prices give 0.

    Source: J. J. Murphy, Technical Analysis of the Financial Markets, 1999.
    """
    distance = simple_moving_average(prices, period)
    distance = prices / distance
    distance -= 1
    distance *= 100
    return distance
