"""ImportBars: stored whole or not at all, whatever is sent and however it ends."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ktrdr.data.v1 import market_data_service_pb2 as pb
from ktrdr.data.v1.import_mode_pb2 import ImportMode
from ktrdr.data.v1.market_data_service_pb2_grpc import MarketDataServiceStub
from ktrdr.data.v1.series_pb2 import Series
from pyarrow import parquet

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.data.bars_import import MAX_IMPORT_BARS
from ktrdr_core.data.directory_lock import DirectoryLock
from ktrdr_core.data.importer import LOCK_FILE
from ktrdr_core.errors import (
    AlreadyExistsError,
    CorruptDataError,
    DrainingError,
    InvalidBarsError,
    InvalidInputError,
    InvalidUploadError,
    KtrdrError,
    NoSlotError,
    QuotaExceededError,
    UnavailableError,
)
from ktrdr_core.rpc.bars_file import CHUNK_SIZE_BYTES
from ktrdr_core.rpc.bars_messages import import_messages
from ktrdr_core.rpc.channel import open_sync_channel
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.backend import running_backend
from tests.kit.builders import REPOSITORY, make_bars, write_bars_csv
from tests.kit.eventually import eventually
from tests.kit.market import Market, files_below, refused, running_market
from tests.kit.series_files import bars_parquet

WHOLE = make_bars(900)
BARS = WHOLE.head(500)
LATER = WHOLE.rows(slice(300, 900))  # the first 200 are the last of BARS
LARGE = make_bars(100_000, timeframe="1m")
CREATE, APPEND, REPLACE = (
    ImportMode.IMPORT_MODE_CREATE,
    ImportMode.IMPORT_MODE_APPEND,
    ImportMode.IMPORT_MODE_REPLACE,
)
Messages = list[pb.ImportBarsRequest]


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[Market]:
    async with running_market(tmp_path) as running:
        yield running


def messages_of(
    tmp_path: Path, content: bytes, *, symbol: str = "EURUSD", timeframe: str = "1h", mode: Any = CREATE
) -> Messages:
    path = tmp_path / "sent.parquet"
    path.write_bytes(content)
    return list(import_messages(path, symbol=symbol, timeframe=timeframe, mode=mode))


async def send(market: Market, messages: Iterable[pb.ImportBarsRequest]) -> Series:
    """Send as the product does; an asyncio stream that is refused early may lose the refusal."""

    def call() -> Series:
        with open_sync_channel(market.address) as channel:
            return MarketDataServiceStub(channel).ImportBars(iter(messages)).series

    return await asyncio.to_thread(call)


async def refusal_of(market: Market, messages: Iterable[pb.ImportBarsRequest]) -> KtrdrError:
    """Return the refusal; nothing may be left or changed by it."""
    before = files_of(market)
    problem = await refused(send(market, messages))
    assert files_of(market) == before
    await eventually(lambda: not market.files_left(), what="nothing is left")
    return problem


def files_of(market: Market) -> dict[str, bytes]:
    found = [path for path in files_below(market.bars_dir) if path.name != LOCK_FILE]
    return {str(path.relative_to(market.bars_dir)): path.read_bytes() for path in found}


def stored(market: Market, symbol: str = "EURUSD", timeframe: str = "1h") -> Bars:
    return DirectoryBarStore(market.bars_dir).load(symbol, timeframe)


def parquet_of(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def columns_of(bars: Bars) -> dict[str, Any]:
    times = pa.array(bars.times, pa.timestamp("ns", tz="UTC"))
    return {"time": times} | {name: getattr(bars, name).copy() for name in BAR_COLUMNS}


def changed(column: str, row: int, value: float) -> bytes:
    columns = columns_of(BARS)
    columns[column][row] = value
    return parquet_of(columns)


async def test_bars_are_stored_as_a_local_import_stores_them(market: Market, tmp_path: Path) -> None:
    series = await send(market, messages_of(tmp_path, bars_parquet(BARS)))
    assert stored(market).digest() == BARS.digest()
    assert (series.num_bars, series.sha256.hex(), len(series.parts)) == (500, BARS.digest(), 1)
    assert series == await market.series("EURUSD", "1h")
    assert market.files_left() == []


async def test_real_bars_go_in_and_come_out_bit_for_bit(market: Market, tmp_path: Path) -> None:
    real = DirectoryBarStore(REPOSITORY / "data").load("EURUSD", "1h")
    series = await send(market, messages_of(tmp_path, bars_parquet(real)))
    assert series.sha256.hex() == real.digest() == stored(market).digest()


async def test_columns_in_another_order_and_other_units_are_the_same_bars(market: Market, tmp_path: Path) -> None:
    columns = columns_of(BARS)
    columns["time"] = columns["time"].cast(pa.timestamp("ms", tz="Europe/Athens"))
    shuffled = {name: columns[name] for name in reversed(columns)}
    await send(market, messages_of(tmp_path, parquet_of(shuffled, row_group_size=7, compression="gzip")))
    assert stored(market).digest() == BARS.digest()


@pytest.mark.parametrize("mode", [CREATE, APPEND, REPLACE, ImportMode.IMPORT_MODE_UNSPECIFIED])
async def test_same_import_again_is_a_success(market: Market, tmp_path: Path, mode: Any) -> None:
    first = await send(market, messages_of(tmp_path, bars_parquet(BARS), mode=mode))
    before = files_of(market)
    assert await send(market, messages_of(tmp_path, bars_parquet(BARS), mode=mode)) == first
    assert files_of(market) == before


@pytest.mark.parametrize("mode", [CREATE, ImportMode.IMPORT_MODE_UNSPECIFIED])
async def test_series_with_other_bars_is_not_touched_unless_told_to(market: Market, tmp_path: Path, mode: Any) -> None:
    await send(market, messages_of(tmp_path, bars_parquet(BARS)))
    problem = await refusal_of(market, messages_of(tmp_path, bars_parquet(LATER), mode=mode))
    assert isinstance(problem, AlreadyExistsError)
    assert "EURUSD 1h is stored already, with other bars; append these to them, or replace them" in problem.message


async def test_append_adds_what_is_new(market: Market, tmp_path: Path) -> None:
    await send(market, messages_of(tmp_path, bars_parquet(BARS)))
    series = await send(market, messages_of(tmp_path, bars_parquet(LATER), mode=APPEND))
    assert series.num_bars == 900
    assert stored(market).digest() == WHOLE.digest()


async def test_append_of_other_bars_of_the_same_time_is_refused(market: Market, tmp_path: Path) -> None:
    await send(market, messages_of(tmp_path, bars_parquet(BARS)))
    problem = await refusal_of(market, messages_of(tmp_path, changed("volume", 6, 12345.0), mode=APPEND))
    assert isinstance(problem, AlreadyExistsError)
    assert "EURUSD_1h.parquet, row 7 (2017-01-02T04:00:00Z): bar differs from the stored one" in problem.message


async def test_replace_puts_the_new_bars_in_the_place_of_all_old_ones(market: Market, tmp_path: Path) -> None:
    await send(market, messages_of(tmp_path, bars_parquet(BARS)))
    await send(market, messages_of(tmp_path, bars_parquet(LATER), mode=REPLACE))
    assert stored(market).digest() == LATER.digest()


async def test_file_that_was_put_there_by_hand_is_never_touched(market: Market, tmp_path: Path) -> None:
    write_bars_csv(market.bars_dir, BARS)
    problem = await refusal_of(market, messages_of(tmp_path, bars_parquet(LATER), mode=REPLACE))
    assert isinstance(problem, AlreadyExistsError)
    assert "it was put there by hand" in problem.message


BROKEN_BARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "NaN": (lambda: changed("close", 41, np.nan), r"row 42 .*close must be a finite number"),
    "infinity": (lambda: changed("high", 0, np.inf), r"row 1 .*high must be a finite number"),
    "zero price": (lambda: changed("low", 9, 0.0), r"row 10 .*low must be above 0"),
    "impossible bar": (lambda: changed("high", 9, 0.001), r"row 10 .*high is below low"),
    "missing value": (
        lambda: parquet_of(columns_of(BARS) | {"open": pa.array([None, *BARS.open[1:].tolist()])}),
        r"row 1.*open must be a number, is missing",
    ),
    "out of order": (
        lambda: parquet_of(pa.table(columns_of(BARS)).take([0, 2, 1, *range(3, 500)]).to_pydict()),
        r"row 3 .*time is before that of the row before",
    ),
    "twice": (
        lambda: parquet_of({name: pa.chunked_array([column]).take([0, 1, 1, 2]) for name, column in _arrays().items()}),
        r"row 3 .*time is that of the row before",
    ),
    "another timeframe": (
        lambda: bars_parquet(replace(make_bars(50, timeframe="4h"), timeframe="1h")),
        "step between bars is 4h",
    ),
    "times without a zone": (
        lambda: parquet_of(columns_of(BARS) | {"time": pa.array(BARS.times, pa.timestamp("ns"))}),
        r"time must be timestamps with a zone, is timestamp\[ns\]",
    ),
    "times as numbers": (lambda: parquet_of(columns_of(BARS) | {"time": BARS.times}), "time must be timestamps with"),
    "text prices": (
        lambda: parquet_of(columns_of(BARS) | {"open": [str(value) for value in BARS.open]}),
        "column open must be numbers, is string",
    ),
    "a column too many": (lambda: parquet_of(columns_of(BARS) | {"spread": BARS.open}), "and no other; has time"),
    "a column too few": (
        lambda: parquet_of({name: column for name, column in columns_of(BARS).items() if name != "volume"}),
        "must have the columns time, open",
    ),
    "year 1": (
        lambda: parquet_of(
            {name: [column[0].as_py()] for name, column in _arrays().items() if name != "time"}
            | {"time": pa.array([datetime(1, 1, 1, tzinfo=UTC)], pa.timestamp("us", tz="UTC"))}
        ),
        "row 1",
    ),
    "a time no calendar has": (
        lambda: parquet_of(columns_of(BARS) | {"time": pa.array([2**62] * 500, pa.timestamp("us", tz="UTC"))}),
        r"row 1.*was '4611686018427387904'",
    ),
    "no bars": (lambda: bars_parquet(BARS.head(0)), "must have 1 to"),
    "no Parquet": (lambda: b"time,open\n" * 1000, "is no readable Parquet file"),
    "cut off": (lambda: bars_parquet(BARS)[:-9], "is no readable Parquet file"),
    "only the magic": (lambda: b"PAR1", "is no readable Parquet file"),
}


def _arrays() -> dict[str, Any]:
    return {
        name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns_of(BARS).items()
    }


@pytest.mark.parametrize("name", BROKEN_BARS)
async def test_bars_that_break_a_rule_are_refused_by_row_and_reason(market: Market, tmp_path: Path, name: str) -> None:
    make, text = BROKEN_BARS[name]
    problem = await refusal_of(market, messages_of(tmp_path, make()))
    assert isinstance(problem, InvalidBarsError)
    assert problem.message.startswith(("EURUSD_1h.parquet", "EURUSD: "))
    assert re.search(text, problem.message), problem.message


def varint(number: int) -> bytes:
    """Return a whole number as Thrift's compact protocol writes it."""
    zigzag, written = 2 * number, b""
    while zigzag > 127:
        written += bytes([zigzag & 127 | 128])
        zigzag >>= 7
    return written + bytes([zigzag])


