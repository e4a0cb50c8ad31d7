"""The trainer as a process that is killed, restarted and drained."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.errors import DrainingError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.grpc_server import serving
from tests.kit.model_sink import ModelSink
from tests.kit.trainer_process import first_epoch, is_alive, train_request, trainer_process

LONG = 100_000


async def test_a_killed_trainer_picks_up_every_session_where_it_was(tmp_path: Path) -> None:
    """One that ended, one that uploads, one that trains, and one whose worker hangs."""
    sink = ModelSink()
    sink.hold = asyncio.Event()
    async with serving(sink.add_to) as target:
        async with trainer_process(tmp_path, "--slots", "3") as trainer:
            await trainer.stub.Train(train_request("ended", epochs=1))
            before = [event for answer in await trainer.watch("ended") for event in answer.events]
            await trainer.stub.Train(train_request("uploading", epochs=1, upload_target=target))
            await eventually(lambda: sink.headers)
            await trainer.stub.Train(train_request("training", epochs=LONG))
            await trainer.stub.Train(train_request("hanging", epochs=LONG))
            training_pid = await first_epoch(trainer, "training")
            hanging_pid = await first_epoch(trainer, "hanging")
            status = await trainer.stub.GetSession(pb.GetSessionRequest(session_id="training"))
            seen = status.session.last_sequence
            os.kill(hanging_pid, signal.SIGSTOP)
            await trainer.end(signal.SIGKILL)
            await eventually(lambda: not is_alive(training_pid), what="end of the worker")
        assert sink.published == {}
        sink.hold = None
        async with trainer_process(tmp_path) as trainer:
            assert not is_alive(hanging_pid)
            after = [event for answer in await trainer.watch("ended") for event in answer.events]
            rest = await trainer.watch("training", after=seen)
            hung = (await trainer.watch("hanging"))[-1].session
            uploaded = (await trainer.watch("uploading"))[-1].session

    assert after == [event for event in before if event.WhichOneof("detail") != "batch"]
    lost = rest[-1].session
    assert (lost.state, lost.error.reason) == (states.TRAINING_STATE_FAILED, "TRAINER_LOST")
    assert lost.error.message.startswith("the trainer stopped while it ran")
    assert lost.last_sequence > seen
    assert hung.error.reason == "TRAINER_LOST"
    assert uploaded.state == states.TRAINING_STATE_COMPLETED
    assert len(sink.published) == 1


async def test_sigterm_drains_a_training_that_can_end(tmp_path: Path) -> None:
    async with trainer_process(tmp_path, "--drain-timeout-s", "120") as trainer:
        await trainer.stub.Train(train_request("s1", epochs=3))
        status = await trainer.stub.GetSession(pb.GetSessionRequest(session_id="s1"))
        os.kill(status.session.worker_pid, signal.SIGSTOP)  # it must not end before the drain begins
        watching = asyncio.create_task(trainer.watch("s1"))
        trainer.process.send_signal(signal.SIGTERM)
        async with open_channel(trainer.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)

            async def is_draining() -> bool:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
                return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

            await eventually(is_draining)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await trainer.stub.Train(train_request("late"))
        os.kill(status.session.worker_pid, signal.SIGCONT)
        answers = await watching
        exit_status = await asyncio.wait_for(trainer.process.wait(), PATIENCE_S)

    assert isinstance(from_rpc_error(caught.value), DrainingError)
    assert answers[-1].session.state == states.TRAINING_STATE_COMPLETED
    assert exit_status == 0


async def drain_ends_what_does_not_end(
    directory: Path, limit_s: str, *signals: signal.Signals, has_checkpoint: bool
) -> None:
    async with trainer_process(directory, "--drain-timeout-s", limit_s) as trainer:
        await trainer.stub.Train(train_request("s1", epochs=LONG))
        pid = await first_epoch(trainer, "s1")
        watching = asyncio.create_task(trainer.watch("s1"))
        for number in signals:
            trainer.process.send_signal(number)
        last = (await watching)[-1].session
        status = await asyncio.wait_for(trainer.process.wait(), PATIENCE_S)

    assert (last.state, last.error.reason) == (states.TRAINING_STATE_FAILED, "DRAINING")
    assert ("its checkpoint of epoch" in last.error.message) == has_checkpoint
    assert last.HasField("checkpoint") == has_checkpoint
    assert status == 0
    assert not is_alive(pid)


async def test_a_drain_ends_what_does_not_end_after_its_limit_or_at_the_second_signal(tmp_path: Path) -> None:
    await asyncio.gather(  # most of either is the start of a trainer
        drain_ends_what_does_not_end(tmp_path / "limit", "0.2", signal.SIGTERM, has_checkpoint=True),
        drain_ends_what_does_not_end(tmp_path / "second", "3600", signal.SIGTERM, signal.SIGINT, has_checkpoint=False),
    )
