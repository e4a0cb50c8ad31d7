"""Local clocks to UTC, with the hours that daylight saving skips and repeats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.data.bars import IntArray
from ktrdr_core.errors import InvalidInputError

_HOUR_NS = 3600 * 10**9
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 a local clock


@dataclass(frozen=True, eq=False, slots=True)
class UtcTimes:
    """Local times in UTC.

    Attributes:
        times: ns since 1970 UTC, shape (T,), int64; of a time that occurs twice the first occurrence (daylight time).
        is_skipped: Times that no clock of the zone ever showed, shape (T,).
        is_repeated: Times that the zone's clocks showed twice, shape (T,).
        second_times: As `times`, of a repeated one the second occurrence.
    """

    times: IntArray
    is_skipped: NDArray[np.bool_]
    is_repeated: NDArray[np.bool_]
    second_times: IntArray


def find_zone(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name.

    Raises:
        InvalidInputError: There is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"--timezone must be an IANA name such as UTC, Europe/Athens or America/New_York, was {name!r}",
            field="--timezone",
        ) from error


def to_utc(local_T: IntArray, zone: ZoneInfo) -> UtcTimes:
    """Return the UTC times of a zone's local times.

    Args:
        local_T: What the zone's clocks show, as ns since 1970-01-01 00:00 of those clocks, shape (T,), years 1 to 9999.
        zone: The zone.
    """
    hours, inverse = np.unique(local_T // _HOUR_NS, return_inverse=True)
    first_H, second_H = _offsets(hours * _HOUR_NS, zone)
    last_first_H, last_second_H = _offsets(hours * _HOUR_NS + _HOUR_NS - 1, zone)
    first_T, second_T = first_H[inverse], second_H[inverse]
    # Where the clock changes inside an hour, each of its times is asked for alone.
    changes_T = ((first_H != last_first_H) | (second_H != last_second_H))[inverse]
    if changes_T.any():
        first_T[changes_T], second_T[changes_T] = _offsets(local_T[changes_T], zone)
    return UtcTimes(
        times=local_T - first_T,
        is_skipped=first_T < second_T,
        is_repeated=first_T > second_T,
        second_times=local_T - second_T,
    )


def local_clock(times_T: IntArray, zone: ZoneInfo) -> IntArray:
    """Return the local clock of UTC times: ns since 1970-01-01 00:00 of the zone's clocks, shape (T,)."""
    hours, inverse = np.unique(times_T // _HOUR_NS, return_inverse=True)
    offsets = [_ns(datetime.fromtimestamp(int(hour) * 3600, UTC).astimezone(zone).utcoffset()) for hour in hours]
    return times_T + np.array(offsets, dtype=np.int64)[inverse]


def _offsets(local: Iterable[int], zone: ZoneInfo) -> tuple[IntArray, IntArray]:
    """Return the offsets from UTC (ns) before and after a change of the clock, alike where there is none (PEP 495)."""
    moments = [(_EPOCH + timedelta(microseconds=int(each) // 1000)).replace(tzinfo=zone) for each in local]
    first = [_ns(moment.utcoffset()) for moment in moments]
    second = [_ns(moment.replace(fold=1).utcoffset()) for moment in moments]
    return np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)


def _ns(offset: timedelta | None) -> int:
    return 0 if offset is None else round(offset.total_seconds()) * 10**9