def claiming(num_bars: int) -> bytes:
    """Return a file of 500 bars whose footer says that it has so many."""
    content = bars_parquet(BARS)
    size = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - size], content[-8 - size : -8]
    footer = footer.replace(b"\x16" + varint(500), b"\x16" + varint(num_bars))
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


async def test_bomb_of_a_billion_bars_is_refused_by_its_footer(market: Market, tmp_path: Path) -> None:
    problem = await refusal_of(market, messages_of(tmp_path, claiming(10**9)))
    assert isinstance(problem, InvalidBarsError)
    assert f"must have 1 to {MAX_IMPORT_BARS} bars, its footer says 1000000000" in problem.message


async def test_footer_that_lies_within_the_bound_is_refused(market: Market, tmp_path: Path) -> None:
    problem = await refusal_of(market, messages_of(tmp_path, claiming(MAX_IMPORT_BARS)))
    assert isinstance(problem, InvalidBarsError)
    assert "has 500 bars, its footer says 20000000" in problem.message


async def test_page_that_claims_two_gigabytes_is_not_given_them(market: Market, tmp_path: Path) -> None:
    content = parquet_of(columns_of(BARS), use_dictionary=False)
    # A data page: its kind, the size of its values, the size of its bytes.
    sizes = b"\x15" + varint(4007) + b"\x15" + varint(4012)
    assert content[4:].startswith(b"\x15\x00" + sizes), content[4:20]
    bomb = content.replace(sizes, b"\x15" + varint(2**31 - 1) + b"\x15" + varint(100), 1)
    problem = await refusal_of(market, messages_of(tmp_path, bomb))
    assert isinstance(problem, InvalidBarsError)
    assert "alloc of size 2147483648 failed" in problem.message


