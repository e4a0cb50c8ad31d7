"""Checkpoints leave a trainer, and come to another, while everything around them moves."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ktrdr.models.v1 import codec_pb2
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE, WarningDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    CheckpointNotFoundError,
    CorruptDataError,
    InvalidUploadError,
    NoSlotError,
    SessionNotFoundError,
)
from ktrdr_core.execution.engine import SessionCheckpoint, SessionOutcome
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk, encode_chunk
from tests.kit.eventually import eventually
from tests.kit.scripted_engine import ScriptedSession
from tests.kit.trainer_house import House, house, refusal, train_request

CONTENT = os.urandom(CHUNK_SIZE_BYTES + 1_000)


@pytest.fixture
async def trainer(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as found:
        yield found


def write(worker: ScriptedSession, epoch: int, content: bytes = CONTENT) -> SessionCheckpoint:
    """Let the worker have written a checkpoint."""
    path = worker.job.work_dir / "checkpoints" / f"{epoch}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    worker.checkpoint = SessionCheckpoint(path=path, epoch=epoch, size_bytes=len(content), sha256=sha256)
    return worker.checkpoint


def ref_of(content: bytes = CONTENT, epoch: int = 4) -> CheckpointRef:
    return CheckpointRef(epoch=epoch, size_bytes=len(content), sha256=hashlib.sha256(content).digest())


async def put(trainer: House, ref: CheckpointRef, content: bytes) -> None:
    async def messages() -> AsyncIterator[pb.PutCheckpointRequest]:
        yield pb.PutCheckpointRequest(checkpoint=ref)
        for offset in range(0, len(content), CHUNK_SIZE_BYTES):
            raw = content[offset : offset + CHUNK_SIZE_BYTES]
            yield pb.PutCheckpointRequest(chunk=encode_chunk(offset, raw, codec_pb2.CODEC_NONE))

    await trainer.stub.PutCheckpoint(messages())


async def get(trainer: House, session_id: str = "s1") -> tuple[CheckpointRef, bytes]:
    call = trainer.stub.GetCheckpoint(pb.GetCheckpointRequest(session_id=session_id))
    first, *rest = [answer async for answer in call]
    content = b""
    for answer in rest:
        content += decode_chunk(answer.chunk, len(content))
    return first.checkpoint, content


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def put_files(tmp_path: Path) -> list[str]:
    return names_in(tmp_path / "state" / "trainer" / "checkpoints")


async def test_the_newest_checkpoint_is_given_whole(trainer: House) -> None:
    await trainer.train()
    error = await refusal(trainer.stub.GetCheckpoint(pb.GetCheckpointRequest(session_id="s1")).read())
    assert isinstance(error, CheckpointNotFoundError)
    write(trainer.worker, 3, b"older")
    write(trainer.worker, 4)

    ref, content = await get(trainer)

    assert (ref, content) == (ref_of(), CONTENT)
    session = await trainer.session()
    assert session.checkpoint == ref


async def test_the_checkpoint_of_an_unknown_session_is_not_found(trainer: House) -> None:
    error = await refusal(trainer.stub.GetCheckpoint(pb.GetCheckpointRequest(session_id="nobody")).read())

    assert isinstance(error, SessionNotFoundError)


async def test_one_that_is_replaced_as_it_is_asked_for_gives_way_to_the_newer(trainer: House) -> None:
    await trainer.train()
    gone = write(trainer.worker, 3, b"gone")
    newer = write(trainer.worker, 4)
    gone.path.unlink()
    reads = iter([gone, newer, newer, newer])
    session = trainer.app.orchestrator.session("s1")
    worker = trainer.worker

    class Replacing:
        @property
        def checkpoint(self) -> SessionCheckpoint:
            return next(reads)

        def __getattr__(self, name: str) -> object:
            return getattr(worker, name)

    session.worker = Replacing()  # type: ignore[assignment]

    assert await get(trainer) == (ref_of(), CONTENT)
    session.worker = worker


async def test_progress_names_the_newest_checkpoint_once_also_in_a_heartbeat(trainer: House) -> None:
    await trainer.train()
    await trainer.until(states.TRAINING_STATE_RUNNING)
    write(trainer.worker, 1)
    call = trainer.stub.StreamProgress(pb.StreamProgressRequest(session_id="s1"))
    first = await call.read()
    assert isinstance(first, pb.StreamProgressResponse)
    assert first.checkpoint.epoch == 1
    write(trainer.worker, 2)
    named: list[int | None] = []
    while len(named) < 4:
        answer = await call.read()
        assert isinstance(answer, pb.StreamProgressResponse)
        if not answer.events:
            named.append(answer.checkpoint.epoch if answer.HasField("checkpoint") else None)
            if len(named) == 2:
                write(trainer.worker, 3)
    call.cancel()

    assert named in ([2, None, 3, None], [None, None, 3, None])


async def test_the_checkpoint_of_an_interrupted_session_is_named_at_its_end_and_stays(tmp_path: Path) -> None:
    async with house(tmp_path) as trainer:
        await trainer.train()
        watching = asyncio.create_task(trainer.watch())
        await eventually(lambda: trainer.app.orchestrator.session("s1").num_watchers)
        write(trainer.worker, 4)
        stopping = asyncio.create_task(trainer.app.stop(0))

        last = (await watching)[-1]

        assert (last.session.error.reason, last.session.checkpoint) == ("DRAINING", ref_of())
        assert "checkpoint of epoch 4" in last.session.error.message
        # Who watched gets the time to fetch it; a stop that does not wait is over before these are answered.
        for _ in range(50):
            await trainer.session()
        assert await get(trainer) == (ref_of(), CONTENT)
        await stopping


async def test_a_stop_waits_for_nobody_who_does_not_watch(trainer: House) -> None:
    await trainer.train()
    write(trainer.worker, 4)
    loop = asyncio.get_running_loop()
    begin = loop.time()

    await trainer.app.stop(0)

    assert loop.time() - begin < 4.0  # it would wait for 5 s


async def test_a_second_signal_ends_the_wait_for_who_fetches(trainer: House) -> None:
    await trainer.train()
    watching = asyncio.create_task(trainer.watch())
    await eventually(lambda: trainer.app.orchestrator.session("s1").num_watchers)
    write(trainer.worker, 4)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    stopping = asyncio.create_task(trainer.app.stop(0))
    await watching

    trainer.app.hurry()
    await stopping

    assert loop.time() - begin < 4.0


@pytest.mark.parametrize(
    ("outcome", "is_kept"),
    [
        (SessionOutcome(state=TrainingState.FAILED, message="x", error_reason="OUT_OF_MEMORY"), False),
        (SessionOutcome(state=TrainingState.CANCELLED, message="x"), False),
        (SessionOutcome(state=TrainingState.STOPPED, message="x", checkpoint_path="x"), True),
        (SessionOutcome(state=TrainingState.FAILED, message="x", error_reason="TRAINER_LOST"), True),
    ],
    ids=["failed", "cancelled", "stopped", "lost"],
)
async def test_checkpoints_stay_where_somebody_can_go_on_from_them(
    trainer: House, outcome: SessionOutcome, is_kept: bool
) -> None:
    await trainer.train()
    checkpoint = write(trainer.worker, 4)

    trainer.worker.end(outcome)
    await eventually(lambda: trainer.app.orchestrator.session("s1").log.is_closed)

    if is_kept:
        assert await get(trainer) == (ref_of(), CONTENT)
    else:
        await eventually(lambda: not checkpoint.path.parent.exists())
        assert not (await trainer.session()).HasField("checkpoint")


async def test_a_session_goes_on_from_a_checkpoint_that_was_put_here(trainer: House, tmp_path: Path) -> None:
    await put(trainer, ref_of(), CONTENT)

    session = await trainer.train(resume_from=ref_of())

    path = trainer.worker.job.resume_from
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert trainer.worker.job.checkpoint_every_s == 10.0
    assert session.resumed_from_epoch == 4
    trainer.worker.finish()
    await trainer.until(states.TRAINING_STATE_COMPLETED)
    await eventually(lambda: put_files(tmp_path) == [])
    assert (await trainer.session()).resumed_from_epoch == 4


async def test_without_the_checkpoint_nothing_is_started(trainer: House, tmp_path: Path) -> None:
    error = await refusal(trainer.stub.Train(train_request(resume_from=ref_of())))

    assert isinstance(error, CheckpointNotFoundError)
    assert trainer.engine.sessions == []
    assert names_in(tmp_path / "state" / "trainer" / "sessions") == []
    await put(trainer, ref_of(), CONTENT)
    await trainer.train(resume_from=ref_of())


async def test_a_repeated_train_need_not_find_the_checkpoint_again(trainer: House, tmp_path: Path) -> None:
    await put(trainer, ref_of(), CONTENT)
    await trainer.train(resume_from=ref_of())
    trainer.worker.finish()
    await trainer.until(states.TRAINING_STATE_COMPLETED)
    await eventually(lambda: put_files(tmp_path) == [])

    assert (await trainer.train(resume_from=ref_of())).state == states.TRAINING_STATE_COMPLETED
    assert (await trainer.train()).state == states.TRAINING_STATE_COMPLETED
    assert len(trainer.engine.sessions) == 1


async def test_a_session_that_finds_no_slot_leaves_the_checkpoint_for_the_next_try(tmp_path: Path) -> None:
    async with house(tmp_path, slots=1) as trainer:
        await put(trainer, ref_of(), CONTENT)
        trainer.engine.hold_starts = asyncio.Event()
        taking = asyncio.create_task(trainer.train("takes-the-slot"))
        await eventually(lambda: trainer.engine.num_waiting == 1)
        losing = asyncio.create_task(trainer.train("too-late", resume_from=ref_of()))
        await eventually(lambda: trainer.engine.num_waiting == 2)

        trainer.engine.hold_starts.set()
        await taking

        assert isinstance(await refusal(losing), NoSlotError)
        assert len(put_files(tmp_path)) == 1


async def test_a_worker_that_could_not_use_it_began_at_the_beginning(tmp_path: Path) -> None:
    async with house(tmp_path) as trainer:
        await put(trainer, ref_of(), CONTENT)
        await trainer.train(resume_from=ref_of())
        trainer.worker.emit(WarningDetail(reason=CHECKPOINT_UNUSABLE, message="of another machine"))
        await eventually(lambda: trainer.app.orchestrator.session("s1").resumed_from_epoch == 0)
        trainer.worker.finish()
        await trainer.until(states.TRAINING_STATE_COMPLETED)
    async with house(tmp_path) as trainer:
        assert (await trainer.session()).resumed_from_epoch == 0


@pytest.mark.parametrize(
    ("ref", "content", "error"),
    [
        (ref_of(), CONTENT[:-1], InvalidUploadError),
        (ref_of(), CONTENT[:-1] + b"x", CorruptDataError),
        (CheckpointRef(epoch=1, size_bytes=5), b"12345", InvalidUploadError),
    ],
    ids=["short", "other bytes", "no digest"],
)
async def test_a_checkpoint_that_is_not_what_it_says_is_refused(
    trainer: House, tmp_path: Path, ref: CheckpointRef, content: bytes, error: type[Exception]
) -> None:
    assert isinstance(await refusal(put(trainer, ref, content)), error)
    assert put_files(tmp_path) == []


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [pb.PutCheckpointRequest()],
        [pb.PutCheckpointRequest(chunk=encode_chunk(0, b"x", codec_pb2.CODEC_NONE))],
        [pb.PutCheckpointRequest(checkpoint=ref_of(b"x")), pb.PutCheckpointRequest(checkpoint=ref_of(b"x"))],
    ],
    ids=["nothing", "empty", "a chunk first", "announced twice"],
)
async def test_messages_in_another_order_are_refused(
    trainer: House, tmp_path: Path, messages: list[pb.PutCheckpointRequest]
) -> None:
    async def stream() -> AsyncIterator[pb.PutCheckpointRequest]:
        for message in messages:
            yield message

    assert isinstance(await refusal(trainer.stub.PutCheckpoint(stream())), InvalidUploadError)
    assert put_files(tmp_path) == []
