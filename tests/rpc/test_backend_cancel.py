"""Cancel through the backend: verified, shared, honest about what had already happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.domain.progress import TrainingStep
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import IllegalStateError, TrainerLostError
from ktrdr_core.execution.engine import SessionOutcome
from tests.kit.backend import (
    HOST,
    Backend,
    FakeTrainer,
    a_spec,
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


async def test_cancel_whose_trainer_is_lost_is_an_error_and_never_cancelled(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.may_cancel.clear()
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        cancel = asyncio.create_task(refusal(backend.cancel(training_id)))
        await eventually(lambda: trainer.cancels)
    try:
        assert isinstance(await cancel, TrainerLostError)
        training = await backend.get(training_id)
        assert (training.state, training.error.reason) == (states.TRAINING_STATE_FAILED, "TRAINER_LOST")
    finally:
        await context.__aexit__(None, None, None)


async def test_stopping_backend_ends_local_trainings_failed_and_keeps_queued_ones(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        running, queued = await backend.train(), await backend.train()
        (await eventually(lambda: backend.engine.started))[0].emit(step(TrainingStep.TRAINING))
    async with running_backend(tmp_path) as backend:
        training = await backend.get(running)
        assert (training.state, training.error.reason) == (states.TRAINING_STATE_FAILED, "DRAINING")
        await backend.until(queued, "RUNNING")


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
