"""A trainer whose disk is full: it takes nothing new, what runs goes on, and every state is written once there is room.

The kernel refuses its writes as a full disk does: RLIMIT_FSIZE of the running process is set to 0.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import grpc.aio
import pytest
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.errors import KtrdrError, StorageError
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.eventually import eventually
from tests.kit.trainer_process import TrainerProcess, first_epoch, train_request, trainer_process

LONG = 100_000


def fill_disk(trainer: TrainerProcess) -> None:
    resource.prlimit(trainer.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def free_disk(trainer: TrainerProcess) -> None:
    resource.prlimit(trainer.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def refusal_of_train(trainer: TrainerProcess, session_id: str) -> KtrdrError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer.stub.Train(train_request(session_id, epochs=1))
    return from_rpc_error(caught.value)


async def test_a_full_disk_refuses_what_is_new_and_loses_nothing_of_what_runs(tmp_path: Path) -> None:
    async with trainer_process(tmp_path, "--slots", "2") as trainer:
        await trainer.stub.Train(train_request("runs", epochs=LONG))
        pid = await first_epoch(trainer, "runs")
        fill_disk(trainer)

        error = await refusal_of_train(trainer, "refused")

        assert isinstance(error, StorageError)
        assert names_in(tmp_path / "trainer" / "sessions") == ["runs"]
        status = (await trainer.stub.GetSession(pb.GetSessionRequest(session_id="runs"))).session
        assert (status.state, status.worker_pid) == (states.TRAINING_STATE_RUNNING, pid)
        seen = status.last_sequence
        free_disk(trainer)

        async def goes_on() -> bool:
            found = (await trainer.stub.GetSession(pb.GetSessionRequest(session_id="runs"))).session
            return found.state == states.TRAINING_STATE_RUNNING and found.last_sequence > seen

        await eventually(goes_on, what="epochs after the disk was full")
        fill_disk(trainer)
        os.kill(pid, signal.SIGKILL)
        await trainer.stub.GetServerInfo(pb.GetServerInfoRequest())
        free_disk(trainer)
        answers = await trainer.watch("runs")
        await trainer.stub.Train(train_request("refused", epochs=1))
        again = (await trainer.watch("refused"))[-1].session

    assert answers[-1].session.error.reason == "WORKER_DIED"
    durable = [event.sequence for answer in answers for event in answer.events if not event.HasField("batch")]
    assert durable == list(range(1, len(durable) + 1))
    epochs = [event.epoch.epoch for answer in answers for event in answer.events if event.HasField("epoch")]
    assert epochs == list(range(1, len(epochs) + 1))
    assert again.state == states.TRAINING_STATE_COMPLETED
