"""An attempt that was interrupted goes on as the next one, from its checkpoint, with real workers."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.rpc.chunks import decode_chunk
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.trainer_process import TrainerProcess, train_request, trainer_process

LONG = 100_000
OFTEN = ("--checkpoint-every-s", "0.1")


async def has_checkpoint(trainer: TrainerProcess, session_id: str) -> bool:
    session = (await trainer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
    assert session.state in (states.TRAINING_STATE_QUEUED, states.TRAINING_STATE_RUNNING), session.message
    return session.checkpoint.epoch > 0


async def get(trainer: TrainerProcess, session_id: str) -> list[pb.GetCheckpointResponse]:
    return [answer async for answer in trainer.stub.GetCheckpoint(pb.GetCheckpointRequest(session_id=session_id))]


async def put(trainer: TrainerProcess, parts: list[pb.GetCheckpointResponse]) -> None:
    async def messages() -> AsyncIterator[pb.PutCheckpointRequest]:
        yield pb.PutCheckpointRequest(checkpoint=parts[0].checkpoint)
        for part in parts[1:]:
            yield pb.PutCheckpointRequest(chunk=UploadChunk.FromString(part.chunk.SerializeToString()))

    await trainer.stub.PutCheckpoint(messages())


async def go_on(trainer: TrainerProcess, parts: list[pb.GetCheckpointResponse]) -> None:
    """Train the next attempt from a checkpoint, and check that it goes on where that was taken.

    Its last epoch was not told by the attempt before, so this one tells it.
    """
    last_epoch = parts[0].checkpoint.epoch
    await put(trainer, parts)
    request = train_request("next", epochs=LONG)
    request.attempt = 2
    request.resume_from.CopyFrom(parts[0].checkpoint)
    request.last_epoch_told = last_epoch - 1
    session = (await trainer.stub.Train(request)).session
    assert session.resumed_from_epoch == last_epoch
    epochs: list[int] = []
    call = trainer.stub.StreamProgress(pb.StreamProgressRequest(session_id="next"))
    async for answer in call:
        assert not any(event.HasField("warning") for event in answer.events), answer.events
        epochs.extend(event.epoch.epoch for event in answer.events if event.HasField("epoch"))
        if len(epochs) > 1:
            break
    call.cancel()
    assert epochs[:2] == [last_epoch, last_epoch + 1]


async def test_a_killed_trainers_session_goes_on_from_the_checkpoint_it_left(tmp_path: Path) -> None:
    async with trainer_process(tmp_path, *OFTEN) as trainer:
        await trainer.stub.Train(train_request("first", epochs=LONG))
        await eventually(lambda: has_checkpoint(trainer, "first"), what="a checkpoint")
        seen = (await trainer.stub.GetSession(pb.GetSessionRequest(session_id="first"))).session.checkpoint
        await trainer.end(signal.SIGKILL)
    async with trainer_process(tmp_path) as trainer:
        lost = (await trainer.watch("first"))[-1].session
        parts = await get(trainer, "first")
        await go_on(trainer, parts)

    assert lost.error.reason == "TRAINER_LOST"
    assert f"checkpoint of epoch {lost.checkpoint.epoch}" in lost.error.message
    assert lost.checkpoint.epoch >= seen.epoch
    assert parts[0].checkpoint == lost.checkpoint


async def test_a_trainer_that_is_told_to_stop_hands_the_checkpoint_over_first(tmp_path: Path) -> None:
    async with trainer_process(tmp_path, "--drain-timeout-s", "0.2") as trainer:
        await trainer.stub.Train(train_request("first", epochs=LONG))
        call = trainer.stub.StreamProgress(pb.StreamProgressRequest(session_id="first"))
        session = None
        epochs: list[int] = []
        async for answer in call:
            had_none = not epochs
            epochs.extend(event.epoch.epoch for event in answer.events if event.HasField("epoch"))
            if had_none and epochs:
                trainer.process.send_signal(signal.SIGTERM)
            session = answer.session if answer.HasField("session") else session
        assert session is not None
        parts = await get(trainer, "first")
        await asyncio.wait_for(trainer.process.wait(), PATIENCE_S)

    assert session.error.reason == "DRAINING"
    assert parts[0].checkpoint.epoch == epochs[-1], "no epoch is lost"
    whole = b"".join(decode_chunk(part.chunk, part.chunk.offset) for part in parts[1:])
    assert hashlib.sha256(whole).digest() == parts[0].checkpoint.sha256
