"""Attempts: what becomes of a training whose trainer is lost, restarted, drained, or comes back too late."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ktrdr.models.v1 import model_service_pb2, model_service_pb2_grpc
from ktrdr.training.v1 import retry_mode_pb2, training_service_pb2
from ktrdr.training.v1 import training_state_pb2 as states
from ktrdr.training.v1.data_mode_pb2 import DATA_MODE_LOCAL
from ktrdr.training.v1.scheduling_pb2 import RetryPolicy, Scheduling

from backend_service.checkpoints import CheckpointStore
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE, StateDetail, TrainingStep, WarningDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    IllegalStateError,
    SeriesNotFoundError,
    StorageError,
    VersionSkewError,
)
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.upload import UploadPlan, upload_messages
from ktrdr_core.storage.artifact import write_artifact
from tests.kit.artifacts import make_artifact
from tests.kit.backend import (
    HOST,
    LOCAL,
    Backend,
    FakeEngine,
    FakeTrainer,
    TrainerSession,
    a_spec,
    become,
    epoch,
    event,
    refusal,
    running_backend,
    running_trainer,
    step,
    write_checkpoint,
)
from tests.kit.eventually import eventually


async def history(backend: Backend, training_id: str) -> list[Any]:
    request = training_service_pb2.ListTrainingEventsRequest(training_id=training_id)
    return list((await backend.trainings.ListTrainingEvents(request)).events)


async def epochs(backend: Backend, training_id: str) -> list[tuple[int, int]]:
    """Return (attempt, epoch) of each epoch in the history."""
    found = [each for each in await history(backend, training_id) if each.WhichOneof("detail") == "epoch"]
    return [(each.attempt, each.epoch.epoch) for each in found]


async def until_checkpoint(directory: Path, epoch_number: int) -> None:
    await eventually(
        lambda: list((directory / "state" / "checkpoints").glob(f"*/{epoch_number:08d}-*.safetensors")),
        what=f"the checkpoint of epoch {epoch_number}",
    )


async def checkpoint_at(directory: Path, session: TrainerSession, number: int) -> None:
    """Let a session keep a checkpoint, and wait until the backend has it."""
    path = directory / f"{session.request.session_id}-{number}.safetensors"
    session.checkpoint = write_checkpoint(path, number, b"weights %d" % number)
    await until_checkpoint(directory, number)


async def test_lost_trainer_s_training_goes_on_elsewhere_from_its_last_checkpoint(tmp_path: Path) -> None:
    first, second = FakeTrainer(tmp_path), FakeTrainer(tmp_path)
    async with running_trainer(second) as second_address:
        async with running_trainer(first) as first_address:
            context = running_backend(tmp_path, trainers=(first_address, second_address), trainer_lost_s=0.5)
            backend = await context.__aenter__()
            training_id = await backend.train(a_spec(HOST))
            await eventually(lambda: first.sessions)
            for number in (1, 2, 3):
                await first.only.log.append(epoch(number))
            await checkpoint_at(tmp_path, first.only, 2)
            await backend.until_sequence(training_id, 5)
        try:
            await eventually(lambda: second.sessions, what="the next attempt")
            for number in (3, 4):  # the third was told before the trainer was lost
                await second.only.log.append(epoch(number))
            await second.finish(second.only)
            training = await backend.until(training_id, "COMPLETED")
            one, two = training.sessions
            assert (one.outcome, one.error_reason, one.is_fenced) == ("LOST", "TRAINER_LOST", True)
            assert (two.attempt, two.outcome, two.trainer) == (2, "COMPLETED", second_address)
            assert two.resumed_from_epoch == 2
            assert list(second.put.values()) == [b"weights 2"]
            assert await epochs(backend, training_id) == [(1, 1), (1, 2), (1, 3), (2, 4)]
            shown = [each.state for each in await history(backend, training_id) if each.HasField("state")]
            assert [states.TrainingState.Name(each.state).removeprefix("TRAINING_STATE_") for each in shown] == [
                *("QUEUED", "RUNNING", "QUEUED", "RUNNING", "UPLOADING", "COMPLETED")
            ]
            assert shown[2].error_reason == "TRAINER_LOST"
            assert "checkpoint of epoch 2" in shown[2].message
            assert not list((tmp_path / "state" / "checkpoints").iterdir())
        finally:
            await context.__aexit__(None, None, None)


async def test_attempt_without_a_checkpoint_begins_at_the_beginning_and_shows_its_epochs(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.sessions)
        await trainer.only.log.append(epoch(1))
        await end_as_restarted(trainer.only)
        await eventually(lambda: len(trainer.sessions) == 2, what="the next attempt")
        again = trainer.sessions[f"{training_id}-2"]
        assert not again.request.HasField("resume_from")
        await again.log.append(epoch(1))
        await trainer.finish(again)
        await backend.until(training_id, "COMPLETED")
        assert await epochs(backend, training_id) == [(1, 1), (2, 1)]


async def end_as_restarted(session: TrainerSession, reason: str = "TRAINER_LOST") -> None:
    """End a session as a trainer does that was restarted."""
    detail = StateDetail(state=TrainingState.FAILED, message="the trainer stopped while it ran", error_reason=reason)
    await session.log.append(event(detail))


async def test_unusable_checkpoint_is_dropped_and_every_epoch_of_that_attempt_is_shown(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.sessions)
        await trainer.only.log.append(epoch(1))
        await checkpoint_at(tmp_path, trainer.only, 1)
        await end_as_restarted(trainer.only)
        await eventually(lambda: len(trainer.sessions) == 2, what="the next attempt")
        again = trainer.sessions[f"{training_id}-2"]
        assert again.request.resume_from.epoch == 1
        await again.log.append(event(WarningDetail(reason=CHECKPOINT_UNUSABLE, message="another machine")))
        await again.log.append(epoch(1))

        async def has_both() -> bool:
            return await epochs(backend, training_id) == [(1, 1), (2, 1)]

        await become(has_both)
        assert (await backend.get(training_id)).sessions[1].resumed_from_epoch == 0
        assert not list((tmp_path / "state" / "checkpoints").glob("*/*"))


async def test_training_is_tried_as_often_as_it_allows_and_fails_with_the_last_loss(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    once = Scheduling(retry_policy=RetryPolicy(max_retries=1))
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST), scheduling=once)
        for number in (1, 2):
            await eventually(lambda: len(trainer.sessions) == number)  # noqa: B023 - awaited within the round
            await end_as_restarted(trainer.sessions[f"{training_id}-{number}"])
        training = await backend.until(training_id, "FAILED")
        assert training.error.reason == "TRAINER_LOST"
        assert "attempt 2 of at most 2" in training.error.message
        assert [session.outcome for session in training.sessions] == ["LOST", "LOST"]


async def test_planned_stops_of_trainers_are_not_counted(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    none = Scheduling(retry_policy=RetryPolicy(max_retries=0))
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST), scheduling=none)
        await eventually(lambda: trainer.sessions)
        await end_as_restarted(trainer.only, "DRAINING")
        await eventually(lambda: f"{training_id}-2" in trainer.sessions)


async def test_failure_of_the_training_itself_is_never_tried_again(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.sessions)
        await end_as_restarted(trainer.only, "OUT_OF_MEMORY")
        training = await backend.until(training_id, "FAILED")
        assert training.error.reason == "OUT_OF_MEMORY"
        assert [session.outcome for session in training.sessions] == ["FAILED"]


async def test_trainer_back_in_time_is_adopted_and_nothing_is_repeated(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,))
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.sessions)
        await trainer.only.log.append(epoch(1))
        await backend.until_sequence(training_id, 3)
    try:
        await trainer.only.log.append(epoch(2))
        async with running_trainer(trainer, address):
            await trainer.finish(trainer.only)
            training = await backend.until(training_id, "COMPLETED")
            assert [session.attempt for session in training.sessions] == [1]
            assert await epochs(backend, training_id) == [(1, 1), (1, 2)]
    finally:
        await context.__aexit__(None, None, None)


async def test_artifact_of_a_lost_attempt_is_kept_aside(tmp_path: Path) -> None:
    first, second = FakeTrainer(tmp_path), FakeTrainer(tmp_path)
    async with running_trainer(second) as second_address:
        async with running_trainer(first) as first_address:
            context = running_backend(tmp_path, trainers=(first_address, second_address), trainer_lost_s=0.3)
            backend = await context.__aenter__()
            training_id = await backend.train(a_spec(HOST))
            await backend.until(training_id, "RUNNING")
        try:
            await eventually(lambda: second.sessions, what="the next attempt")
            late = await first.finish(first.only)
            assert (late.is_kept_aside, late.model.version, late.model.attempt) == (True, 0, 1)
            assert await backend.state(training_id) == "RUNNING"
            await second.finish(second.only)
            await backend.until(training_id, "COMPLETED")
            models = await backend.models.ListModels(model_service_pb2.ListModelsRequest())
            assert [model.attempt for model in models.models] == [2]
            aside = await backend.models.ListModels(model_service_pb2.ListModelsRequest(kept_aside=True))
            assert [(model.name, model.is_kept_aside) for model in aside.models] == [(f"aside/{training_id}-1", True)]
        finally:
            await context.__aexit__(None, None, None)


@pytest.mark.parametrize("number", [0, 1])
async def test_fence_lets_an_upload_come_to_its_end_and_ends_what_trains(tmp_path: Path, number: int) -> None:
    trainer = FakeTrainer(tmp_path, num_slots=2)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        never = Scheduling(retry_policy=RetryPolicy(mode=retry_mode_pb2.RETRY_MODE_NEVER))
        trainings = [await backend.train(a_spec(HOST), scheduling=never) for _ in range(2)]
        for training_id in trainings:
            await backend.until(training_id, "RUNNING")
    try:
        for training_id in trainings:
            await backend.until(training_id, "FAILED")
        sessions = list(trainer.sessions.values())
        uploads, trains = sessions[number], sessions[1 - number]
        await uploads.log.append(event(StateDetail(state=TrainingState.UPLOADING)))
        async with running_trainer(trainer, address):
            await eventually(lambda: trains.log.is_closed, what="the end of the session that trains")
            await eventually(lambda: trainer.num_asked > 4, what="questions after the session that uploads")
            assert [session_id for session_id, _ in trainer.cancels] == [trains.request.session_id]
            assert (await trainer.finish(uploads)).is_kept_aside
            request = training_service_pb2.DeleteTrainingRequest(training_id=uploads.request.training_id)

            async def is_deleted() -> bool:
                try:
                    await backend.trainings.DeleteTraining(request)
                except Exception:  # noqa: BLE001 - the fence is confirmed a moment after the session has ended
                    return False
                return True

            await become(is_deleted)
    finally:
        await context.__aexit__(None, None, None)


async def test_fence_outlives_the_backend(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    never = Scheduling(retry_policy=RetryPolicy(mode=retry_mode_pb2.RETRY_MODE_NEVER))
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST), scheduling=never)
        await backend.until(training_id, "RUNNING")
    await backend.until(training_id, "FAILED")
    request = training_service_pb2.DeleteTrainingRequest(training_id=training_id)
    assert isinstance(await refusal(backend.trainings.DeleteTraining(request)), IllegalStateError)
    await context.__aexit__(None, None, None)
    async with running_trainer(trainer, address), running_backend(tmp_path, trainers=(address,)) as backend:
        await eventually(lambda: trainer.only.log.is_closed, what="the end of the fenced session")

        async def is_deleted() -> bool:
            try:
                await backend.trainings.DeleteTraining(request)
            except Exception:  # noqa: BLE001 - the fence is confirmed a moment after the session has ended
                return False
            return True

        await become(is_deleted)


async def test_next_attempt_waits_for_a_trainer_rather_than_run_anywhere(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
    try:
        await backend.until(training_id, "QUEUED")
        queue = await backend.until_waiting(training_id)
        assert address in queue.waiting_for
        assert not backend.engine.started
        async with running_trainer(trainer, address):
            await backend.until(training_id, "RUNNING")
            assert [each.trainer for each in (await backend.get(training_id)).sessions] == [address, address]
    finally:
        await context.__aexit__(None, None, None)


async def test_next_attempt_that_no_trainer_takes_in_time_fails(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3, retry_wait_s=0.0)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
    try:
        training = await backend.until(training_id, "FAILED")
        assert training.error.reason == "TRAINER_LOST"
        assert "no trainer came back" in training.error.message
    finally:
        await context.__aexit__(None, None, None)


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


async def test_stop_of_a_training_whose_trainer_is_lost_keeps_the_backend_s_checkpoint(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.may_cancel.clear()
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.sessions)
        await checkpoint_at(tmp_path, trainer.only, 4)
        await backend.until(training_id, "RUNNING")
    try:
        answer = await backend.cancel(training_id, save_checkpoint=True)
        assert answer.training.state == states.TRAINING_STATE_STOPPED
        assert content_of(answer.checkpoint_path) == b"weights 4"
    finally:
        trainer.may_cancel.set()
        await context.__aexit__(None, None, None)
    async with running_backend(tmp_path):  # a start removes what nobody needs, and this is needed
        assert content_of(answer.checkpoint_path) == b"weights 4"


async def test_cancel_between_two_attempts_is_not_lost(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
    try:
        await backend.until(training_id, "QUEUED")
        assert (await backend.cancel(training_id)).training.state == states.TRAINING_STATE_CANCELLED
    finally:
        await context.__aexit__(None, None, None)


async def test_local_attempt_that_died_with_the_backend_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        training_id = await backend.train(a_spec(LOCAL))
        session = (await eventually(lambda: backend.engine.started))[0]
        session.emit(step(TrainingStep.TRAINING), epoch(1))
        await backend.until_sequence(training_id, 4)
        session.keep_checkpoint(1)
    async with running_backend(tmp_path) as backend:
        again = (await eventually(lambda: backend.engine.started))[0]
        again.emit(epoch(1), epoch(2))
        again.finish()
        training = await backend.until(training_id, "COMPLETED")
        assert [(each.attempt, each.outcome) for each in training.sessions] == [(1, "LOST"), (2, "COMPLETED")]
        assert await epochs(backend, training_id) == [(1, 1), (2, 2)]


async def test_history_comes_in_pages(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        training_id = await backend.train()
        session = (await eventually(lambda: backend.engine.started))[0]
        session.emit(*(epoch(number) for number in range(1, 8)))
        session.finish()
        await backend.until(training_id, "COMPLETED")
        seen: list[int] = []
        token = ""
        while True:
            page = await backend.trainings.ListTrainingEvents(
                training_service_pb2.ListTrainingEventsRequest(training_id=training_id, page_size=4, page_token=token)
            )
            assert len(page.events) <= 4
            seen += [each.sequence for each in page.events]
            token = page.next_page_token
            if not token:
                break
        assert seen == list(range(1, 12))  # QUEUED, RUNNING, seven epochs, UPLOADING, COMPLETED


async def upload_of(trainer: FakeTrainer, session: TrainerSession) -> None:
    """Upload a session's model, and let its log go on only in the test's time."""
    artifact = trainer.directory / session.request.session_id
    write_artifact(artifact, make_artifact())
    plan = UploadPlan.of(artifact, training_id=session.request.training_id, attempt=session.request.attempt)
    async with open_channel(session.request.upload_target) as channel:
        await model_service_pb2_grpc.ModelServiceStub(channel).UploadModel(upload_messages(plan))


async def test_training_is_completed_only_when_its_history_is_whole(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,))
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
    try:  # the way to the trainer is cut, the one back is not
        await upload_of(trainer, trainer.only)
        assert await backend.state(training_id) == "RUNNING"
        for number in (1, 2):
            await trainer.only.log.append(epoch(number))
        for state in (TrainingState.UPLOADING, TrainingState.COMPLETED):
            await trainer.only.log.append(event(StateDetail(state=state)))
        async with running_trainer(trainer, address):
            training = await backend.until(training_id, "COMPLETED")
        assert await epochs(backend, training_id) == [(1, 1), (1, 2)]
        assert not training.warnings
    finally:
        await context.__aexit__(None, None, None)


async def test_model_whose_trainer_is_lost_before_its_history_is_whole_completes_with_a_warning(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3, history_wait_s=1.0)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        await upload_of(trainer, trainer.only)
    try:
        training = await backend.until(training_id, "COMPLETED")
        waits, missing = training.warnings
        assert "has not told all of its history" in waits
        assert "what it had not told is missing" in missing
    finally:
        await context.__aexit__(None, None, None)


async def test_lost_trainer_whose_model_is_stored_is_waited_for_and_tells_the_rest(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        await upload_of(trainer, trainer.only)
    try:

        async def is_waited_for() -> bool:
            return bool((await backend.get(training_id)).warnings)

        await become(is_waited_for, what="the loss of the trainer")
        for state in (TrainingState.UPLOADING, TrainingState.COMPLETED):
            await trainer.only.log.append(event(StateDetail(state=state)))
        async with running_trainer(trainer, address):
            training = await backend.until(training_id, "COMPLETED")
        assert [(session.attempt, session.outcome) for session in training.sessions] == [(1, "COMPLETED")]
    finally:
        await context.__aexit__(None, None, None)


async def test_cancel_that_comes_after_the_model_is_stored_keeps_the_model(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        await upload_of(trainer, trainer.only)
        answer = await backend.cancel(training_id)  # the trainer, which has not heard of it yet, says CANCELLED
        assert answer.training.state == states.TRAINING_STATE_COMPLETED


async def test_full_disk_of_a_trainer_is_waited_out_and_costs_no_training(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.refusal = StorageError("the disk is full")
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))

        async def is_put_off() -> bool:
            sessions = (await backend.get(training_id)).sessions
            return bool(sessions) and sessions[0].outcome == "LOST"

        await become(is_put_off)
        training = await backend.get(training_id)
        assert training.state == states.TRAINING_STATE_QUEUED
        assert training.sessions[0].error_reason == "STORAGE_UNAVAILABLE"
        assert trainer.asked_to_train == [f"{training_id}-1"]
        assert (await backend.cancel(training_id)).training.state == states.TRAINING_STATE_CANCELLED


async def test_trainer_without_the_bars_hands_the_training_to_another(tmp_path: Path) -> None:
    poor, rich = FakeTrainer(tmp_path / "poor", num_slots=9), FakeTrainer(tmp_path / "rich", num_slots=2)
    poor.refusal = SeriesNotFoundError("there are no bars of EURUSD 1h")
    async with (
        running_trainer(poor) as poor_address,
        running_trainer(rich) as rich_address,
        running_backend(tmp_path, trainers=(poor_address, rich_address)) as backend,
    ):
        training_id = await backend.train(a_spec(HOST, data_mode=DATA_MODE_LOCAL))
        await backend.until(training_id, "RUNNING")
        (session,) = (await backend.get(training_id)).sessions
        assert (session.trainer, session.attempt) == (rich_address, 1)
        assert any("lacks bars" in reason for reason in session.reasons)
        rich.refusal = poor.refusal
        refused = await backend.train(a_spec(HOST, data_mode=DATA_MODE_LOCAL))
        assert (await backend.until(refused, "FAILED")).error.reason == "SERIES_NOT_FOUND"


async def test_trainer_of_another_version_is_passed_over_not_fatal(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.refusal = VersionSkewError("backend 0.1.0, trainer 0.2.0")
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.asked_to_train)
        trainer.refusal = None
        await backend.until(training_id, "RUNNING")


async def test_cancel_while_the_trainer_has_not_answered_train_is_obeyed_at_once(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.may_train.clear()
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: trainer.asked_to_train)
        answer = await backend.cancel(training_id)
        assert answer.training.state == states.TRAINING_STATE_CANCELLED
        assert not trainer.sessions
        trainer.may_train.set()


async def test_stopping_backend_leaves_its_sessions_on_trainers_alone(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        async with running_backend(tmp_path, trainers=(address,)) as backend:
            await backend.until(await backend.train(a_spec(HOST)), "RUNNING")
            trainer.may_train.clear()
            trainer.num_slots = 2
            await backend.train(a_spec(HOST))
            await eventually(lambda: len(trainer.asked_to_train) == 2, what="a hand-over")
        trainer.may_train.set()
        assert trainer.cancels == []


async def test_stop_of_a_local_training_survives_a_kill_of_the_backend_as_a_stop(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.may_cancel.clear()
    context = running_backend(tmp_path, engine=engine, kill_limit_s=0.0)
    backend = await context.__aenter__()
    training_id = await backend.train()
    session = (await eventually(lambda: engine.started))[0]
    session.emit(step(TrainingStep.TRAINING))
    checkpoint = session.keep_checkpoint(5)
    stop = asyncio.create_task(refusal(backend.cancel(training_id, save_checkpoint=True)))
    await backend.until(training_id, "CANCELLING")
    assert checkpoint.path.exists()
    await checkpoints_of(tmp_path, training_id).adopt(training_id, checkpoint)
    backend.app.hurry()
    await context.__aexit__(None, None, None)
    await asyncio.gather(stop, return_exceptions=True)  # the backend has gone under it
    async with running_backend(tmp_path) as backend:
        training = await backend.get(training_id)
        assert training.state == states.TRAINING_STATE_STOPPED
        assert content_of(training.checkpoint_path) == b"weights"


def checkpoints_of(directory: Path, training_id: str) -> CheckpointStore:
    return CheckpointStore(directory / "state" / "checkpoints", max_size_bytes=1 << 20)
