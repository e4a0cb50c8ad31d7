"""Which longer bar a bar may see, and longer bars made of short ones.

A bar is known once it has closed: at its open time plus its duration. Aligning by open times shows a 1h bar at 08:00
the close that the 4h bar of 08:00 will have at 12:00.
"""

from __future__ import annotations

import numpy as np

from ktrdr_core.data.bars import Bars, IntArray, validate_bars
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidInputError

# 1970-01-01 was a Thursday; weeks begin on Mondays.
_FIRST_MONDAY_DAYS = 4

# Below, two random walks might agree better at another time by chance.
MIN_COMPARED_BARS = 30
_MOST_COMPARED_BARS = 2_000
_CLEARLY_LESS = 0.5


def close_times(bars: Bars) -> IntArray:
    """Return when each bar has closed: open time plus duration, ns since 1970 UTC, shape (T,), int64."""
    times_T: IntArray = bars.times + Timeframe.parse(bars.timeframe).duration_ns
    return times_T


def last_closed(base: Bars, higher: Bars) -> IntArray:
    """Return the longer bar that each base bar sees: the last one that closes no later than it.

    Args:
        base: T bars.
        higher: Bars of another length; gaps in either are no matter.

    Returns:
        Index into `higher`, shape (T,), int64, never decreasing; -1 where none has closed yet. Nothing looks ahead.
    """
    index_T: IntArray = np.searchsorted(close_times(higher), close_times(base), side="right").astype(np.int64) - 1
    return index_T


def num_closed(higher: Bars, base: Bars, stop: int) -> int:
    """Return how many longer bars have closed by the close of base bar `stop` - 1; none at `stop` 0."""
    if stop <= 0 or len(base) == 0:
        return 0
    last = min(stop, len(base)) - 1
    return int(np.searchsorted(close_times(higher), close_times(base.rows(slice(last, last + 1)))[0], side="right"))


def early_by(base: Bars, higher: Bars) -> int:
    """Return by how many base bars longer bars know the future, 0 if nothing says so.

    A longer bar whose time is too early (a day from 22:00 to 22:00 that is dated 00:00 of the day it began in, a bar of
    another zone) shows a price before there is one, and nothing in its own series tells. But its close is then that of
    a base bar that closes later than it says: the closes of both are compared at the times they claim, and at later
    ones. Series of different origin, whose closes differ for other reasons, differ no less there.

    Args:
        base: Base bars.
        higher: Bars of another length of the same symbol.

    Returns:
        Base bars from the last one that a longer bar may know to the one whose close it has, to within a tenth; 0 if
        fewer than MIN_COMPARED_BARS longer bars can be compared.
    """
    now_H = np.searchsorted(close_times(base), close_times(higher), side="right") - 1
    num_shifts = -(-Timeframe.parse(higher.timeframe).duration_ns // Timeframe.parse(base.timeframe).duration_ns)
    compared = np.flatnonzero((now_H >= 0) & (now_H + num_shifts < len(base)))
    if len(compared) < MIN_COMPARED_BARS:
        return 0
    compared = compared[:: -(-len(compared) // _MOST_COMPARED_BARS)]
    now_C, close_C = now_H[compared], higher.close[compared]
    least = _CLEARLY_LESS * float(np.median(np.abs(base.close[now_C] - close_C)))
    found, shift = 0, 1
    while shift <= num_shifts:
        difference = float(np.median(np.abs(base.close[now_C + shift] - close_C)))
        if difference < least:
            found, least = shift, difference
        shift += max(shift // 10, 1)
    return found


def resample(bars: Bars, timeframe: str) -> Bars:
    """Return longer bars made of `bars`.

    A longer bar begins at a whole multiple of its length since 1970 UTC (days at midnight, weeks on Mondays) and is
    made of the bars that close within it: first open, highest high, lowest low, last close, summed volume. A bar that
    straddles its start (a day from 22:00 to 22:00) so belongs to the later one, and no longer bar knows more than its
    close time says. One without any bar is left out. The last may be incomplete; `last_closed` shows it to no bar that
    closes before its end.

    Args:
        bars: At least one.
        timeframe: A whole multiple of their own, and more than one.

    Raises:
        InvalidInputError: It is not.
    """
    own, target = Timeframe.parse(bars.timeframe), Timeframe.parse(timeframe)
    if target.duration_ns <= own.duration_ns or target.duration_ns % own.duration_ns:
        raise InvalidInputError(
            f"{timeframe} bars cannot be made of {bars.timeframe} bars; resample to a whole multiple of "
            f"{bars.timeframe}, or import {timeframe} bars of {bars.symbol}",
            field="timeframe",
        )
    offset_ns = _FIRST_MONDAY_DAYS * Timeframe(1, "d").duration_ns if target.unit == "w" else 0
    bins_T = (close_times(bars) - 1 - offset_ns) // target.duration_ns
    first_B = np.flatnonzero(np.diff(bins_T, prepend=bins_T[0] - 1))
    last_B = np.append(first_B[1:], len(bars)) - 1
    return validate_bars(
        symbol=bars.symbol,
        timeframe=timeframe,
        times=bins_T[first_B] * target.duration_ns + offset_ns,
        open=bars.open[first_B],
        high=np.maximum.reduceat(bars.high, first_B),
        low=np.minimum.reduceat(bars.low, first_B),
        close=bars.close[last_B],
        volume=np.add.reduceat(bars.volume, first_B),
    )
