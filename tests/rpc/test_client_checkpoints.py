"""Checkpoints by the trainer's client: fetched whole or not at all, put there, gone on from."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1 import checkpoint_pb2, session_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from ktrdr.training.v1 import training_state_pb2
from ktrdr_client import AsyncTrainerClient, TrainerClient, TrainingSpec
from ktrdr_client.types import Checkpoint

from ktrdr_core.errors import CheckpointNotFoundError, CorruptDataError, InvalidUploadError, StorageError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk
from ktrdr_core.rpc.codec_choice import CodecChooser
from tests.kit.grpc_server import serving

CONTENT = bytes(range(256)) * 9_000  # 2.3 MB: three chunks
SHA256 = hashlib.sha256(CONTENT)


@dataclass
class FakeTrainer:
    """Gives the content it has, and takes any."""

    sha256: bytes = SHA256.digest()
    is_cut: bool = False
    names_it: bool = True
    put: list[trainer_service_pb2.PutCheckpointRequest] = field(default_factory=list)
    refusal: StorageError | None = None
    requests: list[trainer_service_pb2.TrainRequest] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        if not name[:1].isupper():
            raise AttributeError(name)
        return None

    async def GetCheckpoint(
        self, request: trainer_service_pb2.GetCheckpointRequest, context: Any
    ) -> AsyncIterator[trainer_service_pb2.GetCheckpointResponse]:
        if request.session_id != "s1":
            raise CheckpointNotFoundError(f"session {request.session_id} has no checkpoint")
        if self.names_it:
            ref = checkpoint_pb2.CheckpointRef(epoch=40, size_bytes=len(CONTENT), sha256=self.sha256)
            yield trainer_service_pb2.GetCheckpointResponse(checkpoint=ref)
        for chunk in _chunks()[: 2 if self.is_cut else None]:
            yield trainer_service_pb2.GetCheckpointResponse(chunk=chunk)

    async def PutCheckpoint(
        self, request_iterator: AsyncIterator[trainer_service_pb2.PutCheckpointRequest], context: Any
    ) -> trainer_service_pb2.PutCheckpointResponse:
        self.put = [request async for request in request_iterator]
        if self.refusal is not None:
            raise self.refusal
        return trainer_service_pb2.PutCheckpointResponse()

    async def Train(self, request: trainer_service_pb2.TrainRequest, context: Any) -> trainer_service_pb2.TrainResponse:
        self.requests.append(request)
        session = session_pb2.Session(
            session_id=request.session_id,
            state=training_state_pb2.TRAINING_STATE_RUNNING,
            checkpoint=request.resume_from if request.HasField("resume_from") else None,
            resumed_from_epoch=request.resume_from.epoch,
        )
        return trainer_service_pb2.TrainResponse(session=session)


def _chunks() -> list[UploadChunk]:
    pieces = [CONTENT[start : start + CHUNK_SIZE_BYTES] for start in range(0, len(CONTENT), CHUNK_SIZE_BYTES)]
    chooser = CodecChooser()
    return [chooser.encode(number * CHUNK_SIZE_BYTES, raw) for number, raw in enumerate(pieces)]


def _add(trainer: Any) -> Any:
    return lambda server: trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server)


async def test_checkpoint_is_fetched_whole_and_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    async with serving(_add(FakeTrainer())) as address, AsyncTrainerClient(address) as client:
        checkpoint = await client.get_checkpoint("s1", path)
        with pytest.raises(CheckpointNotFoundError, match="session s2 has no checkpoint"):
            await client.get_checkpoint("s2", path)
    assert path.read_bytes() == CONTENT
    assert checkpoint == Checkpoint(epoch=40, size_bytes=len(CONTENT), sha256=SHA256.hexdigest())


@pytest.mark.parametrize(
    ("trainer", "error"),
    [
        (FakeTrainer(sha256=b"x" * 32), CorruptDataError),
        (FakeTrainer(is_cut=True), InvalidUploadError),
        (FakeTrainer(names_it=False), CorruptDataError),
    ],
    ids=["other digest", "cut short", "no name first"],
)
async def test_checkpoint_that_is_not_whole_leaves_nothing(
    tmp_path: Path, trainer: FakeTrainer, error: type[Exception]
) -> None:
    async with serving(_add(trainer)) as address, AsyncTrainerClient(address) as client:
        with pytest.raises(error):
            await client.get_checkpoint("s1", tmp_path / "checkpoint")
    assert os.listdir(tmp_path) == []


async def test_checkpoint_is_put_with_its_digest_and_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(CONTENT)
    trainer = FakeTrainer()
    async with serving(_add(trainer)) as address, AsyncTrainerClient(address) as client:
        checkpoint = await client.put_checkpoint(tmp_path / "checkpoint", epoch=40)
        session = await client.train(TrainingSpec(strategy_yaml="name: fake\n"), resume_from=checkpoint)
        await client.train(TrainingSpec(strategy_yaml="name: fake\n"))
    named, *chunks = trainer.put
    assert (named.checkpoint.epoch, named.checkpoint.size_bytes) == (40, len(CONTENT))
    assert named.checkpoint.sha256 == SHA256.digest()
    offset, joined = 0, b""
    for message in chunks:
        joined += decode_chunk(message.chunk, offset)
        offset = len(joined)
    assert joined == CONTENT
    assert (session.checkpoint, session.resumed_from_epoch) == (checkpoint, 40)
    assert not trainer.requests[1].HasField("resume_from")


async def test_refused_checkpoint_is_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(CONTENT)
    trainer = FakeTrainer(refusal=StorageError("the disk is full"))
    async with serving(_add(trainer)) as address, AsyncTrainerClient(address) as client:
        with pytest.raises(StorageError, match="the disk is full"):
            await client.put_checkpoint(tmp_path / "checkpoint", epoch=40)


async def test_sync_client_moves_checkpoints_too(tmp_path: Path) -> None:
    trainer = FakeTrainer()
    async with serving(_add(trainer)) as address:

        def use() -> tuple[Checkpoint, Checkpoint]:
            with TrainerClient(address) as client:
                fetched = client.get_checkpoint("s1", tmp_path / "checkpoint")
                return fetched, client.put_checkpoint(tmp_path / "checkpoint", epoch=40)

        fetched, put = await asyncio.to_thread(use)
    assert fetched == put
    assert len(trainer.put) == 4
