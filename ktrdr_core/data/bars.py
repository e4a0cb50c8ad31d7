"""Bars of one series, and the rules they keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ktrdr_core.domain.timeframe import DAY_NS, Timeframe
from ktrdr_core.errors import InvalidBarsError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PRICE_COLUMNS = ("open", "high", "low", "close")
BAR_COLUMNS = (*PRICE_COLUMNS, "volume")


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars of one symbol and timeframe, oldest first. Make them with `validate_bars`.

    Attributes:
        symbol: Instrument.
        timeframe: Bar length, for example "1h".
        times: Open time of each bar, ns since 1970 UTC, strictly increasing, shape (T,).
        open, high, low, close: Prices, positive and finite, shape (T,).
        volume: Not negative, finite, shape (T,).
    """

    symbol: str
    timeframe: str
    times: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray

    def __len__(self) -> int:
        return len(self.times)

    @property
    def first_day(self) -> date:
        return day_of(int(self.times[0]))

    @property
    def last_day(self) -> date:
        return day_of(int(self.times[-1]))

    def digest(self) -> str:
        """Return the SHA-256 of symbol, timeframe and every value, hex; equal on every platform."""
        digest = begin_digest(self.symbol, self.timeframe, len(self))
        digest.update(self.times.astype("<i8").tobytes())
        for name in BAR_COLUMNS:
            digest.update(getattr(self, name).astype("<f8").tobytes())
        return digest.hexdigest()

    def between(self, start: date | None, end: date | None) -> Bars:
        """Return the bars that open on days `start` to `end`, both included, UTC; None is open-ended."""
        first = 0 if start is None else int(np.searchsorted(self.times, day_start_ns(start), side="left"))
        stop = len(self)
        if end is not None:
            stop = int(np.searchsorted(self.times, day_start_ns(end) + DAY_NS, side="left"))
        return self.rows(slice(first, stop))

    def head(self, n: int) -> Bars:
        """Return the first `n` bars."""
        return self.rows(slice(0, n))

    def rows(self, rows: slice) -> Bars:
        """Return the bars of a slice, without a copy."""
        return Bars(self.symbol, self.timeframe, self.times[rows], *(getattr(self, name)[rows] for name in BAR_COLUMNS))


def begin_digest(symbol: str, timeframe: str, num_bars: int) -> hashlib._Hash:
    """Return the digest of a series before its values: times as int64, then each of `BAR_COLUMNS` as float64, little
    endian, all bars of one after all bars of the other."""
    return hashlib.sha256(f"{symbol}\0{timeframe}\0{num_bars}\0".encode())


def day_start_ns(day: date) -> int:
    """Return midnight UTC at the start of `day`, ns since 1970."""
    return (day - date(1970, 1, 1)).days * DAY_NS


