"""Cancel through the backend: verified, shared, honest about what had already happened."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from ktrdr.trainer.v1.trainer_service_pb2 import TrainRequest
from ktrdr.training.v1 import retry_mode_pb2
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states
from ktrdr.training.v1.scheduling_pb2 import RetryPolicy, Scheduling

from ktrdr_core.domain.progress import StateDetail, TrainingStep
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import DrainingError, IllegalStateError, InvalidInputError
from ktrdr_core.execution.engine import SessionOutcome
from tests.kit.backend import (
    HOST,
    Backend,
    FakeTrainer,
    TrainerSession,
    a_spec,
    become,
    event,
    refusal,
    running_backend,
    running_trainer,
    step,
)
from tests.kit.eventually import PATIENCE_S, eventually


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    async with running_backend(tmp_path) as running:
        yield running


async def test_cancelled_is_said_only_after_the_worker_is_gone(backend: Backend) -> None:
    backend.engine.may_cancel.clear()
    training_id = await backend.train()
    await backend.until(training_id, "RUNNING")
    cancels = [asyncio.create_task(backend.cancel(training_id)) for _ in range(3)]
    await backend.until(training_id, "CANCELLING")
    assert not any(cancel.done() for cancel in cancels)
    backend.engine.may_cancel.set()
    answers = await asyncio.gather(*cancels)
    assert {answer.training.state for answer in answers} == {states.TRAINING_STATE_CANCELLED}
    assert backend.engine.started[0].cancels == [False]
    shown = [event.state.state for response in await backend.watch(training_id) for event in response.events]
    assert shown[-2:] == [states.TRAINING_STATE_CANCELLING, states.TRAINING_STATE_CANCELLED]


async def test_stop_answers_the_checkpoint(backend: Backend) -> None:
    training_id = await backend.train()
    await backend.until(training_id, "RUNNING")
    answer = await backend.cancel(training_id, save_checkpoint=True)
    assert answer.training.state == states.TRAINING_STATE_STOPPED
    assert answer.checkpoint_path.endswith("/checkpoint")
    assert (await backend.get(training_id)).checkpoint_path == answer.checkpoint_path


async def test_stop_that_had_to_kill_says_cancelled_and_why(backend: Backend) -> None:
    backend.engine.may_cancel.clear()
    training_id = await backend.train()
    session = (await eventually(lambda: backend.engine.started))[0]
    stop = asyncio.create_task(backend.cancel(training_id, save_checkpoint=True))
    await eventually(lambda: session.cancels == [True])
    session.end(SessionOutcome(state=TrainingState.CANCELLED, message="Killed after 30 s; there is no checkpoint"))
    backend.engine.may_cancel.set()
    answer = await stop
    assert answer.training.state == states.TRAINING_STATE_CANCELLED
    assert answer.training.message == "Killed after 30 s; there is no checkpoint"
    assert answer.checkpoint_path == ""


async def test_stop_of_a_queued_training_says_that_there_is_no_checkpoint(backend: Backend) -> None:
    first, second = [await backend.train() for _ in range(2)]
    await backend.until(first, "RUNNING")
    answer = await backend.cancel(second, save_checkpoint=True)
    assert answer.training.state == states.TRAINING_STATE_STOPPED
    assert "no checkpoint" in answer.training.message


async def test_kill_overtakes_a_stop_under_way(backend: Backend) -> None:
    backend.engine.may_cancel.clear()
    training_id = await backend.train()
    session = (await eventually(lambda: backend.engine.started))[0]
    stop = asyncio.create_task(backend.cancel(training_id, save_checkpoint=True))
    await eventually(lambda: session.cancels == [True])
    kill = asyncio.create_task(backend.cancel(training_id))
    await eventually(lambda: session.cancels == [True, False])
    backend.engine.may_cancel.set()
    await asyncio.gather(stop, kill)


async def test_queued_training_is_cancelled_at_once_and_the_queue_goes_on(backend: Backend) -> None:
    first, second, third = [await backend.train() for _ in range(3)]
    await backend.until(first, "RUNNING")
    answer = await backend.cancel(second)
    assert answer.training.state == states.TRAINING_STATE_CANCELLED
    assert len(answer.training.sessions) == 0
    backend.engine.started[0].finish()
    await backend.until(third, "RUNNING")
    assert len(backend.engine.started) == 2


async def test_cancel_of_an_ended_training_keeps_its_state_and_names_it(backend: Backend) -> None:
    training_id = await backend.train()
    (await eventually(lambda: backend.engine.started))[0].finish()
    await backend.until(training_id, "COMPLETED")
    error = await refusal(backend.cancel(training_id))
    assert isinstance(error, IllegalStateError)
    assert error.metadata["state"] == "COMPLETED"
    assert await backend.state(training_id) == "COMPLETED"


async def test_model_that_was_complete_before_the_kill_is_discarded(backend: Backend, tmp_path: Path) -> None:
    backend.engine.may_cancel.clear()
    training_id = await backend.train()
    session = (await eventually(lambda: backend.engine.started))[0]
    cancel = asyncio.create_task(backend.cancel(training_id))
    await eventually(lambda: session.cancels)
    session.finish()
    backend.engine.may_cancel.set()
    assert (await cancel).training.state == states.TRAINING_STATE_CANCELLED
    assert not list((tmp_path / "state").glob("models/*/*_v1"))


async def test_cancel_on_a_trainer_ends_with_what_the_trainer_verified(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        answer = await backend.cancel(training_id, save_checkpoint=True)
    assert answer.training.state == states.TRAINING_STATE_STOPPED
    assert answer.checkpoint_path == "/checkpoint"
    assert trainer.cancels == [(f"{training_id}-1", True)]


async def test_cancel_while_the_trainer_is_away_reaches_it_when_it_is_back(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,))
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
    try:
        cancel = asyncio.create_task(backend.cancel(training_id))
        await backend.until(training_id, "CANCELLING")
        async with running_trainer(trainer, address):
            assert (await cancel).training.state == states.TRAINING_STATE_CANCELLED
    finally:
        await context.__aexit__(None, None, None)


async def test_cancel_whose_trainer_is_lost_ends_with_its_lease_and_fences_the_session(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.may_cancel.clear()
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        cancel = asyncio.create_task(backend.cancel(training_id))
        await eventually(lambda: trainer.cancels)
    try:
        training = (await cancel).training
        assert training.state == states.TRAINING_STATE_CANCELLED
        assert f"trainer {address} was unreachable" in training.message
        (session,) = training.sessions
        assert (session.outcome, session.is_fenced) == ("LOST", True)
        trainer.may_cancel.set()
        async with running_trainer(trainer, address):  # its worker still runs, and is ended now
            await eventually(lambda: trainer.only.log.is_closed, what="the end of the fenced session")
    finally:
        await context.__aexit__(None, None, None)


@pytest.mark.parametrize("begins", [True, False])
async def test_cancel_of_an_attempt_that_is_being_accepted_waits_for_what_became_of_it(
    tmp_path: Path, begins: bool
) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.may_train.clear()
    trainer.may_cancel.clear()
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.asked_to_train, what="Train has come")
        cancel = asyncio.create_task(backend.cancel(training_id))
        await eventually(lambda: trainer.cancels, what="Cancel has come")
        await asyncio.sleep(0.5)  # it does not know the session, and says so, again and again
        assert (await backend.get(training_id)).state == states.TRAINING_STATE_CANCELLING
        if begins:
            session = TrainerSession(TrainRequest(session_id=f"{training_id}-1", training_id=training_id, attempt=1))
            await session.log.append(event(StateDetail(state=TrainingState.QUEUED)))
            await session.log.append(event(StateDetail(state=TrainingState.RUNNING)))
            trainer.sessions[f"{training_id}-1"] = session
        trainer.may_cancel.set()
        training = (await cancel).training
    assert training.state == states.TRAINING_STATE_CANCELLED
    assert training.message == ("gone" if begins else "Cancelled on request")
    assert [session.outcome for session in training.sessions] == (["CANCELLED"] if begins else [])


async def test_cancel_while_the_trainer_does_not_answer_says_so(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,))
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
    try:

        async def knows() -> bool:
            (run,) = backend.app.dispatcher.runs
            return bool(run.trainer_silence)

        await become(knows, what="the silence of the trainer")
        cancel = asyncio.create_task(backend.cancel(training_id))
        training = await backend.until(training_id, "CANCELLING")
        assert f"trainer {address} does not answer" in training.message
        async with running_trainer(trainer, address):
            await cancel
    finally:
        await context.__aexit__(None, None, None)


async def test_cancel_by_request_ends_the_training_it_made(backend: Backend) -> None:
    training_id = await backend.train(request_id="r1")
    await backend.until(training_id, "RUNNING")
    answer = await backend.cancel(request_id="r1")
    assert (answer.training.training_id, answer.training.state) == (training_id, states.TRAINING_STATE_CANCELLED)


async def test_cancel_before_its_train_arrives_ends_the_training_as_it_arrives(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        assert not (await backend.cancel(request_id="late")).HasField("training")
    async with running_backend(tmp_path) as backend:  # kept over a restart
        training_id = await backend.train(request_id="late")
        assert await backend.state(training_id) == "CANCELLED"
        assert not backend.engine.started
        assert await backend.train(request_id="late") == training_id


async def test_cancel_names_exactly_one_of_training_and_request(backend: Backend) -> None:
    assert isinstance(await refusal(backend.cancel()), InvalidInputError)
    assert isinstance(await refusal(backend.cancel("t", request_id="r")), InvalidInputError)


async def test_two_hundred_queued_trainings_are_cancelled_at_once(backend: Backend) -> None:
    running = await backend.train()
    queued = await asyncio.gather(*(backend.train() for _ in range(200)))
    answers = await asyncio.gather(*(backend.cancel(training_id) for training_id in queued))
    assert {answer.training.state for answer in answers} == {states.TRAINING_STATE_CANCELLED}
    assert await backend.state(running) == "RUNNING"


async def test_stopping_backend_stops_local_trainings_with_a_checkpoint_and_the_next_start_goes_on(
    tmp_path: Path,
) -> None:
    async with running_backend(tmp_path) as backend:
        running, queued = await backend.train(), await backend.train()
        session = (await eventually(lambda: backend.engine.started))[0]
        session.emit(step(TrainingStep.TRAINING))
        session.keep_checkpoint(7)
    async with running_backend(tmp_path) as backend:
        training = await backend.until(running, "RUNNING")
        assert [(each.attempt, each.outcome, each.error_reason) for each in training.sessions] == [
            (1, "LOST", "DRAINING"),
            (2, "", ""),
        ]
        assert training.sessions[1].resumed_from_epoch == 7
        resume_from = backend.engine.started[0].job.resume_from
        assert resume_from is not None
        assert resume_from.read_bytes() == b"weights"
        assert await backend.state(queued) == "QUEUED"  # it came second and stays so


async def test_stopping_backend_fails_a_local_training_without_another_attempt(tmp_path: Path) -> None:
    never = Scheduling(retry_policy=RetryPolicy(mode=retry_mode_pb2.RETRY_MODE_NEVER))
    async with running_backend(tmp_path) as backend:
        training_id = await backend.train(scheduling=never)
        await backend.until(training_id, "RUNNING")
    async with running_backend(tmp_path) as backend:
        training = await backend.get(training_id)
        assert (training.state, training.error.reason) == (states.TRAINING_STATE_FAILED, "DRAINING")


async def test_a_stop_of_the_backend_goes_on_without_a_worker_that_cannot_be_ended(tmp_path: Path) -> None:
    async with running_backend(tmp_path, kill_limit_s=0.0) as backend:
        backend.engine.may_cancel.clear()
        training_id = await backend.train()
        await backend.until(training_id, "RUNNING")
        backend.app.hurry()
        await asyncio.wait_for(backend.app.stop(), PATIENCE_S)
        assert backend.engine.started[0].cancels


async def test_the_engine_is_warmed_up_beside_the_start(backend: Backend) -> None:
    await eventually(lambda: backend.engine.num_warm_ups == 1)


async def test_cancel_whose_caller_goes_away_before_it_is_stored_is_obeyed_all_the_same(
    backend: Backend, tmp_path: Path
) -> None:
    await backend.until(await backend.train(), "RUNNING")
    queued = await backend.train()
    other = sqlite3.connect(tmp_path / "state" / "operations.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    call = asyncio.create_task(backend.cancel(queued))
    await eventually(lambda: backend.app.dispatcher.num_orders)
    call.cancel()
    await asyncio.wait([call])
    other.execute("COMMIT")
    other.close()
    await backend.until(queued, "CANCELLED")


async def test_two_stops_of_a_waiting_training_end_it_once(backend: Backend) -> None:
    await backend.until(await backend.train(), "RUNNING")
    for _ in range(20):
        queued = await backend.train()
        stops = (backend.cancel(queued, save_checkpoint=True) for _ in range(3))
        answers = await asyncio.gather(*stops, return_exceptions=True)  # a late one is told that it has ended
        assert all(isinstance(answer, (pb.CancelResponse, grpc.aio.AioRpcError)) for answer in answers)
        assert await backend.state(queued) == "STOPPED"


async def test_cancel_before_its_train_holds_for_every_copy_of_that_train(backend: Backend) -> None:
    for number in range(20):
        request_id = f"early-{number}"
        await backend.cancel(request_id=request_id)
        ids = await asyncio.gather(*(backend.train(request_id=request_id) for _ in range(4)))
        assert len(set(ids)) == 1
        assert await backend.state(ids[0]) == "CANCELLED"
    assert not backend.engine.started


async def test_cancel_under_way_as_the_backend_stops_is_told_to_come_back_and_goes_on_at_the_next_start(
    tmp_path: Path,
) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.may_cancel.clear()
    async with running_trainer(trainer) as address:
        async with running_backend(tmp_path, trainers=(address,)) as backend:
            training_id = await backend.train(a_spec(HOST))
            await backend.until(training_id, "RUNNING")
            cancel = asyncio.create_task(refusal(backend.cancel(training_id)))
            await eventually(lambda: trainer.cancels)
            await backend.app.stop()
            assert isinstance(await cancel, DrainingError)
        trainer.may_cancel.set()
        async with running_backend(tmp_path, trainers=(address,)) as backend:
            await backend.until(training_id, "CANCELLED")
