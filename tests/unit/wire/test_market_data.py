"""Series and parts as messages: back as they were, and refused where they are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from ktrdr.data.v1.import_mode_pb2 import ImportMode
from ktrdr.data.v1.series_pb2 import SeriesPart

from ktrdr_core.data.bar_store import SeriesInfo
from ktrdr_core.data.importer import IfExists
from ktrdr_core.data.partitions import Part, part_file_name
from ktrdr_core.data.series_parts import SeriesSnapshot
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.wire.market_data import (
    if_exists_from_proto,
    info_to_proto,
    ns_of_time,
    part_from_proto,
    part_to_proto,
    series_to_proto,
    time_of_ns,
)

SHA256 = "ab" * 32
FIRST_NS, LAST_NS = 1_483_308_000 * 10**9, 1_500_000_000 * 10**9 + 1
PART = Part(part_file_name(FIRST_NS, SHA256), 7, FIRST_NS, LAST_NS, 99, SHA256)


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_times_come_back_to_the_nanosecond(time_ns: int) -> None:
    message = time_of_ns(time_ns)
    assert 0 <= message.nanos < 10**9
    assert ns_of_time(message, field="time") == time_ns


@pytest.mark.parametrize(
    "message",
    [Timestamp(seconds=2**40), Timestamp(seconds=-(2**40)), Timestamp(nanos=10**9), Timestamp(seconds=5, nanos=-1)],
)
def test_times_outside_are_refused(message: Timestamp) -> None:
    with pytest.raises(InvalidInputError, match="start must be a time between 1677 and 2262"):
        ns_of_time(message, field="start")


def test_part_comes_back_with_the_name_of_its_file() -> None:
    assert PART.file == "2017-abababababab.parquet"
    assert part_from_proto(part_to_proto(PART), field="part") == PART


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sha256": b"short"}, "part.sha256 must be 32 bytes, was 5"),
        ({"sha256": b""}, "part.sha256 must be 32 bytes, was 0"),
        ({"num_bars": 0}, "at least 1 bar and 1 byte, had 0 and 99"),
        ({"size_bytes": -1}, "at least 1 bar and 1 byte, had 7 and -1"),
        ({"start_time": Timestamp(seconds=2**50)}, "part.start_time must be a time"),
        ({"end_time": time_of_ns(FIRST_NS - 1)}, "part must not end before it begins"),
    ],
)
def test_part_that_is_none_is_refused(change: dict[str, object], text: str) -> None:
    message = part_to_proto(PART)
    fields = {descriptor.name: getattr(message, descriptor.name) for descriptor in message.DESCRIPTOR.fields}
    with pytest.raises(InvalidInputError, match=text):
        part_from_proto(SeriesPart(**fields | change), field="part")


def test_series_has_its_parts_and_the_sum_of_their_bars() -> None:
    later = Part(part_file_name(LAST_NS, SHA256), 3, LAST_NS + 5, LAST_NS + 9, 1, SHA256)
    message = series_to_proto(SeriesSnapshot("EURUSD", "1h", (PART, later), Path("/x")), SHA256)
    assert (message.symbol, message.timeframe, message.num_bars, message.sha256.hex()) == ("EURUSD", "1h", 10, SHA256)
    assert ns_of_time(message.start_time, field="start") == FIRST_NS
    assert ns_of_time(message.end_time, field="end") == LAST_NS + 9
    assert [part_from_proto(part, field="part") for part in message.parts] == [PART, later]


def test_what_is_not_known_of_a_series_is_unset() -> None:
    message = info_to_proto(SeriesInfo("EURUSD", "1h", "csv"))
    assert (message.num_bars, message.HasField("start_time"), message.HasField("end_time")) == (0, False, False)
    message = info_to_proto(SeriesInfo("EURUSD", "1h", "partitioned", 2, FIRST_NS, LAST_NS))
    assert (message.num_bars, message.start_time) == (2, time_of_ns(FIRST_NS))


def test_each_mode_of_an_import_has_its_meaning() -> None:
    assert [if_exists_from_proto(mode) for mode in ImportMode.values()] == [
        IfExists.REFUSE,
        IfExists.REFUSE,
        IfExists.MERGE,
        IfExists.REPLACE,
    ]