async def test_every_flipped_byte_is_refused_or_makes_no_difference(market: Market, tmp_path: Path) -> None:
    content = bars_parquet(BARS.head(20))
    rng = np.random.default_rng(3)
    for position in rng.choice(len(content), 12, replace=False).tolist():
        broken = content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        try:
            await send(market, messages_of(tmp_path, broken, mode=REPLACE))
        except Exception as error:  # noqa: BLE001  # whatever it is, it must be a refusal
            problem = from_rpc_error(error)  # type: ignore[arg-type]
            assert isinstance(problem, InvalidBarsError), problem
        else:
            assert len(stored(market)) > 0
    assert market.files_left() == []


def with_header(**fields: Any) -> Callable[[Messages], Messages]:
    def change(messages: Messages) -> Messages:
        for name, value in fields.items():
            if isinstance(value, Series):
                messages[0].series.CopyFrom(value)
            else:
                setattr(messages[0], name, value)
        return messages

    return change


def _later(change: Callable[[pb.ImportBarsRequest], None]) -> Callable[[Messages], Messages]:
    def apply(messages: Messages) -> Messages:
        change(messages[1])
        return messages

    return apply


def _set(**fields: Any) -> Callable[[pb.ImportBarsRequest], None]:
    def change(message: pb.ImportBarsRequest) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


