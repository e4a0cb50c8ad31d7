"""What the decisions on a part would have earned as positions, after a cost for each change.

An evaluation of signals, not a backtest of fills: a position is opened and closed exactly at closes, whole, at once and
at any size; there is no spread, slippage, financing or gap risk beyond `cost_bps`.

Shape suffixes: T bars a symbol is judged on, M moments of the portfolio, S symbols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.data.bars import Bars
from ktrdr_core.domain.result import SignalEvaluation
from ktrdr_core.domain.timeframe import DAY_NS

FloatArray = NDArray[np.float64]

YEAR_NS = 365.25 * DAY_NS
# Returns that differ by less than this share of their size are rounding, not variation.
_ROUNDING = 1e-12
# Prices that are broken can multiply a capital beyond what floating point holds; the square of this still fits.
MOST_CAPITAL = 1e100


@dataclass(frozen=True, eq=False)
class SymbolPositions:
    """Positions of one symbol.

    Attributes:
        bars: The whole series.
        bar_indices: Position in `bars` of each row's bar, shape (N,), strictly increasing.
        positions: +1, 0 or -1 from that bar's close to the next bar's, shape (N,).
    """

    bars: Bars
    bar_indices: NDArray[np.int64]
    positions: NDArray[np.int8]


def evaluate_signals(symbols: Sequence[SymbolPositions], *, cost_bps: float) -> SignalEvaluation:
    """Return what the positions earn, and what holding every symbol all the time earns beside it.

    Each symbol has an equal share of the capital at the start and compounds it on its own. From the close of bar t to
    the close of bar t + 1 its share is multiplied by 1 + position * (close[t + 1] / close[t] - 1), never below 0, and
    at a change of position by 1 - cost_bps / 10,000 * change: 1 to open or close, 2 to reverse; it is never above
    MOST_CAPITAL. A position open at the end is closed at that cost. Bars between the rows that have no row of their own
    are flat; the last row has no position if the series ends with its bar. Buy and hold opens at the first row, closes
    after the last and pays for both.

    Args:
        symbols: One entry a symbol, oldest row first.
        cost_bps: Cost of opening or closing, in basis points of the position; below 5,000.

    Returns:
        Over M moments, the bars on which any symbol is judged (`num_bars`). `num_trades`: positions opened. `turnover`,
        the sum of the changes, and `exposure`, the share of the bars with a position: means over symbols. `sharpe`:
        mean over standard deviation (ddof 1) of the portfolio's M returns, times the root of `bars_per_year`, which is
        M over the time from the first bar to the one after the last, in years of 365.25 days; its standard error is
        that for independent returns. `max_drawdown`: largest fall of the net capital from its highest, at closes, in
        [0, 1]. A Sharpe ratio is 0 where returns do not vary or there are fewer than 2. Everything is 0 without a bar
        to judge.

    Source: A. W. Lo, The Statistics of Sharpe Ratios, 2002: a ratio per bar of independent returns has the variance
    (1 + ratio ** 2 / 2) / M.
    """
    judged = [one for one in (_judge(symbol, cost_bps / 10_000) for symbol in symbols) if len(one.growth)]
    times_M = np.unique(np.concatenate([one.times for one in judged])) if judged else np.empty(0, dtype=np.int64)
    num_bars = len(times_M)
    if num_bars == 0:
        return _nothing_to_judge(cost_bps)
    span_ns = max(one.end_time for one in judged) - int(times_M[0])
    bars_per_year = num_bars / (span_ns / YEAR_NS)
    net, held = (
        np.mean([_capital(one.times, growth, times_M) for one, growth in pairs], axis=0)
        for pairs in ([(one, one.growth) for one in judged], [(one, one.held_growth) for one in judged])
    )
    sharpe, standard_error = sharpe_ratio(_returns(net), bars_per_year)
    return {
        "cost_bps": cost_bps,
        "num_bars": num_bars,
        "num_trades": sum(one.num_trades for one in judged),
        "turnover": float(np.mean([one.turnover for one in judged])),
        "exposure": float(np.mean([one.exposure for one in judged])),
        "gross_return": float(np.mean([one.gross_return for one in judged])),
        "net_return": float(net[-1] - 1),
        "buy_and_hold_return": float(held[-1] - 1),
        "sharpe": sharpe,
        "sharpe_standard_error": standard_error,
        "buy_and_hold_sharpe": sharpe_ratio(_returns(held), bars_per_year)[0],
        "max_drawdown": max_drawdown(net),
        "bars_per_year": bars_per_year,
    }


def sharpe_ratio(returns_M: FloatArray, bars_per_year: float) -> tuple[float, float]:
    """Return the annualised Sharpe ratio of returns per bar over a rate of 0, and its standard error.

    Args:
        returns_M: Returns, shape (M,).
        bars_per_year: Bars a year.

    Returns:
        Ratio 0 where returns do not vary, with the standard error of a ratio of 0; both 0 below two returns.
    """
    num_bars = len(returns_M)
    if num_bars < 2:
        return 0.0, 0.0
    deviation = float(returns_M.std(ddof=1))
    varies = deviation > _ROUNDING * max(1.0, float(np.abs(returns_M).max()))
    per_bar = float(returns_M.mean()) / deviation if varies else 0.0
    annual = math.sqrt(bars_per_year)
    return per_bar * annual, math.sqrt((1 + per_bar**2 / 2) / num_bars) * annual


def max_drawdown(capital_M: FloatArray) -> float:
    """Return the largest fall from a highest value so far, as a share of it, in [0, 1].

    Args:
        capital_M: Capital after each bar, shape (M,), not negative; it was 1 before the first.
    """
    curve = np.concatenate([[1.0], capital_M])
    return float(np.max(1 - curve / np.maximum.accumulate(curve)))


@dataclass(frozen=True, eq=False)
class _Judged:
    """One symbol over T bars; growths are factors from one close to the next."""

    times: NDArray[np.int64]
    end_time: int
    growth: FloatArray
    held_growth: FloatArray
    gross_return: float
    turnover: float
    exposure: float
    num_trades: int


def _judge(symbol: SymbolPositions, cost: float) -> _Judged:
    bars, indices = symbol.bars, symbol.bar_indices
    has_next = indices < len(bars) - 1
    indices, held_positions = indices[has_next], symbol.positions[has_next]
    first, stop = (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, 0)
    position_T = np.zeros(stop - first)
    position_T[indices - first] = held_positions
    with np.errstate(over="ignore"):
        change_T = np.minimum(bars.close[first + 1 : stop + 1] / bars.close[first:stop] - 1, MOST_CAPITAL)
    gross_T = np.maximum(1 + position_T * change_T, 0.0)
    # One more than T: opening before each bar, and closing after the last.
    traded = np.abs(np.diff(position_T, prepend=0.0, append=0.0))
    opened = (position_T != 0) & (traded[:-1] != 0)
    return _Judged(
        times=bars.times[first:stop],
        end_time=int(bars.times[stop]),
        growth=_after_costs(gross_T, traded, cost),
        held_growth=_after_costs(
            1 + change_T, np.abs(np.diff(np.ones_like(position_T), prepend=0.0, append=0.0)), cost
        ),
        gross_return=float(_compounded(gross_T)[-1] - 1) if len(gross_T) else 0.0,
        turnover=float(traded.sum()),
        exposure=float(np.mean(position_T != 0)) if len(position_T) else 0.0,
        num_trades=int(opened.sum()),
    )


def _after_costs(growth_T: FloatArray, traded: FloatArray, cost: float) -> FloatArray:
    net_T = growth_T * (1 - cost * traded[:-1])
    net_T[-1:] *= 1 - cost * traded[-1]
    return net_T


def _capital(times_T: NDArray[np.int64], growth_T: FloatArray, times_M: NDArray[np.int64]) -> FloatArray:
    """Return a symbol's capital after each moment of the portfolio, 1 at the start; it rests where it has no bar."""
    growth_M = np.ones(len(times_M))
    growth_M[np.searchsorted(times_M, times_T)] = growth_T
    return _compounded(growth_M)


def _compounded(growth_T: FloatArray) -> FloatArray:
    """Return the running product, at most MOST_CAPITAL; once it is 0 it stays 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        capital_T = np.minimum(np.cumprod(growth_T), MOST_CAPITAL)
    return np.where(np.isnan(capital_T), 0.0, capital_T)  # NaN: beyond all bounds, then lost


def _returns(capital_M: FloatArray) -> FloatArray:
    before_M = np.concatenate([[1.0], capital_M[:-1]])
    # Capital that is gone earns nothing.
    return np.asarray(np.divide(capital_M, before_M, out=np.ones_like(capital_M), where=before_M > 0) - 1)


def _nothing_to_judge(cost_bps: float) -> SignalEvaluation:
    return {
        "cost_bps": cost_bps,
        "num_bars": 0,
        "num_trades": 0,
        "turnover": 0.0,
        "exposure": 0.0,
        "gross_return": 0.0,
        "net_return": 0.0,
        "buy_and_hold_return": 0.0,
        "sharpe": 0.0,
        "sharpe_standard_error": 0.0,
        "buy_and_hold_sharpe": 0.0,
        "max_drawdown": 0.0,
        "bars_per_year": 0.0,
    }
