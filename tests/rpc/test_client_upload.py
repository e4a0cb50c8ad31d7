"""The client's upload goes on after broken streams, tells how far it is, and gives up when nothing gets through."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ktrdr_client.async_client import AsyncClient
from ktrdr_client.model_upload import upload_directory

from ktrdr_core.errors import UnavailableError, WriteConflictError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.storage.artifact import write_artifact
from tests.kit.artifacts import make_artifact
from tests.kit.grpc_server import serving
from tests.kit.model_sink import ModelSink


class Progress:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, sent_bytes: int, total_bytes: int) -> None:
        self.seen.append((sent_bytes, total_bytes))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "artifact", make_artifact())
    (tmp_path / "artifact" / "model.safetensors").write_bytes(os.urandom(9 * CHUNK_SIZE_BYTES + 7))
    return tmp_path / "artifact"


async def upload(address: str, directory: Path, progress: Progress | None = None) -> str:
    model = await upload_directory(
        address,
        directory,
        training_id="",
        attempt=0,
        compression=Compression.AUTO,
        progress=progress or Progress(),
        security=None,
        delays_s=(0.0, 0.0, 0.0, 0.0),
    )
    return model.name


async def test_progress_ends_with_all_bytes_and_begins_anew_where_the_other_side_ends(directory: Path) -> None:
    sink = ModelSink()
    sink.break_after_chunks = 4
    progress = Progress()
    async with serving(sink.add_to) as address:
        await upload(address, directory, progress)
    (total,) = {total for _, total in progress.seen}
    assert progress.seen[-1] == (total, total)
    assert {header.write_offset for header in sink.headers} <= {sent for sent, _ in progress.seen}


async def test_more_breaks_than_tries_are_no_reason_to_give_up_while_bytes_get_through(directory: Path) -> None:
    sink = ModelSink()
    sink.break_after_chunks = 1
    async with serving(sink.add_to) as address:
        assert await upload(address, directory) == "small/EURUSD_1h_v1"
    assert len(sink.headers) == 10


async def test_five_tries_that_bring_nothing_are_enough(directory: Path) -> None:
    sink = ModelSink()
    sink.refusals_left, sink.error = 100, UnavailableError("no room")
    async with serving(sink.add_to) as address:
        with pytest.raises(UnavailableError, match="no room"):
            await upload(address, directory)
    assert len(sink.headers) == 5


async def test_another_writer_is_told_of_at_once(directory: Path) -> None:
    sink = ModelSink()
    sink.refusals_left, sink.error = 100, WriteConflictError("another stream writes this upload")
    async with serving(sink.add_to) as address:
        with pytest.raises(WriteConflictError):
            await upload(address, directory)
    assert len(sink.headers) == 1


async def test_files_that_are_there_are_not_sent_and_count_as_sent(directory: Path) -> None:
    sink = ModelSink()
    sink.stored = {"model.safetensors": (directory / "model.safetensors").read_bytes()}
    progress = Progress()
    async with serving(sink.add_to) as address, AsyncClient(address) as client:
        model = await client.upload_model(directory, progress=progress)
    assert model.version == 1
    assert list(sink.headers[0].reused_files) == ["model.safetensors"]
    assert progress.seen[-1][0] == progress.seen[-1][1] > 9 * CHUNK_SIZE_BYTES
