"""Loads what a strategy needs of one symbol: its base bars and the longer timeframes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from ktrdr_core.data.alignment import early_by, resample
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.data.bars import Bars, time_text
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.domain.timeframe import DAY_NS, Timeframe
from ktrdr_core.errors import InvalidBarsError, TooFewBarsError

# Bars of a longer timeframe may end this long before the base bars: a long weekend.
MAX_STALE_NS = 4 * DAY_NS


def load_symbol_bars(
    bar_store: BarStore,
    symbol: str,
    base_timeframe: str,
    higher_timeframes: Sequence[str] = (),
    start_date: date | None = None,
    end_date: date | None = None,
) -> SymbolBars:
    """Return the bars of a symbol from `start_date` to `end_date`, both inclusive, UTC.

    A longer timeframe is read from its own bars if the store has them, and resampled from the base bars if not.

    Raises:
        SeriesNotFoundError: There are no bars of the base timeframe.
        TooFewBarsError: (a ValueError) None are left between the dates.
        InvalidBarsError: (a ValueError) Bars break a rule of the data, or those of a longer timeframe end long before
            the base bars or have times that are too early.
        InvalidInputError: (a ValueError) A timeframe is no whole multiple of the base.
    """
    base = bar_store.load(symbol, base_timeframe, start_date, end_date)
    if len(base) == 0:
        raise TooFewBarsError(
            f"{symbol} {base_timeframe} has no bars from {start_date} to {end_date}; take other dates"
        )
    stored = {info.timeframe for info in bar_store.list_series() if info.symbol == symbol}
    higher = []
    for timeframe in higher_timeframes:
        if timeframe in stored:
            bars = bar_store.load(symbol, timeframe, start_date, end_date)
            _check_reach(bars, base)
            _check_times(bars, base)
        else:
            bars = resample(base, timeframe)
        higher.append(bars)
    return SymbolBars(base, tuple(higher))


def _check_reach(bars: Bars, base: Bars) -> None:
    """Refuse bars that end so early that the rows after them would see values long out of date."""
    duration_ns = Timeframe.parse(bars.timeframe).duration_ns
    base_end_ns = int(base.times[-1]) + Timeframe.parse(base.timeframe).duration_ns
    last_close_ns = int(bars.times[-1]) + duration_ns if len(bars) else 0
    if base_end_ns - last_close_ns > MAX_STALE_NS + 2 * duration_ns:
        ends = time_text(last_close_ns) if len(bars) else "before the range begins"
        raise InvalidBarsError(
            f"{bars.symbol} {bars.timeframe} ends {ends}, {base.timeframe} goes on to {time_text(base_end_ns)}; import "
            f"the missing {bars.timeframe} bars, or remove that series and it is resampled from {base.timeframe}",
            field="bars",
        )


def _check_times(bars: Bars, base: Bars) -> None:
    """Refuse longer bars that would show rows a close before it is one."""
    num_bars = early_by(base, bars)
    if num_bars:
        raise InvalidBarsError(
            f"{bars.symbol} {bars.timeframe} sees the future: its bars have the closes of {base.timeframe} bars about "
            f"{num_bars} later than their times say; a time must be when the bar opens, so import {bars.timeframe} "
            f"again with the right --timezone, or remove that series and it is resampled from {base.timeframe}",
            field="bars",
        )
