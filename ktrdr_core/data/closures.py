"""When a market is usually closed, and whether its clock has shifted: both found from the times of its bars alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.data.bars import IntArray
from ktrdr_core.data.local_time import local_clock
from ktrdr_core.domain.timeframe import DAY_NS, Timeframe

HOUR_NS = 3600 * 10**9
WEEK_NS = 7 * DAY_NS
WEEK_HOURS = 168
# 1970-01-01 was a Thursday; weeks here begin on Monday.
_MONDAY_NS = -3 * DAY_NS
_FEW_WEEKS = 4
_SATURDAY_NOON_HOUR = 5 * 24 + 12
_LONGEST_WEEKEND_NS = 74 * HOUR_NS
MIN_WEEKS_OF_A_CLOCK = 3
CLOCKS = ("UTC", "America/New_York", "Europe/London", "Europe/Athens", "Asia/Tokyo")


@dataclass(frozen=True, slots=True)
class ClockJump:
    """From a week on, the market opens at another time of the week than before, and goes on so.

    Attributes:
        row: Bar that opens the first such week.
        shift_ns: How much later it opens.
    """

    row: int
    shift_ns: int


def duration_text(duration_ns: int) -> str:
    """Return a length of time as a timeframe is written, `90s` where that cannot be."""
    for unit, unit_ns in (("w", 7 * DAY_NS), ("d", DAY_NS), ("h", HOUR_NS), ("m", 60 * 10**9)):
        if duration_ns >= unit_ns and duration_ns % unit_ns == 0:
            return f"{duration_ns // unit_ns}{unit}"
    return f"{duration_ns / 10**9:g}s"


def long_steps(times_T: IntArray, timeframe: Timeframe) -> IntArray:
    """Return the rows whose step from the row before is longer than a bar.

    Args:
        times_T: Open times, ns since 1970 UTC, increasing, shape (T,).
        timeframe: Bar length; of a day and more, a step may be a quarter longer (daylight saving, months of trading).
    """
    slack_ns = 0 if timeframe.duration_ns < DAY_NS else timeframe.duration_ns // 4
    return np.flatnonzero(np.diff(times_T) > timeframe.duration_ns + slack_ns) + 1


def is_usual_closure(times_T: IntArray, rows: IntArray, timeframe: Timeframe) -> NDArray[np.bool_]:
    """Return which long steps are the market's usual closure: a night or a weekend.

    A step is usual if at least half of the weeks of the series have a step that begins at the same hour of the week and
    is as long, each give or take one hour (daylight saving). In a series of less than four weeks: if it covers
    Saturday 12:00 UTC and is shorter than 74 hours.

    Args:
        times_T: Open times, ns since 1970 UTC, increasing, shape (T,).
        rows: Rows after a long step, shape (G,).
        timeframe: Bar length.

    Returns:
        Shape (G,).
    """
    if not len(rows):
        return np.zeros(0, dtype=bool)
    begins = times_T[rows - 1] + timeframe.duration_ns
    ends = times_T[rows]
    weeks = (begins - _MONDAY_NS) // WEEK_NS
    num_weeks = len(np.unique((times_T - _MONDAY_NS) // WEEK_NS))
    if num_weeks < _FEW_WEEKS:
        saturdays = _MONDAY_NS + weeks * WEEK_NS + _SATURDAY_NOON_HOUR * HOUR_NS
        return np.asarray((begins <= saturdays) & (saturdays < ends) & (ends - begins < _LONGEST_WEEKEND_NS))
    hours = (begins - _MONDAY_NS) // HOUR_NS % WEEK_HOURS
    lengths = (ends - begins + HOUR_NS // 2) // HOUR_NS
    kinds, kind_of_step = np.unique(np.stack([hours, lengths], axis=1), axis=0, return_inverse=True)
    kind_of_step = kind_of_step.reshape(-1)
    weeks_of_kind: dict[tuple[int, int], set[int]] = {}
    for (hour, length), week in set(zip(map(tuple, kinds[kind_of_step].tolist()), weeks.tolist(), strict=True)):
        weeks_of_kind.setdefault((hour, length), set()).add(week)
    is_usual = np.zeros(len(kinds), dtype=bool)
    for index, (hour, length) in enumerate(kinds.tolist()):
        near: set[int] = set()
        for hour_off in (-1, 0, 1):
            for length_off in (-1, 0, 1):
                near |= weeks_of_kind.get(((hour + hour_off) % WEEK_HOURS, length + length_off), set())
        is_usual[index] = 2 * len(near) >= num_weeks
    return is_usual[kind_of_step]


def find_clock_jumps(times_T: IntArray, rows: IntArray) -> tuple[str, list[ClockJump]]:
    """Return where the weekly opening moves for good, and the clock by which it is otherwise steady.

    The weekly opening is the first bar after a step that covers Saturday 12:00 UTC. It is read on the clocks of UTC,
    New York, London, Athens and Tokyo; the one with the fewest jumps, of several the one on which most weeks open at
    one and the same minute, is the market's. A jump is a week from which on at least three weeks in a row open at one
    minute, after at least three at another, the weeks between (holidays) left aside. A series whose every time is
    shifted alike has no jump.

    Args:
        times_T: Open times, ns since 1970 UTC, increasing, shape (T,).
        rows: Rows after a long step, shape (G,).

    Returns:
        Name of the clock ("" where there are less than six weekly openings), and the jumps.
    """
    begins, ends = times_T[rows - 1], times_T[rows]
    saturdays = (begins - _MONDAY_NS) // WEEK_NS * WEEK_NS + _MONDAY_NS + _SATURDAY_NOON_HOUR * HOUR_NS
    opens = rows[(begins <= saturdays) & (saturdays < ends)]
    if len(opens) < 2 * MIN_WEEKS_OF_A_CLOCK:
        return "", []
    found: list[tuple[int, int, str, list[ClockJump]]] = []
    for name in CLOCKS:
        minutes = (local_clock(times_T[opens], ZoneInfo(name)) - _MONDAY_NS) % WEEK_NS
        jumps = _jumps(opens, minutes)
        num_usual = int(np.unique(minutes, return_counts=True)[1].max())
        found.append((len(jumps), -num_usual, name, jumps))
    _, _, name, jumps = min(found, key=lambda each: each[:2])
    return name, jumps


def _jumps(opens: IntArray, minutes: IntArray) -> list[ClockJump]:
    """Return the jumps of the times of the week at which weeks open."""
    starts = np.flatnonzero(np.diff(minutes, prepend=minutes[0] - 1))
    lengths = np.diff(starts, append=len(minutes))
    steady = [int(start) for start, length in zip(starts, lengths, strict=True) if length >= MIN_WEEKS_OF_A_CLOCK]
    return [
        ClockJump(int(opens[after]), int(minutes[after] - minutes[before]))
        for before, after in pairwise(steady)
        if minutes[after] != minutes[before]
    ]
