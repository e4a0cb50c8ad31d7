"""Local clocks against the standard library, one time after another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.data.local_time import find_zone, local_clock, to_utc
from ktrdr_core.errors import InvalidInputError

ZONES = ["UTC", "America/New_York", "Europe/Athens", "Asia/Kolkata", "Australia/Lord_Howe", "Africa/Monrovia"]
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001


def moment(local_ns: int, zone: ZoneInfo, fold: int) -> datetime:
    return (EPOCH + timedelta(microseconds=local_ns // 1000)).replace(tzinfo=zone, fold=fold)


def utc_ns(value: datetime) -> int:
    return round((value.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) * 1000


@given(
    zone=st.sampled_from(ZONES),
    minutes=st.lists(st.integers(-36_800_000, 120_000_000), min_size=1, max_size=50),
)
def test_times_are_those_of_the_standard_library(zone: str, minutes: list[int]) -> None:
    info = ZoneInfo(zone)
    local = np.array(minutes, dtype=np.int64) * 60 * 10**9
    utc = to_utc(local, info)
    for index, local_ns in enumerate(local.tolist()):
        first, second = (moment(local_ns, info, fold) for fold in (0, 1))
        there_and_back = first.astimezone(UTC).astimezone(info).replace(tzinfo=None)
        assert bool(utc.is_skipped[index]) == (there_and_back != first.replace(tzinfo=None))
        assert bool(utc.is_repeated[index]) == (not utc.is_skipped[index] and utc_ns(first) != utc_ns(second))
        assert utc.times[index] == utc_ns(first)
        assert utc.second_times[index] == utc_ns(second)
    back = local_clock(utc.times, info)
    assert np.array_equal(back[~utc.is_skipped], local[~utc.is_skipped])


@pytest.mark.parametrize(
    ("zone", "text", "is_skipped", "is_repeated"),
    [
        ("America/New_York", "2017-03-12T01:59", False, False),
        ("America/New_York", "2017-03-12T02:00", True, False),
        ("America/New_York", "2017-03-12T02:59", True, False),
        ("America/New_York", "2017-03-12T03:00", False, False),
        ("America/New_York", "2017-11-05T00:59", False, False),
        ("America/New_York", "2017-11-05T01:00", False, True),
        ("America/New_York", "2017-11-05T01:59", False, True),
        ("America/New_York", "2017-11-05T02:00", False, False),
        ("Australia/Lord_Howe", "2017-10-01T02:15", True, False),  # its clocks move by half an hour
        ("Australia/Lord_Howe", "2017-10-01T02:30", False, False),
        ("Australia/Lord_Howe", "2017-04-02T01:29", False, False),
        ("Australia/Lord_Howe", "2017-04-02T01:30", False, True),
    ],
)
def test_hours_at_a_change_of_the_clock(zone: str, text: str, is_skipped: bool, is_repeated: bool) -> None:
    utc = to_utc(np.array([text], dtype="datetime64[ns]").astype(np.int64), ZoneInfo(zone))
    assert (bool(utc.is_skipped[0]), bool(utc.is_repeated[0])) == (is_skipped, is_repeated)


@pytest.mark.parametrize("name", ["", "EET2", "../../etc/passwd", "/etc/localtime", "a\0b", "x" * 5000])
def test_other_name_is_no_zone(name: str) -> None:
    with pytest.raises(InvalidInputError, match="--timezone must be an IANA name"):
        find_zone(name)
