"""Fetching a file of bars: whole and verified or not at all, whatever the other side and the network do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ktrdr.data.v1.import_mode_pb2 import ImportMode
from ktrdr.data.v1.market_data_service_pb2 import GetBarsRequest, GetBarsResponse
from ktrdr.data.v1.series_pb2 import Series

from ktrdr_core.errors import (
    CorruptDataError,
    InvalidInputError,
    InvalidUploadError,
    KtrdrError,
    QuotaExceededError,
    SeriesChangedError,
    SeriesNotFoundError,
    StorageError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.rpc.bars_fetch import FetchedBars, fetch_bars
from ktrdr_core.rpc.bars_file import ArrivingFile
from ktrdr_core.rpc.bars_messages import import_messages, send_file
from ktrdr_core.rpc.errors import to_status
from tests.kit.eventually import eventually

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).digest()
NO_PAUSES = (0.0,) * 3


def response(offset: int, data: bytes, **fields: Any) -> GetBarsResponse:
    return GetBarsResponse(**{"offset": offset, "data": data, "crc32c": google_crc32c.value(data)} | fields)


def stream(content: bytes = CONTENT, offset: int = 0, *, piece: int = 1000) -> list[GetBarsResponse]:
    """Return the responses of a sound server."""
    pieces = [response(at, content[at : at + piece]) for at in range(offset, len(content), piece)] or [
        response(offset, b"")
    ]
    pieces[0].series.CopyFrom(Series(symbol="EURUSD", timeframe="1h", num_bars=3))
    pieces[0].total_size_bytes = len(content)
    pieces[0].sha256 = hashlib.sha256(content).digest()
    return pieces


class Call:
    """One GetBars: responses, and then perhaps an error or silence."""

    def __init__(self, responses: list[GetBarsResponse], error: BaseException | None, is_silent: bool) -> None:
        self.responses = responses
        self.error = error
        self.is_silent = is_silent
        self.is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[GetBarsResponse]:
        for each in self.responses:
            yield each
        if self.is_silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    def cancel(self) -> bool:
        self.is_cancelled = True
        return True


class Server:
    """Answers each GetBars by the next answer; one that is a KtrdrError ends the stream as the wire does."""

    def __init__(self, *answers: Callable[[GetBarsRequest], list[Any]]) -> None:
        self.answers = list(answers)
        self.requests: list[GetBarsRequest] = []
        self.calls: list[Call] = []

    def __call__(self, request: GetBarsRequest) -> Any:
        self.requests.append(GetBarsRequest.FromString(request.SerializeToString()))
        told = self.answers.pop(0)(request)
        is_silent = bool(told) and told[-1] is None
        error = told[-1] if told and isinstance(told[-1], BaseException) else None
        call = Call([each for each in told if isinstance(each, GetBarsResponse)], error, is_silent)
        self.calls.append(call)
        return call


def wire(problem: KtrdrError) -> grpc.aio.AioRpcError:
    status = to_status(problem)
    return grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), status.details
    )


def lost() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "Socket closed")


def sound(request: GetBarsRequest) -> list[Any]:
    return stream(offset=request.read_offset)


def part_of(size: int, *rest: Any) -> Callable[[GetBarsRequest], list[Any]]:
    """Answer the first `size` bytes that are asked for, then what is given."""
    return lambda request: [*stream(offset=request.read_offset, piece=size)[:1], *rest]


async def fetch(server: Server, path: Path, **options: Any) -> FetchedBars:
    request = GetBarsRequest(symbol="EURUSD", timeframe="1h", sha256=options.pop("sha256", b""))
    limits: dict[str, Any] = {"max_size_bytes": 1 << 20, "delays_s": NO_PAUSES}
    return await fetch_bars(server, request, path, **limits | options)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_file_is_there_whole_with_what_is_in_it(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    server = Server(sound)
    found = await fetch(server, tmp_path / "bars.parquet", on_bytes=lambda *sizes: told.append(sizes))
    assert (tmp_path / "bars.parquet").read_bytes() == CONTENT
    assert (found.size_bytes, found.sha256, found.num_fetched_bytes) == (10_240, SHA256.hex(), 10_240)
    assert found.series.num_bars == 3
    assert told == [(0, 0), *((size, 10_240) for size in [*range(1000, 10_001, 1000), 10_240])]
    assert names(tmp_path) == ["bars.parquet"]
    assert server.calls[0].is_cancelled


async def test_broken_stream_goes_on_where_it_was_with_the_bytes_it_began_with(tmp_path: Path) -> None:
    server = Server(part_of(3000, lost()), part_of(500, lost()), sound)
    found = await fetch(server, tmp_path / "bars.parquet")
    assert [request.read_offset for request in server.requests] == [0, 3000, 3500]
    assert [request.sha256 for request in server.requests] == [b"", SHA256, SHA256]
    assert found.num_fetched_bytes == len(CONTENT)
    assert (tmp_path / "bars.parquet").read_bytes() == CONTENT


async def test_pauses_begin_anew_after_a_try_that_brought_bytes(tmp_path: Path) -> None:
    server = Server(*[part_of(1000, lost())] * 9, sound)
    await fetch(server, tmp_path / "bars.parquet", delays_s=(0.0,))
    assert len(server.requests) == 10


async def test_source_that_cannot_be_reached_is_given_up_after_the_last_pause(tmp_path: Path) -> None:
    server = Server(*[lambda request: [lost()]] * 9)
    with pytest.raises(UnreachableError):
        await fetch(server, tmp_path / "bars.parquet")
    assert len(server.requests) == 4
    assert names(tmp_path) == []


async def test_without_pauses_nothing_is_asked_again(tmp_path: Path) -> None:
    server = Server(part_of(1000, lost()), sound)
    with pytest.raises(UnreachableError):
        await fetch(server, tmp_path / "bars.parquet", delays_s=(), sha256=SHA256)
    assert (tmp_path / "bars.parquet.part").read_bytes() == CONTENT[:1000]


async def test_source_of_which_nothing_came_leaves_nothing(tmp_path: Path) -> None:
    server = Server(*[lambda request: [lost()]] * 9)
    with pytest.raises(UnreachableError):
        await fetch(server, tmp_path / "bars.parquet", sha256=SHA256)
    assert names(tmp_path) == []


async def test_later_call_goes_on_with_what_an_earlier_one_left(tmp_path: Path) -> None:
    (tmp_path / "bars.parquet.part").write_bytes(CONTENT[:7777])
    server = Server(sound)
    told: list[tuple[int, int]] = []
    found = await fetch(server, tmp_path / "bars.parquet", sha256=SHA256, on_bytes=lambda *each: told.append(each))
    assert server.requests[0].read_offset == 7777
    assert found.num_fetched_bytes == len(CONTENT) - 7777
    assert told[0] == (7777, 0)
    assert (tmp_path / "bars.parquet").read_bytes() == CONTENT


async def test_whole_part_is_only_verified(tmp_path: Path) -> None:
    (tmp_path / "bars.parquet.part").write_bytes(CONTENT)
    found = await fetch(Server(sound), tmp_path / "bars.parquet", sha256=SHA256)
    assert found.num_fetched_bytes == 0
    assert names(tmp_path) == ["bars.parquet"]


@pytest.mark.parametrize("left", [b"x" * 500, b"y" * len(CONTENT), b"z" * (2 << 20)])
async def test_what_is_left_of_other_bytes_is_fetched_anew(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "bars.parquet.part").write_bytes(left)
    await fetch(Server(sound, sound), tmp_path / "bars.parquet", sha256=SHA256)
    assert (tmp_path / "bars.parquet").read_bytes() == CONTENT


async def test_offset_that_the_other_side_refuses_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "bars.parquet.part").write_bytes(b"z" * 20_000)
    refusing = InvalidInputError("read_offset must be 0 to 10240, was 20000", field="read_offset")
    server = Server(lambda request: [wire(refusing)], sound)
    await fetch(server, tmp_path / "bars.parquet", sha256=SHA256)
    assert [request.read_offset for request in server.requests] == [20_000, 0]


async def test_without_a_digest_what_is_left_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "bars.parquet.part").write_bytes(CONTENT[:7777])
    server = Server(sound)
    await fetch(server, tmp_path / "bars.parquet")
    assert server.requests[0].read_offset == 0


@pytest.mark.parametrize(
    "broken",
    [
        response(1000, b"abc", crc32c=1),
        response(999, b"abc"),
        response(1001, b"abc"),
        response(1000, b"a" * 20_000),
        response(1000, bytes((1 << 20) + 1)),
    ],
    ids=["checksum", "overlapping", "gap", "more than announced", "too large"],
)
async def test_broken_message_is_fetched_again_from_where_all_was_sound(
    tmp_path: Path, broken: GetBarsResponse
) -> None:
    server = Server(part_of(1000, broken), sound)
    await fetch(server, tmp_path / "bars.parquet", max_size_bytes=4 << 20)
    assert server.requests[1].read_offset == 1000
    assert (tmp_path / "bars.parquet").read_bytes() == CONTENT


async def test_messages_that_stay_broken_are_given_up(tmp_path: Path) -> None:
    server = Server(*[lambda request: [*stream()[:1], response(0, b"abc", crc32c=1)]] * 9)
    with pytest.raises(CorruptDataError, match="the bars came broken"):
        await fetch(server, tmp_path / "bars.parquet")
    assert names(tmp_path) == []


def other_bytes(request: GetBarsRequest) -> list[Any]:
    """Answer bytes that are not those of the digest, each message sound in itself."""
    told = stream(bytes(len(CONTENT)), request.read_offset)
    told[0].sha256 = SHA256
    return told


async def test_whole_that_differs_from_its_digest_is_fetched_once_more(tmp_path: Path) -> None:
    server = Server(other_bytes, sound)
    await fetch(server, tmp_path / "bars.parquet")
    assert (tmp_path / "bars.parquet").read_bytes() == CONTENT
    server = Server(other_bytes, other_bytes)
    with pytest.raises(CorruptDataError, match="SHA-256 of the file must be"):
        await fetch(server, tmp_path / "other.parquet", sha256=SHA256)
    assert names(tmp_path) == ["bars.parquet"]


async def test_stream_that_ends_too_early_is_asked_again(tmp_path: Path) -> None:
    server = Server(part_of(1000), lambda request: [], sound)
    await fetch(server, tmp_path / "bars.parquet")
    assert [request.read_offset for request in server.requests] == [0, 1000, 1000]


async def test_silence_is_a_broken_stream(tmp_path: Path) -> None:
    server = Server(part_of(1000, None), sound)
    await fetch(server, tmp_path / "bars.parquet", idle_timeout_s=0.05)
    assert server.calls[0].is_cancelled
    with pytest.raises(UnavailableError, match=r"sent no bars for 0\.05 s"):
        await fetch(Server(part_of(10, None)), tmp_path / "other.parquet", idle_timeout_s=0.05, delays_s=())


async def test_changed_series_is_fetched_anew_unless_a_digest_was_asked_for(tmp_path: Path) -> None:
    changed = SeriesChangedError("the bars have changed")
    server = Server(part_of(1000, lost()), lambda request: [wire(changed)], sound)
    await fetch(server, tmp_path / "bars.parquet")
    assert [(request.read_offset, request.sha256) for request in server.requests] == [
        (0, b""),
        (1000, SHA256),
        (0, b""),
    ]
    with pytest.raises(SeriesChangedError):
        await fetch(Server(lambda request: [wire(changed)]), tmp_path / "other.parquet", sha256=SHA256)
    with pytest.raises(SeriesChangedError):
        await fetch(Server(*[lambda request: [wire(changed)]] * 3), tmp_path / "other.parquet")


async def test_other_side_that_sends_other_bytes_than_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeriesChangedError, match="the other side has"):
        await fetch(Server(sound), tmp_path / "bars.parquet", sha256=bytes(32))


async def test_what_the_other_side_refuses_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(SeriesNotFoundError):
        await fetch(Server(lambda request: [wire(SeriesNotFoundError("no bars"))]), tmp_path / "bars.parquet")
    assert names(tmp_path) == []


async def test_larger_file_than_wanted_is_refused_before_it_comes(tmp_path: Path) -> None:
    with pytest.raises(QuotaExceededError, match="may have 10239 bytes here, this one has 10240"):
        await fetch(Server(sound), tmp_path / "bars.parquet", max_size_bytes=10_239)


@pytest.mark.parametrize("fields", [{"sha256": b""}, {"total_size_bytes": 0}, {"total_size_bytes": -1}])
async def test_first_response_must_say_what_comes(tmp_path: Path, fields: dict[str, Any]) -> None:
    def answer(request: GetBarsRequest) -> list[Any]:
        told = stream()
        for name, value in fields.items():
            setattr(told[0], name, value)
        return told

    with pytest.raises(InvalidUploadError):
        await fetch(Server(answer), tmp_path / "bars.parquet")


async def test_cancelled_fetch_ends_its_call_and_keeps_what_can_be_gone_on_with(tmp_path: Path) -> None:
    server = Server(part_of(1000, None))
    told: list[int] = []
    fetching = asyncio.create_task(
        fetch(server, tmp_path / "bars.parquet", sha256=SHA256, on_bytes=lambda here, total: told.append(here))
    )
    await eventually(lambda: told[-1:] == [1000], what="the first bytes")
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert server.calls[0].is_cancelled
    assert (tmp_path / "bars.parquet.part").read_bytes() == CONTENT[:1000]


async def test_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot be written to {tmp_path / 'missing'}"):
        await fetch(Server(sound), tmp_path / "missing" / "bars.parquet")


@given(st.binary(min_size=1, max_size=300), st.integers(1, 50), st.lists(st.integers(0, 300), max_size=4))
def test_any_cut_of_the_streams_gives_the_whole(content: bytes, piece: int, cuts: list[int]) -> None:
    """Whatever part of each stream arrives, the file is the content."""
    import tempfile

    def cut(size: int) -> Callable[[GetBarsRequest], list[Any]]:
        return lambda request: [*stream(content, request.read_offset, piece=piece)[:size], lost()]

    async def run(directory: str) -> bytes:
        server = Server(*map(cut, cuts), lambda request: stream(content, request.read_offset, piece=piece))
        path = Path(directory) / "bars.parquet"
        await fetch(server, path, delays_s=(0.0,) * 5)
        return path.read_bytes()

    with tempfile.TemporaryDirectory() as directory:
        assert asyncio.run(run(directory)) == content


async def test_sent_file_arrives_from_any_offset(tmp_path: Path) -> None:
    content = CONTENT * 300  # some 3 MB
    (tmp_path / "sent").write_bytes(content)
    for offset in (0, 1, 1 << 20, len(content) - 1, len(content)):
        sent: list[GetBarsResponse] = []

        async def write(message: GetBarsResponse, sent: list[GetBarsResponse] = sent) -> None:
            sent.append(GetBarsResponse.FromString(message.SerializeToString()))

        first = GetBarsResponse(offset=offset, total_size_bytes=len(content), sha256=b"s")
        with (tmp_path / "sent").open("rb") as file:
            await send_file(write, file, first)
        assert b"".join(message.data for message in sent) == content[offset:]
        assert [message.total_size_bytes for message in sent] == [len(content)] + [0] * (len(sent) - 1)
        assert all(message.crc32c == google_crc32c.value(message.data) for message in sent)


async def test_taker_that_takes_nothing_is_left(tmp_path: Path) -> None:
    async def write(message: GetBarsResponse) -> None:
        await asyncio.Event().wait()

    (tmp_path / "sent").write_bytes(CONTENT)
    with (tmp_path / "sent").open("rb") as file, pytest.raises(UnavailableError, match="were not taken"):
        await send_file(write, file, GetBarsResponse(total_size_bytes=len(CONTENT)), idle_timeout_s=0.05)


def test_empty_file_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidUploadError, match="is empty"):
        list(import_messages(tmp_path / "empty", symbol="A", timeframe="1h", mode=ImportMode.IMPORT_MODE_CREATE))


def test_file_is_used_only_once_it_is_begun(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="comes first"):
        ArrivingFile(tmp_path / "x", max_size_bytes=10).write(response(0, b"a"))