def day_of(time_ns: int) -> date:
    """Return the UTC day of a time in ns since 1970."""
    return date(1970, 1, 1) + timedelta(days=time_ns // DAY_NS)


def time_text(time_ns: int) -> str:
    """Return a time in ns since 1970 as ISO 8601, for messages."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def validate_bars(
    *,
    symbol: str,
    timeframe: str,
    times: ArrayLike,
    open: ArrayLike,
    high: ArrayLike,
    low: ArrayLike,
    close: ArrayLike,
    volume: ArrayLike,
    source: str | None = None,
) -> Bars:
    """Return bars that keep every rule of the data, as read-only arrays.

    Args:
        symbol: Instrument.
        timeframe: Bar length.
        times: Open times, ns since 1970 UTC, int64.
        open: Open prices.
        high: Highest prices.
        low: Lowest prices.
        close: Close prices.
        volume: Volumes.
        source: File the bars come from, for messages.

    Raises:
        InvalidBarsError: Columns differ in length or there is no bar; or the first row (counted from 1) that has a
            NaN, an infinity, a price of 0 or below, a negative volume, a high below or a low above another price,
            or a time that does not increase or falls into the bar before.
    """
    label = source or f"{symbol} {timeframe}"
    columns = {
        name: np.ascontiguousarray(values, dtype=np.float64)
        for name, values in zip(BAR_COLUMNS, (open, high, low, close, volume), strict=True)
    }
    times_T = np.ascontiguousarray(times, dtype=np.int64)
    lengths = {"time": times_T.shape, **{name: values.shape for name, values in columns.items()}}
    if any(shape != (len(times_T),) for shape in lengths.values()):
        raise InvalidBarsError(f"{label}: columns must be of one length, were {lengths}", field="bars")
    if len(times_T) == 0:
        raise InvalidBarsError(f"{label}: has no bars; a series needs at least one", field="bars")
    broken = first_broken_bar(times_T, columns, Timeframe.parse(timeframe))
    if broken is not None:
        row, reason = broken
        raise InvalidBarsError(
            f"{label}, row {row + 1} ({time_text(int(times_T[row]))}): {reason}",
            field=f"row {row + 1}",
            metadata={"row": str(row + 1), "source": label},
        )
    for values in (times_T, *columns.values()):
        values.setflags(write=False)
    return Bars(symbol, timeframe, times_T, **columns)


class RuleKind(StrEnum):
    """What a rule of the data is about."""

    VALUE = "value"
    DUPLICATE = "duplicate"
    ORDER = "order"
    OVERLAP = "overlap"


@dataclass(frozen=True, eq=False, slots=True)
class BrokenRule:
    """A rule of the data that some bar breaks.

    Attributes:
        kind: What it is about.
        rule: The rule, or what is wrong, for messages.
        rows: Indices of the bars that break it, ascending, at least one.
        shown: Columns whose values explain it.
    """

    kind: RuleKind
    rule: str
    rows: IntArray
    shown: tuple[str, ...]

    def reason(self, columns: Mapping[str, FloatArray], row: int) -> str:
        """Return what is wrong with bar `row`, with its values."""
        values = ", ".join(f"{name} {columns[name][row]:g}" for name in self.shown)
        return f"{self.rule} ({values})" if values else self.rule


def broken_rules(times_T: IntArray, columns: Mapping[str, FloatArray], timeframe: Timeframe) -> list[BrokenRule]:
    """Return every rule of the data that a bar breaks: the one place that knows them.

    Args:
        times_T: Open times, ns since 1970 UTC, shape (T,), T at least 1.
        columns: The `BAR_COLUMNS`, float64, shape (T,) each.
        timeframe: Bar length.

    Returns:
        Broken rules; where a bar breaks several, the first of the list names its cause. Empty for valid bars. The
        rules of order speak of a bar and the one before it.
    """
    open_T, high_T, low_T, close_T = (columns[name] for name in PRICE_COLUMNS)
    step_T = np.diff(times_T, prepend=times_T[0] - timeframe.duration_ns)
    found: list[BrokenRule] = []

    def check(is_broken_T: NDArray[np.bool_], kind: RuleKind, rule: str, *shown: str) -> None:
        if is_broken_T.any():
            found.append(BrokenRule(kind, rule, np.flatnonzero(is_broken_T), shown))

    for name in BAR_COLUMNS:
        check(~np.isfinite(columns[name]), RuleKind.VALUE, f"{name} must be a finite number", name)
    for name in PRICE_COLUMNS:
        check(columns[name] <= 0, RuleKind.VALUE, f"{name} must be above 0", name)
    check(columns["volume"] < 0, RuleKind.VALUE, "volume must not be negative", "volume")
    check(high_T < low_T, RuleKind.VALUE, "high is below low", "high", "low")
    check(
        high_T < np.maximum(open_T, close_T),
        RuleKind.VALUE,
        "high is below open or close",
        "high",
        "open",
        "close",
    )
    check(low_T > np.minimum(open_T, close_T), RuleKind.VALUE, "low is above open or close", "low", "open", "close")
    check(step_T == 0, RuleKind.DUPLICATE, "time is that of the row before; times must strictly increase")
    check(step_T < 0, RuleKind.ORDER, "time is before that of the row before; times must strictly increase")
    if timeframe.duration_ns < DAY_NS:  # daily bars of a market with daylight saving may be 23 hours apart
        check(
            (step_T > 0) & (step_T < timeframe.duration_ns),
            RuleKind.OVERLAP,
            f"bar opens before the {timeframe} bar before it has closed",
        )
    return found


def first_broken_bar(
    times_T: IntArray, columns: Mapping[str, FloatArray], timeframe: Timeframe
) -> tuple[int, str] | None:
    """Return the first bar (counted from 0) that breaks a rule, with the reason; None if all keep them."""
    rules = broken_rules(times_T, columns, timeframe)
    if not rules:
        return None
    first = min(rules, key=lambda rule: int(rule.rows[0]))
    row = int(first.rows[0])
    return row, first.reason(columns, row)