BROKEN_STREAMS: dict[str, tuple[Callable[[Messages], Messages], type[KtrdrError], str]] = {
    "nothing": (lambda messages: [], InvalidUploadError, "begins with what its bars are"),
    "truncated": (lambda messages: messages[:-1], InvalidUploadError, "arrived; send it again"),
    "too much": (
        lambda messages: [*messages, pb.ImportBarsRequest(offset=messages[0].total_size_bytes, data=b"x", crc32c=0)],
        InvalidUploadError,
        "more than the",
    ),
    "again": (lambda messages: [*messages, messages[-1]], InvalidUploadError, "offset must be"),
    "reordered": (
        lambda messages: [messages[0], messages[2], messages[1]],
        InvalidUploadError,
        "offset must be 1048576",
    ),
    "overlapping": (_later(_set(offset=CHUNK_SIZE_BYTES - 1)), InvalidUploadError, "offset must be 1048576"),
    "negative offset": (_later(_set(offset=-1)), InvalidUploadError, "offset must be 1048576"),
    "too large a message": (
        _later(_set(data=bytes(CHUNK_SIZE_BYTES + 1))),
        InvalidUploadError,
        "at most 1048576 bytes",
    ),
    "wrong checksum": (_later(_set(crc32c=1)), CorruptDataError, "CRC32C of the data at offset 1048576"),
    "wrong digest": (with_header(sha256=bytes(32)), CorruptDataError, "SHA-256 of the file must be 0000"),
    "short digest": (with_header(sha256=b"x"), InvalidUploadError, "sha256 must be 32 bytes, was 1"),
    "no size": (with_header(total_size_bytes=0), InvalidUploadError, "total_size_bytes must be at least 1, was 0"),
    "negative size": (with_header(total_size_bytes=-5), InvalidUploadError, "must be at least 1, was -5"),
    "huge": (with_header(total_size_bytes=2**40), QuotaExceededError, "may have 67108864 bytes here"),
    "unknown mode": (with_header(mode=9), InvalidInputError, "mode must be one of IMPORT_MODE_CREATE"),
    "path as symbol": (
        with_header(series=Series(symbol="../../EURUSD", timeframe="1h")),
        InvalidInputError,
        "symbol must be 1 to 128",
    ),
    "NUL in the symbol": (with_header(series=Series(symbol="A\0B", timeframe="1h")), InvalidInputError, "symbol must"),
    "hidden symbol": (with_header(series=Series(symbol=".import", timeframe="1h")), InvalidInputError, "symbol must"),
    "no symbol": (with_header(series=Series(timeframe="1h")), InvalidInputError, "symbol must be"),
    "path as timeframe": (
        with_header(series=Series(symbol="EURUSD", timeframe="1h/..")),
        InvalidInputError,
        "a timeframe must be",
    ),
}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
async def test_stream_that_breaks_the_contract_is_refused(market: Market, tmp_path: Path, name: str) -> None:
    change, error, text = BROKEN_STREAMS[name]
    messages = messages_of(tmp_path, bars_parquet(LARGE), timeframe="1m")
    problem = await refusal_of(market, change(messages))
    assert type(problem) is error
    assert text in problem.message


