"""Trainings on a trainer: placing, following, falling back, losing, restarting."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ktrdr.training.v1 import retry_mode_pb2
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states
from ktrdr.training.v1.data_mode_pb2 import DATA_MODE_LOCAL
from ktrdr.training.v1.scheduling_pb2 import RetryPolicy, Scheduling

from ktrdr_core.domain.progress import TrainingStep
from ktrdr_core.errors import InvalidInputError, NoSlotError, SeriesNotFoundError, TooFewBarsError, UnavailableError
from tests.kit.backend import (
    HOST,
    LOCAL,
    FakeTrainer,
    a_spec,
    batch,
    epoch,
    refusal,
    running_backend,
    running_trainer,
    step,
)
from tests.kit.eventually import eventually


async def test_training_on_a_trainer_shows_every_event_once_and_stores_the_model(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        watching = asyncio.create_task(backend.watch(training_id))
        await eventually(lambda: trainer.sessions)
        for one in (step(TrainingStep.TRAINING), batch(1), epoch(1), epoch(2)):
            await trainer.only.log.append(one)
        answer = await trainer.finish(trainer.only)
        responses = await watching
        durable = [one for response in responses for one in response.events if one.WhichOneof("detail") != "batch"]
        assert [one.sequence for one in durable] == list(range(1, 8))
        assert [one.WhichOneof("detail") for one in durable] == [
            *("state", "state", "step", "epoch", "epoch", "state", "state")
        ]
        training = responses[-1].training
        assert training.result.model_path == answer.model.path
        assert training.placement.mode == HOST
        assert [(one.session_id, one.trainer) for one in training.sessions] == [(f"{training_id}-1", address)]


async def test_cold_trainer_is_given_the_time_it_needs_to_accept(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with (
        running_trainer(trainer) as address,
        running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3) as backend,
    ):
        await backend.until(await backend.train(a_spec(HOST)), "RUNNING")
    (limit_s,) = trainer.accept_limits_s
    assert limit_s > 60  # its kernels are compiled and torch is loaded before the first worker starts


async def test_restarted_backend_goes_on_where_it_stopped(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        async with running_backend(tmp_path, trainers=(address,)) as backend:
            training_id = await backend.train(a_spec(HOST))
            await eventually(lambda: trainer.sessions)
            await trainer.only.log.append(epoch(1))
            seen = await backend.until_sequence(training_id, 3)
        await trainer.only.log.append(epoch(2))
        async with running_backend(tmp_path, trainers=(address,)) as backend:
            watching = asyncio.create_task(backend.watch(training_id, after=seen))
            await eventually(lambda: trainer.asked_after[-1] == 3)  # QUEUED, RUNNING, the first epoch
            await trainer.finish(trainer.only)
            durable = [one for response in await watching for one in response.events]
    assert [one.sequence for one in durable] == [4, 5, 6]
    assert durable[0].epoch.epoch == 2
    assert durable[-1].state.state == states.TRAINING_STATE_COMPLETED


async def test_broken_connection_to_the_trainer_loses_and_repeats_nothing(tmp_path: Path) -> None:
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
            durable = [one for response in await backend.watch(training_id) for one in response.events]
        assert [one.epoch.epoch for one in durable if one.WhichOneof("detail") == "epoch"] == [1, 2]
        assert [one.sequence for one in durable] == list(range(1, 7))
    finally:
        await context.__aexit__(None, None, None)


NEVER = Scheduling(retry_policy=RetryPolicy(mode=retry_mode_pb2.RETRY_MODE_NEVER))


async def test_lost_trainer_fails_a_training_without_another_attempt(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,), trainer_lost_s=0.3)
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST), scheduling=NEVER)
        await backend.until(training_id, "RUNNING")
    try:
        last = (await backend.watch(training_id))[-1].training
        assert (last.state, last.error.reason) == (states.TRAINING_STATE_FAILED, "TRAINER_LOST")
        assert address in last.error.message
    finally:
        await context.__aexit__(None, None, None)


async def test_trainer_that_forgot_the_session_loses_the_attempt(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address:
        context = running_backend(tmp_path, trainers=(address,))
        backend = await context.__aenter__()
        training_id = await backend.train(a_spec(HOST), scheduling=NEVER)
        await backend.until(training_id, "RUNNING")
    try:
        trainer.sessions.clear()
        async with running_trainer(trainer, address):
            last = (await backend.watch(training_id))[-1].training
        assert last.error.reason == "TRAINER_LOST"
        assert "no longer knows session" in last.error.message
    finally:
        await context.__aexit__(None, None, None)


async def test_what_the_trainer_refuses_fails_the_training_with_its_reason(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.refusal = TooFewBarsError("12 rows are left")
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        last = (await backend.watch(await backend.train(a_spec(HOST))))[-1].training
    assert (last.error.reason, last.error.message) == ("TOO_FEW_BARS", "12 rows are left")


async def test_full_trainer_keeps_the_training_queued_until_a_slot_is_free(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.refusal = NoSlotError("every slot is taken", retry_after_s=0.01)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        first, second = await backend.train(a_spec(HOST)), await backend.train(a_spec(HOST))
        assert (await backend.until_waiting(first)).position == 1
        assert await backend.state(first) == "QUEUED"
        assert (await backend.cancel(first)).training.state == states.TRAINING_STATE_CANCELLED
        trainer.refusal = None
        await backend.until(second, "RUNNING")
        assert [session.request.training_id for session in trainer.sessions.values()] == [second]


async def test_no_healthy_trainer_falls_back_to_this_machine_and_warns(tmp_path: Path) -> None:
    async with running_backend(tmp_path, trainers=("127.0.0.1:1",)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        training = await backend.get(training_id)
        assert training.placement.mode == LOCAL
        assert any("127.0.0.1:1 is not healthy" in reason for reason in training.placement.reasons)
        assert len(training.warnings) == 1


async def test_required_gpu_goes_to_the_trainer_that_has_one_and_fails_without(tmp_path: Path) -> None:
    plain, gpu = FakeTrainer(tmp_path / "a"), FakeTrainer(tmp_path / "b", num_gpus=1)
    async with (
        running_trainer(plain) as plain_address,
        running_trainer(gpu) as gpu_address,
        running_backend(tmp_path, trainers=(plain_address, gpu_address)) as backend,
    ):
        training_id = await backend.train(a_spec(HOST, require_gpu=True))
        await backend.until(training_id, "RUNNING")
        assert (await backend.get(training_id)).placement.trainer == gpu_address
        last = (await backend.watch(await backend.train(a_spec(HOST, num_gpus=2))))[-1].training
        assert last.error.reason == "NO_EXECUTION_PLACE"
        listed = await backend.trainings.ListTrainers(pb.ListTrainersRequest())
        assert [(one.is_healthy, one.has_gpu) for one in listed.trainers] == [(True, False), (True, True)]


async def test_series_that_no_trainer_has_is_refused_at_the_door(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    missing = SeriesNotFoundError("there are no bars of XAUUSD 1h; there are: EURUSD 1h")
    trainer.refusal = missing
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        found = await refusal(backend.train(a_spec(HOST, symbols=["XAUUSD"], data_mode=DATA_MODE_LOCAL)))
        assert isinstance(found, SeriesNotFoundError)
        assert found.message == missing.message
        assert len((await backend.trainings.ListTrainings(pb.ListTrainingsRequest())).trainings) == 0


async def test_series_that_only_an_absent_trainer_can_have_is_unavailable(tmp_path: Path) -> None:
    async with running_backend(tmp_path, trainers=("127.0.0.1:1",)) as backend:
        found = await refusal(backend.train(a_spec(HOST, symbols=["XAUUSD"], data_mode=DATA_MODE_LOCAL)))
        assert isinstance(found, UnavailableError)
        assert "XAUUSD" in found.message
        assert len((await backend.trainings.ListTrainings(pb.ListTrainingsRequest())).trainings) == 0


async def test_series_only_the_trainer_has_is_left_to_the_trainer(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST, symbols=["XAUUSD"], data_mode=DATA_MODE_LOCAL))
        await backend.until(training_id, "RUNNING")


async def test_watcher_ahead_of_the_log_is_refused_and_one_at_its_end_gets_the_training(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        training_id = await backend.train()
        assert isinstance(await refusal(backend.watch(training_id, after=99)), InvalidInputError)
        await backend.cancel(training_id)
        end = (await backend.get(training_id)).last_sequence
        responses = await backend.watch(training_id, after=end)
        assert [len(response.events) for response in responses] == [0, 0]
        assert responses[-1].training.state == states.TRAINING_STATE_CANCELLED


async def test_quiet_stream_has_heartbeats_and_ends_unavailable_when_the_backend_stops(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        training_id = await backend.train()
        await backend.until(training_id, "RUNNING")
        end = (await backend.get(training_id)).last_sequence
        stream = backend.trainings.StreamProgress(pb.StreamProgressRequest(training_id=training_id, after_sequence=end))
        assert (await stream.read()).HasField("training")
        heartbeat = await stream.read()
        assert not heartbeat.events
        stream.cancel()
