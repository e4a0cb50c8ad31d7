"""Targets of bars: the bytes of a file that is imported, the messages it comes in, the parts a series is told in."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from ktrdr.data.v1.market_data_service_pb2 import ImportBarsRequest
from ktrdr.data.v1.series_pb2 import SeriesPart

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars_import import import_bars_file
from ktrdr_core.data.importer import IfExists
from ktrdr_core.errors import CorruptDataError, InvalidInputError, InvalidUploadError, KtrdrError
from ktrdr_core.rpc.bars_file import ArrivingFile
from ktrdr_core.wire.market_data import part_from_proto
from tests.fuzz.target import Decisions, Probe, Target
from tests.fuzz.watched_paths import confined

_HOUR_NS = 3600 * 10**9
_FIRST_NS = 1_483_308_000 * 10**9
_MAX_MESSAGES = 12
_MAX_FILE_BYTES = 4096
_LOCK_FILES = {".import.lock"}


def _build_file(directory: Path) -> Probe:
    path = directory / "EURUSD_1h.parquet"
    store = directory / "bars"

    def probe(data: bytes) -> None:
        path.write_bytes(data)
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()
        try:
            with confined(directory):
                import_bars_file(path, store, "EURUSD", "1h", IfExists.REFUSE)
        except KtrdrError:
            assert {entry.name for entry in store.iterdir()} <= _LOCK_FILES
            return
        assert len(DirectoryBarStore(store).load("EURUSD", "1h").times)

    return probe


def a_parquet_file(num_bars: int = 40, change: dict[str, Any] | None = None, **options: Any) -> bytes:
    """Return a file of bars; `change` replaces or adds columns, None removes one."""
    import pyarrow as pa
    from pyarrow import parquet

    close = 1.1 + 0.001 * np.sin(np.arange(num_bars))
    times = _FIRST_NS + _HOUR_NS * np.arange(num_bars, dtype=np.int64)
    columns: dict[str, Any] = {
        "time": pa.array(times, pa.timestamp("ns", tz="UTC")),
        "open": close,
        "high": close + 0.001,
        "low": close - 0.001,
        "close": close,
        "volume": np.full(num_bars, 10.0),
    }
    columns = {name: column for name, column in (columns | (change or {})).items() if column is not None}
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def _file_seeds() -> list[bytes]:
    import pyarrow as pa

    ones = np.ones(40)
    return [
        a_parquet_file(),
        a_parquet_file(compression="none", use_dictionary=False),
        a_parquet_file(compression="zstd", write_page_checksum=True),
        a_parquet_file(compression="gzip", row_group_size=7),
        a_parquet_file(version="1.0", data_page_version="2.0"),
        a_parquet_file(0),
        a_parquet_file(1),
        a_parquet_file(change={"open": ones * np.nan}),
        a_parquet_file(change={"open": ones * np.inf}),
        a_parquet_file(change={"low": ones * 9}),
        a_parquet_file(change={"volume": None}),
        a_parquet_file(change={"more": ones}),
        a_parquet_file(change={"open": pa.array([None] * 40, pa.float64())}),
        a_parquet_file(change={"open": pa.array(["1.1"] * 40)}),
        a_parquet_file(change={"open": pa.array([[1.0]] * 40)}),
        a_parquet_file(change={"open": pa.array([{"a": 1.0}] * 40)}),
        a_parquet_file(change={"open": pa.array([1.0] * 40).dictionary_encode()}),
        a_parquet_file(change={"volume": pa.array([2**63 - 1] * 40)}),
        a_parquet_file(change={"time": pa.array([0] * 40, pa.timestamp("s", tz="UTC"))}),
        a_parquet_file(change={"time": pa.array([2**62] * 40, pa.timestamp("us", tz="UTC"))}),
        a_parquet_file(change={"time": pa.array([-(2**63)] * 40, pa.timestamp("ns", tz="UTC"))}),
        a_parquet_file(change={"time": pa.array(range(40), pa.timestamp("ns", tz="No/Where"))}),
        a_parquet_file(change={"time": pa.array(range(40), pa.timestamp("ns"))}),
        b"PAR1PAR1",
        b"PAR1\xff\xff\xff\x7fPAR1",
        b"time,open,high,low,close,volume\n2017-01-01T00:00:00Z,1,1,1,1,1\n",
    ]


def _build_messages(directory: Path) -> Probe:
    """Return a probe that plays messages of a file, changed in every way, into what receives them."""
    path = directory / "arriving"

    def probe(data: bytes) -> None:
        decisions = Decisions(data)
        whole = bytes(decisions.number(256) for _ in range(decisions.number(64)))
        file = ArrivingFile(path, max_size_bytes=_MAX_FILE_BYTES)
        file.restart()
        written = b""
        try:
            for message in _messages(whole, decisions):
                try:
                    file.write(message)
                except (InvalidUploadError, CorruptDataError):
                    break
                assert message.offset == len(written)
                assert message.crc32c == google_crc32c.value(message.data)
                written += message.data
                if decisions.number(8) == 7:
                    file.close()
                    file.resume()
            assert file.size_bytes == len(written) <= _MAX_FILE_BYTES
            file.close()
            assert path.read_bytes() == written
        finally:
            file.remove()

    return probe


def _messages(whole: bytes, decisions: Decisions) -> Iterator[ImportBarsRequest]:
    at = 0
    for _ in range(_MAX_MESSAGES):
        size = decisions.choice((0, 1, 7, 64, 5000))
        data = whole[at : at + size] if decisions.number(8) else bytes(size)
        message = ImportBarsRequest(offset=at, data=data, crc32c=google_crc32c.value(data))
        message.offset += decisions.choice((0, 0, 0, 0, 0, 0, 1, -1))
        if decisions.number(4) == 3:
            raw = message.SerializeToString()
            place = decisions.number(len(raw) or 1)
            try:
                message.ParseFromString(raw[:place] + decisions.take(2) + raw[place + decisions.number(3) :])
            except DecodeError:
                return
        yield message
        at += len(data)


def _build_part(_: Path) -> Probe:
    def probe(data: bytes) -> None:
        message = SeriesPart()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return
        try:
            part = part_from_proto(message, field="part")
        except InvalidInputError:
            return
        assert re.fullmatch(r"\d{4}-[0-9a-f]{12}\.parquet", part.file)
        assert part.num_bars > 0
        assert part.size_bytes > 0
        assert part.first_ns <= part.last_ns

    return probe


def _part_seeds() -> list[bytes]:
    sound = SeriesPart(num_bars=3, size_bytes=100, sha256=bytes(range(32)))
    sound.start_time.seconds = sound.end_time.seconds = _FIRST_NS // 10**9
    seeds: list[SeriesPart] = []
    for seconds, nanos in ((0, 0), (-(2**63), 0), (2**63 - 1, 0), (5, -1), (5, 2**31 - 1), (-9_223_372_037, 0)):
        changed = SeriesPart()
        changed.CopyFrom(sound)
        changed.start_time.seconds, changed.start_time.nanos = seconds, nanos
        seeds.append(changed)
    return [message.SerializeToString() for message in (sound, *seeds)]


def _message_seeds() -> Sequence[bytes]:
    return [bytes(20), bytes([63, *range(63), *[2, 1, 0] * 12]), bytes(range(200)), bytes(range(251, 3, -7)) * 4]


BARS = (
    Target(name="bars_file", build=_build_file, seeds=_file_seeds),
    Target(name="bars_messages", build=_build_messages, seeds=_message_seeds),
    Target(name="series_part", build=_build_part, seeds=_part_seeds),
)