async def test_sender_that_goes_away_leaves_nothing(market: Market, tmp_path: Path) -> None:
    messages = messages_of(tmp_path, bars_parquet(LARGE), timeframe="1m")
    call = market.stub.ImportBars()
    await call.write(messages[0])
    await eventually(market.files_left, what="the first bytes have come")
    call.cancel()
    await eventually(lambda: not market.files_left(), what="nothing is left")
    assert files_of(market) == {}
    await send(market, messages)
    assert stored(market, timeframe="1m").digest() == LARGE.digest()


async def test_sender_that_goes_away_after_the_last_byte_has_its_bars_stored(market: Market, tmp_path: Path) -> None:
    call = market.stub.ImportBars()
    for message in messages_of(tmp_path, bars_parquet(BARS)):
        await call.write(message)
    await call.done_writing()
    await eventually(lambda: (market.bars_dir / LOCK_FILE).exists(), what="it is being stored")
    call.cancel()
    await eventually(lambda: (market.bars_dir / "EURUSD_1h" / "manifest.json").exists(), what="the series is stored")
    await eventually(lambda: not market.files_left(), what="nothing is left")
    assert stored(market).digest() == BARS.digest()


async def test_silent_sender_is_left(tmp_path: Path) -> None:
    async with running_market(tmp_path, idle_timeout_s=0.2) as market:
        call = market.stub.ImportBars()
        await call.write(messages_of(tmp_path, bars_parquet(LARGE), timeframe="1m")[0])
        problem = await refused(call)
        assert isinstance(problem, UnavailableError)
        assert "no bars came for 0.2 s; nothing was stored" in problem.message
        await eventually(lambda: not market.files_left(), what="nothing is left")


