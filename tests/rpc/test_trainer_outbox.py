"""An artifact reaches the model store whatever breaks on the way, and what no retry changes ends it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ktrdr.models.v1 import model_service_pb2
from ktrdr.models.v1.codec_pb2 import CODEC_GZIP, CODEC_NONE, CODEC_ZSTD

from ktrdr_core.errors import (
    IllegalStateError,
    InvalidUploadError,
    KtrdrError,
    TrainingNotFoundError,
    UnavailableError,
    WriteConflictError,
)
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, artifact_digest
from ktrdr_core.storage.artifact_sums import ArtifactSums, sums_path, write_sums
from tests.kit.artifacts import make_artifact
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.grpc_server import serving
from tests.kit.model_sink import ModelSink
from trainer_service.outbox import Upload, UploadOptions

AT_ONCE = (0.0, 0.0, 0.0, 0.01)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    directory = tmp_path / "artifact"
    write_artifact(directory, make_artifact())
    # Weights of three and a half chunks that do not compress.
    (directory / "model.safetensors").write_bytes(os.urandom(int(3.5 * CHUNK_SIZE_BYTES)))
    (directory / "model.pt").write_bytes(b"derived, stays here")
    return directory


class Warnings:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    async def __call__(self, reason: str, message: str) -> None:
        self.seen.append((reason, message))


def upload_of(
    artifact: Path,
    address: str,
    warnings: Warnings | None = None,
    *,
    idle_timeout_s: float = 30.0,
    compression: Compression = Compression.AUTO,
    digest: str = "",
) -> Upload:
    return Upload(
        artifact,
        training_id="t1",
        attempt=2,
        target=lambda: address,
        warn=warnings or Warnings(),
        options=UploadOptions(retry_delays_s=AT_ONCE, idle_timeout_s=idle_timeout_s, compression=compression),
        digest=digest,
    )


def whole(artifact: Path) -> bytes:
    return b"".join((artifact / name).read_bytes() for name in TRAVELLING_FILES)


async def test_the_travelling_files_arrive_byte_for_byte(artifact: Path) -> None:
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        stored = await upload_of(artifact, address).run()

    (header,) = sink.headers
    assert stored.model.name == "small/EURUSD_1h_v1"
    assert (header.training_id, header.attempt, header.write_offset) == ("t1", 2, 0)
    assert [file.name for file in header.files] == list(TRAVELLING_FILES)
    assert header.sha256 == hashlib.sha256(whole(artifact)).digest()
    assert sink.published == {header.sha256: whole(artifact)}


async def test_a_broken_stream_goes_on_where_the_other_side_ends(artifact: Path) -> None:
    sink = ModelSink()
    sink.break_after_chunks = 1
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address).run()

    offsets = [header.write_offset for header in sink.headers]
    assert offsets == [0, CHUNK_SIZE_BYTES, 2 * CHUNK_SIZE_BYTES, 3 * CHUNK_SIZE_BYTES]
    assert list(sink.published.values()) == [whole(artifact)]


async def test_an_answer_that_was_lost_is_asked_for_again_and_nothing_is_sent_twice(artifact: Path) -> None:
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address).run()
        stored = await upload_of(artifact, address).run()

    assert (stored.model.version, stored.is_duplicate) == (1, True)
    assert sink.headers[1].write_offset == len(whole(artifact))


async def test_the_third_failure_in_a_row_warns_once(artifact: Path) -> None:
    sink = ModelSink()
    sink.refusals_left, sink.error = 6, UnavailableError("the disk of the backend is full")
    warnings = Warnings()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address, warnings).run()

    ((reason, message),) = warnings.seen
    assert reason == "UPLOAD_RETRY"
    assert "the disk of the backend is full" in message
    assert len(sink.headers) == 7


async def test_two_failures_do_not_warn(artifact: Path) -> None:
    sink = ModelSink()
    sink.refusals_left = 2
    warnings = Warnings()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address, warnings).run()

    assert warnings.seen == []


async def test_a_backend_that_is_away_is_waited_for(artifact: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    warnings = Warnings()
    running = asyncio.create_task(upload_of(artifact, address, warnings).run())
    await eventually(lambda: warnings.seen)

    sink = ModelSink()
    async with serving(sink.add_to, address=address):
        await asyncio.wait_for(running, PATIENCE_S)

    assert list(sink.published.values()) == [whole(artifact)]


@pytest.mark.parametrize(
    "error",
    [
        InvalidUploadError("total_size_bytes must be above 0"),
        TrainingNotFoundError("no training t1"),
        IllegalStateError("training t1 is CANCELLED"),
        WriteConflictError("another stream writes this upload"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_refusal_that_no_retry_changes_ends_the_upload(artifact: Path, error: KtrdrError) -> None:
    sink = ModelSink()
    sink.refusals_left, sink.error = 100, error
    async with serving(sink.add_to) as address:
        with pytest.raises(type(error), match=error.message):
            await upload_of(artifact, address).run()

    assert len(sink.headers) == 1


async def test_our_own_stream_that_still_holds_the_upload_is_waited_for(artifact: Path) -> None:
    class Holding(ModelSink):
        async def UploadModel(  # noqa: N802
            self, request_iterator: AsyncIterator[model_service_pb2.UploadModelRequest], context: Any
        ) -> model_service_pb2.UploadModelResponse:
            self.break_after_chunks = 1 if not self.headers else None
            if 1 <= len(self.headers) <= 3:
                self.refusals_left, self.error = 1, WriteConflictError("another stream writes this upload")
            return await super().UploadModel(request_iterator, context)

    sink = Holding()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address).run()

    assert len(sink.headers) == 5
    assert list(sink.published.values()) == [whole(artifact)]


async def test_a_backend_that_hangs_is_given_up_and_tried_again(artifact: Path) -> None:
    (artifact / "model.safetensors").write_bytes(os.urandom(12 * CHUNK_SIZE_BYTES))  # more than the windows hold

    class Hanging(ModelSink):
        async def UploadModel(  # noqa: N802
            self, request_iterator: AsyncIterator[model_service_pb2.UploadModelRequest], context: Any
        ) -> model_service_pb2.UploadModelResponse:
            if not self.headers:
                self.headers.append((await anext(request_iterator)).header)
                await asyncio.Event().wait()
            return await super().UploadModel(request_iterator, context)

    sink = Hanging()
    async with serving(sink.add_to) as address:
        await asyncio.wait_for(upload_of(artifact, address, idle_timeout_s=1.0).run(), PATIENCE_S)

    assert list(sink.published.values()) == [whole(artifact)]


async def test_an_artifact_that_cannot_be_read_is_a_refusal_that_names_it(artifact: Path) -> None:
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        upload = upload_of(artifact.parent / "nowhere", address)
        with pytest.raises(KtrdrError, match="nowhere"):
            await upload.run()


async def test_a_cancelled_upload_knows_whether_it_was_stored(artifact: Path) -> None:
    sink = ModelSink()
    sink.hold, sink.hold_answer = asyncio.Event(), asyncio.Event()
    async with serving(sink.add_to) as address:
        early = upload_of(artifact, address)
        running = asyncio.create_task(early.run())
        await eventually(lambda: any(len(part) == len(whole(artifact)) for part in sink.parts.values()))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not await early.was_stored()

        sink.hold.set()
        late = upload_of(artifact, address)
        running = asyncio.create_task(late.run())
        await eventually(lambda: sink.published)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await late.was_stored()


async def test_files_the_store_has_are_not_sent(artifact: Path) -> None:
    sink = ModelSink()
    sink.stored = {"model.safetensors": (artifact / "model.safetensors").read_bytes(), "config.json": b"another"}
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address).run()

    (header,) = sink.headers
    assert list(header.reused_files) == ["model.safetensors"]
    assert list(sink.published.values()) == [whole(artifact)]


async def test_a_broken_stream_goes_on_between_files_that_are_not_sent(artifact: Path) -> None:
    sink = ModelSink()
    sink.stored = {name: (artifact / name).read_bytes() for name in ("config.json", "features.json")}
    sink.break_after_chunks = 1
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address).run()

    assert len(sink.headers) == 6  # four chunks of weights, one of metrics, one of metadata
    assert list(sink.published.values()) == [whole(artifact)]


async def test_a_file_that_leaves_the_store_meanwhile_is_sent(artifact: Path) -> None:
    sink = ModelSink()
    sink.gone = {"model.safetensors"}
    sink.break_after_chunks = 3
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address).run()

    assert [list(header.reused_files) for header in sink.headers] == [["model.safetensors"], [], []]
    assert list(sink.published.values()) == [whole(artifact)]


async def test_what_is_kept_aside_is_told(artifact: Path) -> None:
    sink = ModelSink()
    sink.keeps_aside = True
    async with serving(sink.add_to) as address:
        assert (await upload_of(artifact, address).run()).is_kept_aside


@pytest.mark.parametrize(
    ("compression", "codec"), [(Compression.GZIP, CODEC_GZIP), (Compression.ZSTD, CODEC_ZSTD), ("none", CODEC_NONE)]
)
async def test_a_compression_that_is_forced_is_that_of_all_chunks(
    artifact: Path, compression: Compression, codec: int
) -> None:
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address, compression=Compression(compression)).run()

    assert sink.codecs == {codec}
    assert list(sink.published.values()) == [whole(artifact)]


async def test_a_network_that_lets_some_bytes_through_is_no_reason_to_wait_longer_or_to_warn(artifact: Path) -> None:
    (artifact / "model.safetensors").write_bytes(os.urandom(12 * CHUNK_SIZE_BYTES))
    sink = ModelSink()
    sink.break_after_chunks, sink.error = 1, UnavailableError("cut")
    warnings = Warnings()
    async with serving(sink.add_to) as address:
        upload = Upload(
            artifact,
            training_id="t1",
            attempt=2,
            target=lambda: address,
            warn=warnings,
            options=UploadOptions(retry_delays_s=(0.0, 0.0, 3_600.0)),
        )
        await asyncio.wait_for(upload.run(), PATIENCE_S)

    assert len(sink.headers) == 13
    assert warnings.seen == []


def change_a_byte(artifact: Path) -> None:
    with (artifact / "model.safetensors").open("r+b") as file:
        file.seek(CHUNK_SIZE_BYTES)
        (byte,) = file.read(1)
        file.seek(CHUNK_SIZE_BYTES)
        file.write(bytes([byte ^ 1]))


async def test_artifact_that_its_disk_has_changed_since_it_was_made_is_no_result(artifact: Path) -> None:
    write_sums(artifact, ArtifactSums.of(artifact))
    digest = artifact_digest(artifact)
    change_a_byte(artifact)
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        with pytest.raises(IllegalStateError, match="is damaged: its digest must be") as refused:
            await upload_of(artifact, address, digest=digest).run()
        assert digest in refused.value.message
        assert artifact_digest(artifact) in refused.value.message
        assert not sums_path(artifact).exists()  # from now on it is read before anything is sent
        with pytest.raises(IllegalStateError, match="is damaged"):
            await upload_of(artifact, address, digest=digest).run()

    assert len(sink.headers) == 1
    assert sink.published == {}


async def test_artifact_with_its_sums_beside_it_is_read_once(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = artifact_digest(artifact)
    write_sums(artifact, ArtifactSums.of(artifact))
    monkeypatch.setattr(ArtifactSums, "of", None)
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address, digest=digest).run()

    assert list(sink.published.values()) == [whole(artifact)]


async def test_damaged_sums_of_a_sound_artifact_are_taken_anew(artifact: Path) -> None:
    digest = artifact_digest(artifact)
    sums = ArtifactSums.of(artifact)
    write_sums(artifact, replace(sums, files=(replace(sums.files[0], sha256="0" * 64), *sums.files[1:])))
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address, digest=digest).run()

    assert list(sink.published.values()) == [whole(artifact)]


async def test_sums_that_are_wrong_cost_one_try(artifact: Path) -> None:
    digest = artifact_digest(artifact)
    sums = ArtifactSums.of(artifact)
    write_sums(artifact, ArtifactSums(sums.files, "0" * 64))
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        await upload_of(artifact, address, digest=digest).run()

    assert len(sink.headers) == 2
    assert list(sink.published.values()) == [whole(artifact)]
