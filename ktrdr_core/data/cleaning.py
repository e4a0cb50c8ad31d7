"""Rows of one year of a series made into bars that keep the rules, refused or repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.data.bars import IntArray, RuleKind, broken_rules, first_broken_bar, time_text
from ktrdr_core.data.row_spool import STORED, RowArray, columns_of
from ktrdr_core.domain.timeframe import DAY_NS, Timeframe
from ktrdr_core.errors import AlreadyExistsError, InvalidBarsError

SORTED = "rows that were out of order were sorted"
EXACT_DUPLICATE = "rows equal to another of the same time were dropped"
OTHER_DUPLICATE = "rows were replaced by a later one of the same time with other values"
OVERLAP = "rows that open before the bar before has closed were dropped"
IMPOSSIBLE = "impossible bars were dropped"

Refuse = Callable[[RowArray, int, str], InvalidBarsError]


def check_rows(rows: RowArray, timeframe: Timeframe, previous_ns: int | None, refuse: Refuse) -> RowArray:
    """Return new rows and stored ones of a year merged, if they keep every rule.

    Args:
        rows: Rows of the year: stored ones first, then new ones in the order of their files.
        timeframe: Bar length.
        previous_ns: Time of the last bar of the years before, None where there is none.
        refuse: Makes the error of a row and a reason.

    Raises:
        InvalidBarsError: The first new row that breaks a rule.
        AlreadyExistsError: The first new row that differs from the stored bar of its time.
    """
    is_stored = rows["file"] == STORED
    for part in (rows[~is_stored], rows[is_stored]):
        if len(part):
            _refuse_broken(part, timeframe, refuse)
    if is_stored.any():
        rows = _merge(rows, refuse)
        _refuse_broken(rows, timeframe, refuse)
    if len(rows) and previous_ns is not None and _overlaps(int(rows["time"][0]), previous_ns, timeframe):
        raise refuse(rows, 0, f"bar opens before the {timeframe} bar at {time_text(previous_ns)} has closed")
    return rows


def repair_rows(rows: RowArray, timeframe: Timeframe, previous_ns: int | None, repairs: Counter[str]) -> RowArray:
    """Return those rows of a year that keep every rule, sorted; what was done is counted.

    Impossible bars are dropped; of several rows of one time the last one read stays (a new row before a stored one);
    a bar that opens before the one before has closed is dropped.

    Args:
        rows, timeframe, previous_ns: As for `check_rows`.
        repairs: Where repairs are counted, by what was done.
    """
    is_new = rows["file"] != STORED
    times = rows["time"][is_new]
    repairs[SORTED] += int((times < np.maximum.accumulate(times)).sum()) if len(times) else 0
    rows = rows[np.argsort(rows["time"], kind="stable")]
    is_impossible = _impossible(rows, timeframe)
    repairs[IMPOSSIBLE] += int(is_impossible.sum())
    rows = rows[~is_impossible]
    rows = _last_of_each_time(rows, repairs)
    keep = _without_overlaps(rows["time"], timeframe, previous_ns)
    repairs[OVERLAP] += int((~keep).sum())
    for name in [name for name, count in repairs.items() if not count]:
        del repairs[name]
    return rows[keep]


def _refuse_broken(rows: RowArray, timeframe: Timeframe, refuse: Refuse) -> None:
    broken = first_broken_bar(np.ascontiguousarray(rows["time"]), columns_of(rows), timeframe)
    if broken is not None:
        raise refuse(rows, *broken)


def _merge(rows: RowArray, refuse: Refuse) -> RowArray:
    """Return stored and new rows by time; a new row equal to the stored one of its time is dropped."""
    rows = rows[np.argsort(rows["time"], kind="stable")]
    is_again = np.concatenate([[False], np.diff(rows["time"]) == 0])
    differs = is_again & _differs_from_previous(rows)
    if differs.any():
        row = int(np.argmax(differs))
        refused = refuse(
            rows,
            row,
            "bar differs from the stored one of the same time; replace the series, or take the new bar with --repair "
            "where the series is stored",
        )
        raise AlreadyExistsError(refused.message, metadata=refused.metadata)
    merged: RowArray = rows[~is_again]
    return merged


def _differs_from_previous(rows: RowArray) -> NDArray[np.bool_]:
    differs = np.zeros(len(rows), dtype=bool)
    differs[1:] = (rows["values"][1:] != rows["values"][:-1]).any(axis=1)
    return differs


def _impossible(rows: RowArray, timeframe: Timeframe) -> NDArray[np.bool_]:
    found = np.zeros(len(rows), dtype=bool)
    if len(rows):
        for rule in broken_rules(np.ascontiguousarray(rows["time"]), columns_of(rows), timeframe):
            if rule.kind is RuleKind.VALUE:
                found[rule.rows] = True
    return found


def _last_of_each_time(rows: RowArray, repairs: Counter[str]) -> RowArray:
    if not len(rows):
        return rows
    is_again = np.concatenate([[False], np.diff(rows["time"]) == 0])
    differs = is_again & _differs_from_previous(rows)
    repairs[OTHER_DUPLICATE] += int(differs.sum())
    repairs[EXACT_DUPLICATE] += int((is_again & ~differs).sum())
    is_last = np.concatenate([~is_again[1:], [True]])
    kept: RowArray = rows[is_last]
    return kept


def _without_overlaps(times_T: IntArray, timeframe: Timeframe, previous_ns: int | None) -> NDArray[np.bool_]:
    keep = np.ones(len(times_T), dtype=bool)
    duration = timeframe.duration_ns if timeframe.duration_ns < DAY_NS else 1
    if not len(times_T) or (previous_ns is None and (np.diff(times_T) >= duration).all()):
        return keep
    last = previous_ns
    for index, time in enumerate(times_T.tolist()):
        if last is not None and time - last < duration:
            keep[index] = False
        else:
            last = time
    return keep


def _overlaps(time_ns: int, previous_ns: int, timeframe: Timeframe) -> bool:
    duration = timeframe.duration_ns if timeframe.duration_ns < DAY_NS else 1
    return time_ns - previous_ns < duration