async def test_imports_at_once_are_stored_one_after_another(market: Market, tmp_path: Path) -> None:
    pieces = [WHOLE.rows(slice(start, start + 300)) for start in (0, 300, 600)]
    sent = [messages_of(tmp_path, bars_parquet(piece), mode=APPEND) for piece in pieces]
    await asyncio.gather(*(send(market, messages) for messages in sent))
    assert stored(market).digest() == WHOLE.digest()


async def test_import_of_another_process_is_waited_for_by_the_sender(market: Market, tmp_path: Path) -> None:
    lock = DirectoryLock(market.bars_dir / LOCK_FILE, owner="import")
    lock.acquire()
    problem = await refusal_of(market, messages_of(tmp_path, bars_parquet(BARS)))
    assert isinstance(problem, UnavailableError)
    assert "another import uses" in problem.message
    lock.release()
    await send(market, messages_of(tmp_path, bars_parquet(BARS)))


async def test_more_imports_at_once_than_may_be_are_told_to_wait(market: Market, tmp_path: Path) -> None:
    messages = messages_of(tmp_path, bars_parquet(LARGE), timeframe="1m")
    calls = [market.stub.ImportBars() for _ in range(8)]
    for call in calls:
        await call.write(messages[0])
    await eventually(lambda: len(market.files_left()) == 8, what="eight have come")
    problem = await refused(send(market, messages))
    assert isinstance(problem, NoSlotError)
    assert problem.retry_after_s > 0
    for call in calls:
        call.cancel()
    await eventually(lambda: not market.files_left(), what="nothing is left")
    await send(market, messages)


async def test_bars_that_kill_their_reader_are_refused_and_the_backend_lives_on(tmp_path: Path) -> None:
    async with running_market(tmp_path, store_timeout_s=1e-3) as market:
        problem = await refusal_of(market, messages_of(tmp_path, bars_parquet(BARS)))
        assert isinstance(problem, InvalidBarsError)
        assert "what reads it did not survive it" in problem.message
        assert (await market.stub.ListSeries(pb.ListSeriesRequest())).series == []


async def test_stop_ends_an_import_and_the_store_is_as_before(tmp_path: Path) -> None:
    async with running_market(tmp_path) as market:
        call = market.stub.ImportBars()
        for message in messages_of(tmp_path, bars_parquet(LARGE), timeframe="1m"):
            await call.write(message)
        await call.done_writing()
        await eventually(lambda: (market.bars_dir / LOCK_FILE).exists(), what="it is being stored")
        await market.imports.close()
        await eventually(lambda: not market.files_left(), what="nothing is left")
        problem = await refused(call)
        assert isinstance(problem, DrainingError)
    found = [path.name for path in market.bars_dir.iterdir() if not path.name.startswith(".")]
    assert found == []


async def test_backend_takes_files_up_to_its_setting_and_starts_without_its_bars(tmp_path: Path) -> None:
    (tmp_path / "bars").write_text("no directory")
    leftover = tmp_path / "state" / "bar-imports" / "a" / "EURUSD_1h.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    content = bars_parquet(BARS)
    async with running_backend(tmp_path, max_import_bytes=len(content) - 1) as backend:
        assert not leftover.exists()
        call = MarketDataServiceStub(backend.channel).ImportBars(iter(messages_of(tmp_path, content)))
        assert isinstance(await refused(call), QuotaExceededError)


async def test_leftovers_of_a_killed_backend_are_removed_at_the_start(market: Market) -> None:
    (market.imports_dir / "a").mkdir(parents=True)
    (market.imports_dir / "a" / "EURUSD_1h.parquet").write_bytes(b"half")
    await market.market_data.remove_stale()
    assert market.files_left() == []


def test_digest_of_a_message_is_that_of_the_file(tmp_path: Path) -> None:
    content = bars_parquet(LARGE)
    messages = messages_of(tmp_path, content)
    assert messages[0].sha256 == hashlib.sha256(content).digest()
    assert b"".join(message.data for message in messages) == content
    assert [message.offset for message in messages] == list(range(0, len(content), CHUNK_SIZE_BYTES))
