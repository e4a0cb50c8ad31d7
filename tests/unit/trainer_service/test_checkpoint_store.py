"""Checkpoints that were put here stay while a session needs them, within bounds, and no longer."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ktrdr.models.v1 import codec_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from ktrdr_core.errors import CheckpointNotFoundError, InvalidUploadError, StorageError
from ktrdr_core.rpc.chunks import encode_chunk
from tests.kit.eventually import eventually
from trainer_service.checkpoint_store import CheckpointStore
from trainer_service.journal import ResumePoint


def ref_of(content: bytes) -> CheckpointRef:
    return CheckpointRef(epoch=3, size_bytes=len(content), sha256=hashlib.sha256(content).digest())


def point_of(content: bytes) -> ResumePoint:
    return ResumePoint(epoch=3, sha256=hashlib.sha256(content).hexdigest())


async def chunks_of(content: bytes) -> AsyncIterator[UploadChunk]:
    yield encode_chunk(0, content, codec_pb2.CODEC_NONE)


async def put(store: CheckpointStore, content: bytes) -> None:
    await store.put(ref_of(content), chunks_of(content))


def kept(directory: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in directory.iterdir())


def age(directory: Path, content: bytes, by_s: float) -> None:
    path = directory / f"{point_of(content).sha256}.safetensors"
    stat = path.stat()
    os.utime(path, (stat.st_atime - by_s, stat.st_mtime - by_s))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def store(directory: Path) -> CheckpointStore:
    store = CheckpointStore(directory, max_num=3, max_checkpoint_bytes=50, max_total_bytes=100)
    store.prepare()
    return store


async def test_what_was_put_is_found_and_removed_once_it_was_used(store: CheckpointStore, directory: Path) -> None:
    await put(store, b"one")

    path = await store.use(point_of(b"one"))

    assert (path.suffix, kept(directory)) == (".safetensors", [b"one"])
    await store.end_use(point_of(b"one"), is_removed=True)
    assert kept(directory) == []
    with pytest.raises(CheckpointNotFoundError, match="PutCheckpoint"):
        await store.use(point_of(b"one"))


async def test_a_session_that_did_not_begin_leaves_it(store: CheckpointStore, directory: Path) -> None:
    await put(store, b"one")
    await store.use(point_of(b"one"))

    await store.end_use(point_of(b"one"), is_removed=False)

    assert kept(directory) == [b"one"]


async def test_it_stays_until_the_last_session_that_uses_it_has_ended(store: CheckpointStore, directory: Path) -> None:
    await put(store, b"one")
    for _ in range(2):
        await store.use(point_of(b"one"))

    await store.end_use(point_of(b"one"), is_removed=True)
    assert kept(directory) == [b"one"]
    await store.end_use(point_of(b"one"), is_removed=True)
    assert kept(directory) == []


async def test_a_use_by_the_process_before_this_one_is_ended_too(store: CheckpointStore, directory: Path) -> None:
    await put(store, b"one")

    await store.end_use(point_of(b"one"), is_removed=True)

    assert kept(directory) == []


async def test_putting_it_again_changes_nothing(store: CheckpointStore, directory: Path) -> None:
    await put(store, b"one")
    await put(store, b"one")

    assert kept(directory) == [b"one"]


async def test_the_oldest_that_nobody_uses_makes_room(store: CheckpointStore, directory: Path) -> None:
    for number, content in enumerate([b"1", b"2", b"3"]):
        await put(store, content)
        age(directory, content, by_s=100 - number)
    await store.use(point_of(b"1"))

    await put(store, b"4")

    assert kept(directory) == [b"1", b"3", b"4"]


async def test_size_is_bounded_as_well(store: CheckpointStore, directory: Path) -> None:
    for content in (b"a" * 50, b"b" * 50, b"c" * 20):
        await put(store, content)
        age(directory, content, by_s=10)

    assert sum(map(len, kept(directory))) <= 100
    with pytest.raises(InvalidUploadError, match="1 to 50"):
        await put(store, b"d" * 51)


async def test_when_all_are_in_use_another_is_refused_and_later_taken(store: CheckpointStore, directory: Path) -> None:
    for content in (b"1", b"2", b"3"):
        await put(store, content)
        await store.use(point_of(content))

    with pytest.raises(StorageError, match="in use"):
        await put(store, b"4")
    assert kept(directory) == [b"1", b"2", b"3"]

    await store.end_use(point_of(b"1"), is_removed=True)
    await put(store, b"4")
    assert kept(directory) == [b"2", b"3", b"4"]


async def test_those_on_their_way_count(store: CheckpointStore) -> None:
    gate = asyncio.Event()
    content = b"a" * 50

    async def slow() -> AsyncIterator[UploadChunk]:
        await gate.wait()
        yield encode_chunk(0, content, codec_pb2.CODEC_NONE)

    puts = [asyncio.create_task(store.put(ref_of(content), slow())) for _ in range(2)]
    await eventually(lambda: store._num_incoming == 2)

    with pytest.raises(StorageError):
        await put(store, b"b")
    gate.set()
    await asyncio.gather(*puts)
    await put(store, b"b")


async def test_what_nobody_used_for_long_is_swept(store: CheckpointStore, directory: Path) -> None:
    for content in (b"old", b"used", b"young"):
        await put(store, content)
    for content in (b"old", b"used"):
        age(directory, content, by_s=1_000)
    await store.use(point_of(b"used"))

    await store.sweep(keep_s=500)

    assert kept(directory) == [b"used", b"young"]


async def test_a_start_removes_what_a_killed_process_was_receiving(store: CheckpointStore, directory: Path) -> None:
    await put(store, b"whole")

    async def part() -> AsyncIterator[UploadChunk]:
        yield encode_chunk(0, b"half", codec_pb2.CODEC_NONE)
        await asyncio.Event().wait()

    putting = asyncio.create_task(store.put(ref_of(b"half of it"), part()))
    await eventually(lambda: len(kept(directory)) == 2)

    CheckpointStore(directory).prepare()

    assert kept(directory) == [b"whole"]
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
