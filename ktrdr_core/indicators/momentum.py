"""Oscillators of one price: RSI and its stochastic, MACD, PPO, TRIX, rate of change, momentum, CMO."""

from __future__ import annotations

import numpy as np
import talib

from ktrdr_core.data.bars import FloatArray
from ktrdr_core.indicators.windows import ratio, rolling_max, rolling_mean, rolling_min

FLAT_RSI = 50.0
# A smoothed move below this share of the price is rounding; TA-Lib may answer 0 there, which reads as "oversold".
FLAT_MOVE = 1e-14
# An RSI that moved less than this within a window did not move.
FLAT_RSI_RANGE = 1e-9


def relative_strength_index(prices: FloatArray, period: int = 14) -> FloatArray:
    """Return Wilder's relative strength index.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        period: Smoothing length in bars; at least 2.

    Returns:
        Index in [0, 100], shape (T,), float64; the first `period` values are NaN. Value t depends on bars
        up to t only. A flat series gives 50, and so does one whose smoothed move has faded to FLAT_MOVE of the price.

    Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978.
    """
    rsi: FloatArray = talib.RSI(prices, timeperiod=period)
    rsi[_is_flat(prices, period)] = FLAT_RSI
    return rsi


def stochastic_rsi(
    prices: FloatArray, period: int = 14, stoch_period: int = 14, k_smoothing: int = 3, d_period: int = 3
) -> tuple[FloatArray, FloatArray]:
    """Return where the RSI stands between its extremes of the last `stoch_period` bars, smoothed, and its mean.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        period: Of the RSI; at least 2.
        stoch_period: Bars of the extremes; at least 2.
        k_smoothing: Bars of the mean that makes k; 1 is none.
        d_period: Bars of the mean of k.

    Returns:
        k and d in [0, 100], each shape (T,), float64; the first period + stoch_period + k_smoothing - 2 values of k
        and d_period - 1 more of d are NaN. Value t depends on bars up to t only. An RSI that does not move gives 50.

    Source: T. S. Chande and S. Kroll, The New Technical Trader, 1994.
    """
    rsi = relative_strength_index(prices, period)
    lowest = rolling_min(rsi, stoch_period)
    span = rolling_max(rsi, stoch_period) - lowest
    span[span < FLAT_RSI_RANGE] = 0
    k = rolling_mean(100 * ratio(rsi - lowest, span, 0.5), k_smoothing)
    return k, rolling_mean(k, d_period)


def moving_average_convergence_divergence(
    prices: FloatArray, fast_period: int = 12, slow_period: int = 26, signal_period: int = 9
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the MACD line, its signal line and their difference.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        fast_period: Bars of the fast average; at least 2 and below `slow_period`.
        slow_period: Bars of the slow average.
        signal_period: Bars of the signal line; at least 2.

    Returns:
        line, signal, hist = line - signal, each shape (T,), float64, in price units; the first
        slow_period + signal_period - 2 values are NaN. Value t depends on bars up to t only. Both averages begin at
        bar slow_period - 1 with the mean of their first bars, as TA-Lib does. Flat prices give 0.

    Source: G. Appel, Technical Analysis: Power Tools for Active Investors, 2005.
    """
    line, signal, hist = talib.MACD(prices, fast_period, slow_period, signal_period)
    return line, signal, hist


def percentage_price_oscillator(
    prices: FloatArray, fast_period: int = 12, slow_period: int = 26, signal_period: int = 9
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the difference of two exponential averages in per cent of the slow one, its signal line, and theirs.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        fast_period: Bars of the fast average; at least 2 and below `slow_period`.
        slow_period: Bars of the slow average.
        signal_period: Bars of the signal line; at least 2.

    Returns:
        line, signal, hist = line - signal, each shape (T,), float64, in per cent; the first slow_period - 1 values of
        the line and slow_period + signal_period - 2 of the others are NaN. Value t depends on bars up to t only. Each
        average begins with the mean of its first bars. Flat prices give 0.

    Source: G. Appel, Technical Analysis: Power Tools for Active Investors, 2005.
    """
    slow = talib.EMA(prices, timeperiod=slow_period)
    line: FloatArray = talib.EMA(prices, timeperiod=fast_period)
    line -= slow
    line /= slow
    line *= 100
    signal: FloatArray = talib.EMA(line, timeperiod=signal_period)
    return line, signal, line - signal


def triple_smoothed_rate_of_change(prices: FloatArray, period: int = 15) -> FloatArray:
    """Return TRIX: the one-bar change, in per cent, of an EMA of an EMA of an EMA.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        period: Bars of each EMA; at least 2.

    Returns:
        Change, shape (T,), float64; the first 3 (period - 1) + 1 values are NaN. Value t depends on bars up to t only.
        Flat prices give 0.

    Source: J. K. Hutson, Good TRIX, 1983.
    """
    trix: FloatArray = talib.TRIX(prices, timeperiod=period)
    return trix


def rate_of_change(prices: FloatArray, period: int = 10) -> FloatArray:
    """Return the change over `period` bars in per cent.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        period: Bars; at least 1.

    Returns:
        Change, shape (T,), float64; the first `period` values are NaN. Value t depends on bars up to t only. Flat
        prices give 0.

    Source: J. J. Murphy, Technical Analysis of the Financial Markets, 1999.
    """
    change: FloatArray = talib.ROC(prices, timeperiod=period)
    return change


def momentum(prices: FloatArray, period: int = 10) -> FloatArray:
    """Return the change over `period` bars in price units.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN.
        period: Bars; at least 1.

    Returns:
        Change, shape (T,), float64; the first `period` values are NaN. Value t depends on bars up to t only. Flat
        prices give 0.

    Source: J. J. Murphy, Technical Analysis of the Financial Markets, 1999.
    """
    change: FloatArray = talib.MOM(prices, timeperiod=period)
    return change


def chande_momentum_oscillator(prices: FloatArray, period: int = 14) -> FloatArray:
    """Return smoothed rises less smoothed falls in per cent of both, with Wilder's smoothing.

    Args:
        prices: Shape (T,), float64, oldest first, no NaN, above 0.
        period: Smoothing length in bars; at least 2.

    Returns:
        Oscillator in [-100, 100], shape (T,), float64; the first `period` values are NaN. Value t depends on bars up
        to t only. Flat prices give 0, on the terms of `relative_strength_index`.

    Source: T. S. Chande and S. Kroll, The New Technical Trader, 1994; the smoothing is J. W. Wilder's, 1978.
    """
    return 2 * relative_strength_index(prices, period) - 100


def _is_flat(prices: FloatArray, period: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    # The average true range of bars without a range is Wilder's average of |change|: average gain + average loss.
    average_move = talib.ATR(prices, prices, prices, timeperiod=period)
    is_flat: np.ndarray[tuple[int], np.dtype[np.bool_]] = average_move <= FLAT_MOVE * prices
    return is_flat
