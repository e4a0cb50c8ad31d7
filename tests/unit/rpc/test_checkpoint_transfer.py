"""A checkpoint arrives whole or not at all, whatever its sender, the network or the disk does."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import resource
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from ktrdr.models.v1 import codec_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from ktrdr_core.errors import CorruptDataError, InvalidUploadError, KtrdrError, StorageError, UnavailableError
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.rpc.checkpoint_transfer import checkpoint_ref, chunks_of, receive_checkpoint
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, encode_chunk
from tests.kit.eventually import eventually

LIMIT = 64 << 20


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def contents_of(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.iterdir()]


def ref_of(content: bytes, **fields: int | bytes) -> CheckpointRef:
    ref = CheckpointRef(epoch=3, size_bytes=len(content), sha256=hashlib.sha256(content).digest())
    for name, value in fields.items():
        setattr(ref, name, value)
    return ref


def cut(content: bytes, size: int = CHUNK_SIZE_BYTES) -> list[UploadChunk]:
    return [
        encode_chunk(offset, content[offset : offset + size], codec_pb2.CODEC_NONE)
        for offset in range(0, len(content), size)
    ]


async def stream(chunks: Sequence[UploadChunk]) -> AsyncIterator[UploadChunk]:
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("size", [1, CHUNK_SIZE_BYTES, 2 * CHUNK_SIZE_BYTES + 17])
async def test_what_is_given_away_arrives_byte_for_byte(tmp_path: Path, size: int) -> None:
    content = os.urandom(size // 2) + bytes(size - size // 2)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)

    await receive_checkpoint(ref_of(content), chunks_of(source), target, max_size_bytes=LIMIT)

    assert target.read_bytes() == content
    assert names_in(tmp_path) == ["source", "target"]


async def test_the_codec_is_what_suits_each_chunk(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(CHUNK_SIZE_BYTES) + bytes(CHUNK_SIZE_BYTES))

    chunks = [chunk async for chunk in chunks_of(source)]

    assert [chunk.codec for chunk in chunks] == [codec_pb2.CODEC_NONE, codec_pb2.CODEC_ZSTD]
    assert [chunk.offset for chunk in chunks] == [0, CHUNK_SIZE_BYTES]


async def test_a_file_that_is_removed_meanwhile_is_given_as_it_was(tmp_path: Path) -> None:
    content = os.urandom(3 * CHUNK_SIZE_BYTES)
    source = tmp_path / "source"
    source.write_bytes(content)
    chunks = chunks_of(source)
    got = [(await anext(chunks)).data]
    source.unlink()

    got += [chunk.data async for chunk in chunks]

    assert b"".join(got) == content


async def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await anext(chunks_of(tmp_path / "nowhere"))


def test_a_checkpoint_is_named_by_its_content(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    ref = checkpoint_ref(SessionCheckpoint(path=tmp_path, epoch=4, size_bytes=1, sha256=sha256))

    assert (ref.epoch, ref.size_bytes, ref.sha256.hex()) == (4, 1, sha256)


CONTENT = os.urandom(5_000)


def flipped(chunks: list[UploadChunk]) -> list[UploadChunk]:
    chunks[1].data = bytes(len(chunks[1].data))
    return chunks


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda chunks: chunks[:-1], InvalidUploadError),
        (lambda chunks: [], InvalidUploadError),
        (lambda chunks: [*chunks, encode_chunk(5_000, b"more", codec_pb2.CODEC_NONE)], InvalidUploadError),
        (lambda chunks: [chunks[1], chunks[0], *chunks[2:]], InvalidUploadError),
        (lambda chunks: [chunks[0], *chunks], InvalidUploadError),
        (flipped, CorruptDataError),
        (lambda chunks: cut(bytes(5_000), 1_000), CorruptDataError),
    ],
    ids=["fewer", "none", "more", "swapped", "twice", "a flipped chunk", "other content"],
)
async def test_what_is_not_what_was_announced_is_refused_and_leaves_nothing(
    tmp_path: Path, spoil: Callable[[list[UploadChunk]], list[UploadChunk]], error: type[KtrdrError]
) -> None:
    with pytest.raises(error):
        await receive_checkpoint(
            ref_of(CONTENT), stream(spoil(cut(CONTENT, 1_000))), tmp_path / "target", max_size_bytes=LIMIT
        )

    assert names_in(tmp_path) == []


async def test_a_stream_without_end_is_left_at_the_announced_size(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[UploadChunk]:
        for offset in itertools.count(0, 1_000):
            assert offset <= 5_000, "more was read than can be right"
            yield encode_chunk(offset, bytes(1_000), codec_pb2.CODEC_NONE)

    with pytest.raises(InvalidUploadError, match="more than"):
        await receive_checkpoint(ref_of(CONTENT), endless(), tmp_path / "target", max_size_bytes=LIMIT)

    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "ref", [ref_of(CONTENT, sha256=b"short"), ref_of(CONTENT, size_bytes=0), ref_of(CONTENT, size_bytes=-1)]
)
async def test_an_incomplete_announcement_is_refused(tmp_path: Path, ref: CheckpointRef) -> None:
    with pytest.raises(InvalidUploadError):
        await receive_checkpoint(ref, stream(cut(CONTENT)), tmp_path / "target", max_size_bytes=LIMIT)


async def test_the_limit_of_size_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    chunks = stream(cut(CONTENT))
    with pytest.raises(InvalidUploadError, match="1 to 4999"):
        await receive_checkpoint(ref_of(CONTENT), chunks, tmp_path / "target", max_size_bytes=4_999)

    assert (await anext(chunks)).offset == 0


async def test_a_file_that_is_there_stays_until_a_whole_one_takes_its_place(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(InvalidUploadError):
        await receive_checkpoint(ref_of(CONTENT), stream([]), target, max_size_bytes=LIMIT)
    assert target.read_bytes() == b"old"

    await receive_checkpoint(ref_of(CONTENT), stream(cut(CONTENT)), target, max_size_bytes=LIMIT)

    assert target.read_bytes() == CONTENT


async def test_a_sender_that_stalls_is_given_up(tmp_path: Path) -> None:
    async def stalls() -> AsyncIterator[UploadChunk]:
        yield cut(CONTENT, 1_000)[0]
        await asyncio.Event().wait()

    with pytest.raises(UnavailableError, match="nothing"):
        await receive_checkpoint(
            ref_of(CONTENT), stalls(), tmp_path / "target", max_size_bytes=LIMIT, idle_timeout_s=0.05
        )

    assert names_in(tmp_path) == []


async def test_a_receiver_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def stalls() -> AsyncIterator[UploadChunk]:
        yield cut(CONTENT, 1_000)[0]
        await asyncio.Event().wait()

    task = asyncio.create_task(receive_checkpoint(ref_of(CONTENT), stalls(), tmp_path / "target", max_size_bytes=LIMIT))
    await eventually(lambda: names_in(tmp_path))

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("delay_turns", range(0, 30, 3))
async def test_a_cancel_at_any_moment_leaves_a_whole_checkpoint_or_none(tmp_path: Path, delay_turns: int) -> None:
    target = tmp_path / "target"
    task = asyncio.create_task(
        receive_checkpoint(ref_of(CONTENT), stream(cut(CONTENT, 500)), target, max_size_bytes=LIMIT)
    )
    for _ in range(delay_turns):
        await asyncio.sleep(0)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert contents_of(tmp_path) in ([], [CONTENT])


async def test_a_disk_that_takes_no_more_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK_SIZE_BYTES)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_SIZE_BYTES + 10, hard))
    try:
        with pytest.raises(StorageError, match="free space"):
            await receive_checkpoint(ref_of(content), stream(cut(content)), tmp_path / "target", max_size_bytes=LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert names_in(tmp_path) == []
