"""TrainerService over a real server: accepting, streaming, cancelling and delivering, with scripted workers."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from datetime import UTC
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_service_pb2_grpc
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.domain.progress import BatchDetail, EpochDetail, StepDetail, TrainingStep
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    AlreadyExistsError,
    DrainingError,
    IllegalStateError,
    InvalidInputError,
    InvalidSpecError,
    InvalidStrategyError,
    KtrdrError,
    NoSlotError,
    SeriesNotFoundError,
    SessionNotFoundError,
    TrainingNotFoundError,
    VersionSkewError,
)
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.training.checkpoint_file import LoopPosition
from tests.kit.engine import write_checkpoint
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.grpc_server import serving
from tests.kit.model_sink import ModelSink
from tests.kit.scripted_engine import ScriptedEngine
from tests.kit.trainer_house import House, house, one_cpu, refusal, train_request
from trainer_service.app import TrainerApp

EPOCH = EpochDetail(
    epoch=1,
    total_epochs=2,
    train_loss=1.0,
    train_accuracy=0.5,
    val_loss=1.0,
    val_accuracy=0.5,
    learning_rate=0.01,
    rows_per_second=1.0,
)


@pytest.fixture
async def trainer(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as found:
        yield found


async def test_a_session_streams_from_its_first_state_to_its_last(trainer: House) -> None:
    await trainer.train()
    watching = asyncio.create_task(trainer.watch())
    trainer.worker.emit(StepDetail(step=TrainingStep.TRAINING, title="Training model"), 0.06)
    trainer.worker.emit(EPOCH, 0.5)
    path = trainer.worker.finish()

    answers = await watching
    events = [event for answer in answers for event in answer.events]

    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert [event.WhichOneof("detail") for event in events] == ["state", "step", "epoch", "state", "state"]
    assert [event.state.state for event in events if event.HasField("state")] == [
        states.TRAINING_STATE_RUNNING,
        states.TRAINING_STATE_UPLOADING,
        states.TRAINING_STATE_COMPLETED,
    ]
    assert answers[0].HasField("session")
    last = answers[-1].session
    assert last.state == states.TRAINING_STATE_COMPLETED
    assert (last.artifact_path, last.progress.overall_fraction) == (str(path), 1.0)
    assert list(last.result.features)
    assert last.HasField("end_time")


async def test_a_watcher_who_returns_sees_only_what_is_new(trainer: House) -> None:
    await trainer.train()
    trainer.worker.emit(EPOCH)
    trainer.worker.finish()
    await trainer.until(states.TRAINING_STATE_COMPLETED)

    events = [event.sequence for answer in await trainer.watch(after=2) for event in answer.events]

    assert events == [3, 4]
    assert [len(answer.events) for answer in await trainer.watch(after=4)] == [0]


async def test_a_quiet_session_beats_each_second(trainer: House) -> None:
    await trainer.train()
    await trainer.until(states.TRAINING_STATE_RUNNING)
    call = trainer.stub.StreamProgress(pb.StreamProgressRequest(session_id="s1"))
    answers = [await call.read() for _ in range(3)]
    call.cancel()

    beat = answers[-1]
    assert isinstance(beat, pb.StreamProgressResponse)
    assert not beat.events
    assert not beat.HasField("session")


async def test_the_status_has_progress_resources_and_the_worker(trainer: House) -> None:
    await trainer.train()
    trainer.worker.pid = 4711
    trainer.worker.emit(EPOCH, 0.25)
    trainer.worker.emit(
        BatchDetail(
            epoch=2,
            total_epochs=2,
            batch=7,
            total_batches_per_epoch=9,
            train_loss=1.0,
            train_accuracy=0.5,
            learning_rate=0.1,
            rows_per_second=5.0,
        ),
        0.3,
    )

    async def with_batch() -> bool:
        return (await trainer.session()).progress.batch.batch == 7

    await eventually(with_batch)
    session = await trainer.session()
    assert (session.worker_pid, session.resource_usage.resident_memory_bytes) == (4711, 1_000)
    assert (session.progress.overall_fraction, session.progress.epoch.epoch) == (0.3, 1)
    assert (session.training_id, session.attempt, session.last_sequence) == ("t1", 1, 2)


async def test_the_same_order_twice_is_one_session(trainer: House) -> None:
    first, second = await asyncio.gather(trainer.train(), trainer.train())

    assert first.session_id == second.session_id == "s1"
    assert len(trainer.engine.sessions) == 1
    trainer.worker.finish()
    await trainer.until(states.TRAINING_STATE_COMPLETED)
    assert (await trainer.train()).state == states.TRAINING_STATE_COMPLETED


@pytest.mark.parametrize("change", [{"epochs": 3}, {"training_id": "other"}, {"attempt": 2}])
async def test_an_id_with_other_content_is_refused(trainer: House, change: dict[str, Any]) -> None:
    await trainer.train()

    error = await refusal(trainer.stub.Train(train_request(**change)))

    assert isinstance(error, AlreadyExistsError)
    assert len(trainer.engine.sessions) == 1


@pytest.mark.parametrize(
    ("change", "cls"),
    [
        ({"session_id": "../x"}, InvalidSpecError),
        ({"session_id": ""}, InvalidSpecError),
        ({"attempt": -1}, InvalidSpecError),
        ({"batch_size": 0}, InvalidSpecError),
        ({"symbols": ["NOSUCH"]}, SeriesNotFoundError),
    ],
)
async def test_bad_input_is_refused_at_the_door_and_leaves_nothing(
    trainer: House, tmp_path: Path, change: dict[str, Any], cls: type[KtrdrError]
) -> None:
    message = train_request()
    for name, value in change.items():
        if isinstance(value, list):
            getattr(message.spec, name).extend(value)
        else:
            setattr(message if name in ("session_id", "attempt") else message.spec, name, value)

    error = await refusal(trainer.stub.Train(message))

    assert isinstance(error, cls)
    assert trainer.engine.sessions == []
    assert list((tmp_path / "state" / "trainer" / "sessions").iterdir()) == []


async def test_validate_only_checks_against_the_bars_here_and_starts_nothing(trainer: House) -> None:
    accepted = await trainer.stub.Train(train_request("", validate_only=True))
    assert not accepted.HasField("session")
    unknown = train_request("", validate_only=True)
    unknown.spec.symbols.append("XAUUSD")
    assert isinstance(await refusal(trainer.stub.Train(unknown)), SeriesNotFoundError)
    assert len((await trainer.stub.ListSessions(pb.ListSessionsRequest())).sessions) == 0


async def test_a_backend_of_another_version_is_refused_and_both_are_named(trainer: House) -> None:
    mine = metadata.version("ktrdr")
    major, minor, *_ = mine.split(".")

    error = await refusal(trainer.stub.Train(train_request(backend_version="99.0.0")))

    assert isinstance(error, VersionSkewError)
    assert error.metadata == {"backend_version": "99.0.0", "trainer_version": mine}
    assert trainer.engine.sessions == []
    await trainer.train(backend_version=f"{major}.{minor}.99")


async def test_a_backend_that_was_upgraded_still_finds_its_session(trainer: House) -> None:
    await trainer.train(backend_version=metadata.version("ktrdr"))

    assert (await trainer.train(backend_version="99.0.0")).session_id == "s1"


async def test_a_train_that_comes_after_its_cancel_starts_nothing(trainer: House) -> None:
    assert isinstance(await refusal(trainer.stub.Cancel(pb.CancelRequest(session_id="s1"))), SessionNotFoundError)

    error = await refusal(trainer.stub.Train(train_request("s1")))

    assert isinstance(error, IllegalStateError)
    assert error.metadata["state"] == "CANCELLED"
    assert trainer.engine.sessions == []
    await trainer.train("s2")


async def test_a_cancel_while_a_session_is_being_accepted_ends_it(trainer: House) -> None:
    trainer.engine.hold_starts = asyncio.Event()
    training = asyncio.create_task(trainer.train())
    await eventually(lambda: trainer.engine.num_waiting == 1)
    cancelling = asyncio.ensure_future(trainer.stub.Cancel(pb.CancelRequest(session_id="s1")))
    # The cancel has reached the trainer once a call made after it is answered.
    await trainer.stub.ListSessions(pb.ListSessionsRequest())
    assert not cancelling.done()

    trainer.engine.hold_starts.set()

    assert (await cancelling).session.state == states.TRAINING_STATE_CANCELLED
    await training
    assert trainer.worker.cancels == [False]


async def test_a_malformed_strategy_names_the_place(trainer: House) -> None:
    message = train_request()
    message.spec.strategy.yaml = "name: x\nfuzy_sets: {}\n"

    error = await refusal(trainer.stub.Train(message))

    assert isinstance(error, InvalidStrategyError)
    assert error.violations


async def test_full_slots_say_when_to_retry_and_a_free_one_is_used(tmp_path: Path) -> None:
    async with house(tmp_path, slots=1) as trainer:
        answers = await asyncio.gather(
            *(trainer.stub.Train(train_request(f"s{number}")) for number in range(8)), return_exceptions=True
        )
        refused = [from_rpc_error(answer) for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]

        assert len(refused) == 7
        assert all(isinstance(error, NoSlotError) and error.retry_after_s > 0 for error in refused)
        assert len((await trainer.stub.ListSessions(pb.ListSessionsRequest())).sessions) == 1
        trainer.worker.finish()
        await eventually(lambda: trainer.engine.num_free_slots == 1)
        await trainer.train("again")


async def test_a_worker_that_fails_is_a_state_with_its_reason(trainer: House) -> None:
    await trainer.train()
    trainer.worker.fail("the loss became NaN in epoch 3", "NON_FINITE_LOSS")

    session = await trainer.until(states.TRAINING_STATE_FAILED)

    assert (session.error.reason, session.error.message) == ("NON_FINITE_LOSS", "the loss became NaN in epoch 3")


async def test_cancel_answers_the_ended_session(trainer: House) -> None:
    await trainer.train()

    answer = await trainer.stub.Cancel(pb.CancelRequest(session_id="s1", cancel_reason="wrong strategy"))

    assert answer.session.state == states.TRAINING_STATE_CANCELLED
    assert answer.session.message == "wrong strategy"
    assert trainer.worker.cancels == [False]


async def test_cancel_with_checkpoint_ends_stopped_and_names_it(trainer: House) -> None:
    await trainer.train()

    answer = await trainer.stub.Cancel(pb.CancelRequest(session_id="s1", save_checkpoint=True))

    assert answer.session.state == states.TRAINING_STATE_STOPPED
    assert answer.checkpoint_path == answer.session.checkpoint_path != ""
    assert trainer.worker.cancels == [True]


async def test_cancel_of_an_ended_session_names_its_state(trainer: House) -> None:
    await trainer.train()
    trainer.worker.finish()
    await trainer.until(states.TRAINING_STATE_COMPLETED)

    error = await refusal(trainer.stub.Cancel(pb.CancelRequest(session_id="s1")))

    assert isinstance(error, IllegalStateError)
    assert error.metadata["state"] == "COMPLETED"


async def test_cancels_at_the_same_time_all_answer_the_end(trainer: House) -> None:
    await trainer.train()

    ended = await asyncio.gather(*(trainer.app.orchestrator.cancel("s1") for _ in range(5)))

    assert {session.state for session in ended} == {TrainingState.CANCELLED}
    events = [event.state.state for answer in await trainer.watch() for event in answer.events]
    assert events.count(states.TRAINING_STATE_CANCELLED) == 1
    assert events.count(states.TRAINING_STATE_CANCELLING) <= 1


@pytest.mark.parametrize("rpc", ["GetSession", "Cancel", "StreamProgress"])
async def test_an_unknown_session_is_not_found(trainer: House, rpc: str) -> None:
    requests = {
        "GetSession": pb.GetSessionRequest(session_id="nobody"),
        "Cancel": pb.CancelRequest(session_id="nobody"),
        "StreamProgress": pb.StreamProgressRequest(session_id="nobody"),
    }
    call = getattr(trainer.stub, rpc)(requests[rpc])

    error = await refusal(call.read() if rpc == "StreamProgress" else call)

    assert isinstance(error, SessionNotFoundError)
    assert error.metadata == {"session_id": "nobody"}


async def test_a_sequence_from_the_future_is_refused(trainer: House) -> None:
    await trainer.train()

    error = await refusal(
        trainer.stub.StreamProgress(pb.StreamProgressRequest(session_id="s1", after_sequence=99)).read()
    )

    assert isinstance(error, InvalidInputError)


async def test_sessions_are_listed_newest_first(trainer: House) -> None:
    await trainer.train("first")
    await trainer.train("second")

    answer = await trainer.stub.ListSessions(pb.ListSessionsRequest())

    assert [session.session_id for session in answer.sessions] == ["second", "first"]


async def test_the_model_is_uploaded_confirmed_and_then_removed_here(trainer: House) -> None:
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        await trainer.train(upload_target=address)
        path = trainer.worker.finish()
        session = await trainer.until(states.TRAINING_STATE_COMPLETED)
        await eventually(lambda: not path.exists())

    assert len(sink.published) == 1
    assert (sink.headers[0].training_id, sink.headers[0].attempt) == ("t1", 1)
    assert "small/EURUSD_1h_v1" in session.message
    events = [event.state.model_path for answer in await trainer.watch() for event in answer.events]
    assert events[-1] == "/models/small/EURUSD_1h_v1"


async def test_a_refused_model_fails_the_session_and_stays(trainer: House) -> None:
    sink = ModelSink()
    sink.refusals_left, sink.error = 1, TrainingNotFoundError("no training t1")
    async with serving(sink.add_to) as address:
        await trainer.train(upload_target=address)
        path = trainer.worker.finish()
        session = await trainer.until(states.TRAINING_STATE_FAILED)

    assert session.error.reason == "TRAINING_NOT_FOUND"
    assert (path / "model.safetensors").exists()
    assert session.artifact_path == str(path)


async def test_a_cancel_while_uploading_aborts_the_upload(trainer: House) -> None:
    sink = ModelSink()
    sink.hold = asyncio.Event()
    async with serving(sink.add_to) as address:
        await trainer.train(upload_target=address)
        trainer.worker.finish()
        await eventually(lambda: sink.headers)
        answer = await trainer.stub.Cancel(pb.CancelRequest(session_id="s1"))

    assert answer.session.state == states.TRAINING_STATE_CANCELLED
    assert sink.published == {}


async def test_a_cancel_after_the_model_was_published_ends_completed(trainer: House) -> None:
    sink = ModelSink()
    sink.hold_answer = asyncio.Event()
    async with serving(sink.add_to) as address:
        await trainer.train(upload_target=address)
        trainer.worker.finish()
        await eventually(lambda: sink.published)
        answer = await trainer.stub.Cancel(pb.CancelRequest(session_id="s1"))

    assert answer.session.state == states.TRAINING_STATE_COMPLETED


async def test_a_backend_that_comes_back_elsewhere_gets_the_model_there(trainer: House) -> None:
    await trainer.train(upload_target="127.0.0.1:1")
    trainer.worker.finish()
    await trainer.until(states.TRAINING_STATE_UPLOADING)
    sink = ModelSink()
    async with serving(sink.add_to) as address:
        await trainer.train(upload_target=address)
        await trainer.until(states.TRAINING_STATE_COMPLETED)

    assert len(sink.published) == 1


async def test_draining_refuses_new_sessions_and_lets_running_ones_end(trainer: House) -> None:
    await trainer.train()
    health: Any = health_pb2_grpc.HealthStub(trainer.channel)
    stopping = asyncio.create_task(trainer.app.stop(30))

    async def is_draining() -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
        return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

    await eventually(is_draining)
    assert isinstance(await refusal(trainer.stub.Train(train_request("late"))), DrainingError)
    watching = asyncio.create_task(trainer.watch())
    trainer.worker.finish()
    answers = await watching
    await stopping

    assert answers[-1].session.state == states.TRAINING_STATE_COMPLETED


async def test_a_drain_that_takes_too_long_stops_what_runs_with_a_checkpoint(trainer: House) -> None:
    await trainer.train()
    watching = asyncio.create_task(trainer.watch())
    await eventually(lambda: trainer.engine.running)

    await trainer.app.stop(0.05)

    last = (await watching)[-1].session
    assert (last.state, last.error.reason) == (states.TRAINING_STATE_FAILED, "DRAINING")
    assert trainer.worker.cancels == [True]


async def test_a_second_signal_ends_the_drain_at_once(trainer: House) -> None:
    await trainer.train()
    stopping = asyncio.create_task(trainer.app.stop(3_600))
    trainer.app.hurry()

    await asyncio.wait_for(stopping, PATIENCE_S)

    assert trainer.engine.running == []
    assert trainer.worker.cancels == [False]
    summary = trainer.app.orchestrator.session("s1").log.summary
    assert (summary.state, summary.error_reason) == (TrainingState.FAILED, "DRAINING")


async def test_a_watcher_of_an_upload_is_told_to_reconnect_when_the_trainer_stops(trainer: House) -> None:
    await trainer.train(upload_target="127.0.0.1:1")
    trainer.worker.finish()
    await trainer.until(states.TRAINING_STATE_UPLOADING)
    stream = trainer.stub.StreamProgress(pb.StreamProgressRequest(session_id="s1"))
    await stream.read()

    await trainer.app.stop(0)

    async def read_on() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    assert isinstance(await refusal(read_on()), DrainingError)


async def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path) as trainer:
        await trainer.train(upload_target="127.0.0.1:1")
        trainer.worker.finish()
        before = await trainer.until(states.TRAINING_STATE_UPLOADING)
    sink = ModelSink()
    async with serving(sink.add_to) as address, house(tmp_path) as trainer:
        assert (await trainer.session()).state == states.TRAINING_STATE_UPLOADING
        await trainer.train(upload_target=address)
        after = await trainer.until(states.TRAINING_STATE_COMPLETED)

    assert after.result.artifact_digest == before.result.artifact_digest
    assert len(sink.published) == 1


async def test_ended_sessions_are_listed_after_a_restart_with_their_whole_log(tmp_path: Path) -> None:
    async with house(tmp_path) as trainer:
        await trainer.train()
        trainer.worker.emit(EPOCH)
        trainer.worker.finish()
        await trainer.until(states.TRAINING_STATE_COMPLETED)
        before = [event for answer in await trainer.watch() for event in answer.events]
    async with house(tmp_path) as trainer:
        after = [event for answer in await trainer.watch() for event in answer.events]
        session = await trainer.session()

    assert after == before
    assert session.HasField("result")


async def test_two_trainers_do_not_share_a_directory(trainer: House) -> None:
    second = TrainerApp(trainer.app.settings, engine=ScriptedEngine())

    with pytest.raises(IllegalStateError, match="another trainer"):
        await second.start()
    await second.stop(0)


async def test_the_server_tells_what_it_is_and_has(trainer: House) -> None:
    await trainer.train()

    info = (await trainer.stub.GetServerInfo(pb.GetServerInfoRequest())).trainer

    assert (info.num_slots, info.num_free_slots, info.is_draining) == (2, 1, False)
    assert [(device.device_type, device.memory_available_gb) for device in info.devices] == [("cpu", 8.0)]
    assert info.version
    assert info.python_version
    assert info.HasField("start_time")
    assert str(UUID(info.trainer_id)) == info.trainer_id
    assert abs(info.current_time.ToDatetime(UTC).timestamp() - time.time()) < PATIENCE_S
    assert info.disk_free_bytes > 0


async def test_a_session_that_ended_long_ago_is_forgotten_but_an_only_copy_stays(tmp_path: Path) -> None:
    sink = ModelSink()
    async with serving(sink.add_to) as address, house(tmp_path) as trainer:
        await trainer.train("kept")
        kept = trainer.worker.finish()
        await trainer.train("uploaded", upload_target=address)
        trainer.worker.finish()
        await trainer.until(states.TRAINING_STATE_COMPLETED, "uploaded")
        await trainer.until(states.TRAINING_STATE_COMPLETED, "kept")
    settings = trainer.app.settings.model_copy(update={"keep_ended_s": 0.0})
    app = TrainerApp(settings, engine=ScriptedEngine(), probe=one_cpu)
    await app.start()
    try:
        await eventually(lambda: not (settings.sessions_dir / "uploaded").exists())
        async with open_channel(f"127.0.0.1:{app.port}") as channel:
            stub: trainer_service_pb2_grpc.TrainerServiceAsyncStub
            stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
            assert list((await stub.ListSessions(pb.ListSessionsRequest())).sessions) == []
    finally:
        await app.stop(0)

    assert (kept / "model.safetensors").exists()


async def test_a_full_disk_is_waited_out_and_the_end_is_not_lost(
    trainer: House, caplog: pytest.LogCaptureFixture
) -> None:
    await trainer.train()
    await trainer.until(states.TRAINING_STATE_RUNNING)
    session = trainer.app.orchestrator.session("s1")
    journal = session._journal
    descriptor, journal._fd = journal._fd, os.open("/dev/full", os.O_WRONLY)
    trainer.worker.fail("the loss became NaN", "NON_FINITE_LOSS")
    await eventually(lambda: "cannot be written" in caplog.text)
    assert (await trainer.session()).state == states.TRAINING_STATE_RUNNING

    os.close(journal._fd)
    journal._fd = descriptor

    assert (await trainer.until(states.TRAINING_STATE_FAILED)).error.reason == "NON_FINITE_LOSS"


async def test_the_engine_is_warmed_up_beside_the_start(trainer: House) -> None:
    await eventually(lambda: trainer.engine.num_warm_ups == 1)


@pytest.mark.parametrize(("save_checkpoint", "state"), [(True, "STOPPED"), (False, "CANCELLED")])
async def test_a_restart_in_the_middle_of_a_stop_keeps_the_checkpoint_that_was_asked_for(
    tmp_path: Path, save_checkpoint: bool, state: str
) -> None:
    async with house(tmp_path) as trainer:
        await trainer.train()
        await trainer.until(states.TRAINING_STATE_RUNNING)
        copy = tmp_path / "killed"
        path = trainer.worker.job.work_dir / "checkpoints" / "checkpoint.safetensors"
        write_checkpoint(path, LoopPosition(epoch=6, batches_done=0))
        trainer.worker.hold_cancels = asyncio.Event()
        cancelling = asyncio.ensure_future(
            trainer.stub.Cancel(pb.CancelRequest(session_id="s1", save_checkpoint=save_checkpoint))
        )
        await trainer.until(states.TRAINING_STATE_CANCELLING)
        shutil.copytree(tmp_path / "state", copy / "state")  # what a killed trainer leaves
        shutil.copytree(tmp_path / "bars", copy / "bars")
        trainer.worker.hold_cancels.set()
        await cancelling
    async with house(copy) as trainer:
        session = await trainer.until(states.TrainingState.Value(f"TRAINING_STATE_{state}"))

    assert session.HasField("checkpoint") == save_checkpoint
    assert session.checkpoint_path == (str(copy / path.relative_to(tmp_path)) if save_checkpoint else "")
    if save_checkpoint:
        assert session.checkpoint.epoch == 5
        assert "checkpoint of epoch 5" in session.message
