"""RSI and MACD."""

from __future__ import annotations

import numpy as np
import talib

from ktrdr_core.data.bars import FloatArray
from ktrdr_core.errors import InvalidIndicatorError

FLAT_RSI = 50.0
# TA-Lib calls a smoothed move below this 0 and then answers 0, which reads as "oversold".
FLAT_MOVE = 1e-14


def relative_strength_index(close: FloatArray, period: int = 14) -> FloatArray:
    """Return Wilder's relative strength index of a close series.

    Args:
        close: Close prices, shape (T,), float64, oldest first, no NaN.
        period: Smoothing length in bars; at least 2.

    Returns:
        Index in [0, 100], shape (T,), float64; the first `period` values are NaN. Value t depends on bars
        up to t only. A flat series gives 50.

    Raises:
        InvalidIndicatorError: `period` is below 2.

    Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978.
    """
    if period < 2:
        raise InvalidIndicatorError(f"period must be at least 2, was {period}", field="period")
    if len(close) <= period:
        return np.full(len(close), np.nan)
    rsi: FloatArray = talib.RSI(close, timeperiod=period)
    # The average true range of bars without a range is Wilder's average of |change|: average gain + average loss.
    average_move: FloatArray = talib.ATR(close, close, close, timeperiod=period)
    rsi[average_move < FLAT_MOVE] = FLAT_RSI
    return rsi


def moving_average_convergence_divergence(
    close: FloatArray, fast_period: int = 12, slow_period: int = 26, signal_period: int = 9
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the MACD line, its signal line and their difference.

    Args:
        close: Close prices, shape (T,), float64, oldest first, no NaN.
        fast_period: Bars of the fast average; at least 2 and below `slow_period`.
        slow_period: Bars of the slow average.
        signal_period: Bars of the signal line; at least 2.

    Returns:
        line, signal, hist = line - signal, each shape (T,), float64, in price units; the first
        slow_period + signal_period - 2 values are NaN. Value t depends on bars up to t only. Both averages begin at
        bar slow_period - 1 with the mean of their first bars, as TA-Lib does.

    Raises:
        InvalidIndicatorError: A period is out of its range.

    Source: G. Appel, Technical Analysis: Power Tools for Active Investors, 2005.
    """
    if not 2 <= fast_period < slow_period or signal_period < 2:
        raise InvalidIndicatorError(
            "fast_period must be at least 2 and below slow_period, signal_period at least 2; were "
            f"{fast_period}, {slow_period}, {signal_period}",
            field="fast_period",
        )
    line, signal, hist = talib.MACD(close, fast_period, slow_period, signal_period)
    return line, signal, hist
