"""The backend as a process: restarted, killed, drained, left alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
from ktrdr.training.v1 import training_pb2, training_service_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.rpc.channel import open_channel
from tests.kit.backend import HOST, LOCAL, a_spec, become
from tests.kit.builders import strategy_text
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.processes import ServiceProcess, a_service, backend_flags, trainer_flags
from tests.kit.trainer_process import is_alive


@asynccontextmanager
async def trainings_of(service: ServiceProcess) -> AsyncIterator[Any]:
    async with open_channel(service.address) as channel:
        yield training_service_pb2_grpc.TrainingServiceStub(channel)


async def train(stub: Any, mode: Any, *, epochs: int) -> str:
    spec = a_spec(mode, epochs=epochs)
    spec.strategy.yaml = strategy_text(name=f"processes_{epochs}")
    training_id: str = (await stub.Train(pb.TrainRequest(spec=spec))).training.training_id
    return training_id


async def get(stub: Any, training_id: str) -> training_pb2.Training:
    training: training_pb2.Training = (await stub.GetTraining(pb.GetTrainingRequest(training_id=training_id))).training
    return training


async def until_epoch(stub: Any, training_id: str, number: int) -> int:
    """Watch until an epoch has ended; return the sequence seen last."""
    stream = stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id))
    async for response in stream:
        for event in response.events:
            if event.WhichOneof("detail") == "epoch" and event.epoch.epoch >= number:
                stream.cancel()
                sequence: int = event.sequence
                return sequence
    raise AssertionError(f"epoch {number} was never seen: {await get(stub, training_id)}")


def workers_of(service: ServiceProcess) -> list[int]:
    """Return the pids of the workers under a service: the children of its fork server."""
    found = []
    for child in psutil.Process(service.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            found += [worker.pid for worker in child.children()]
    return [pid for pid in found if is_alive(pid)]


async def test_backend_killed_in_the_middle_of_a_host_training_completes_it_after_a_restart(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path)) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0"]
        with a_service("backend_service", *flags) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=25)
                seen = await until_epoch(stub, training_id, 2)
            backend.kill()
        with a_service("backend_service", *flags) as backend:  # on another port
            async with trainings_of(backend) as stub:
                events = []
                request = pb.StreamProgressRequest(training_id=training_id, after_sequence=seen)
                async for response in stub.StreamProgress(request):
                    events += [event for event in response.events if event.WhichOneof("detail") != "batch"]
                    last = response
                assert [event.sequence for event in events] == list(range(seen + 1, seen + 1 + len(events)))
                epochs = [event.epoch.epoch for event in events if event.WhichOneof("detail") == "epoch"]
                assert epochs == list(range(epochs[0], 26))
                assert last.training.state == states.TRAINING_STATE_COMPLETED
                assert any((tmp_path / "backend" / "models").glob("*/*_v1/model.pt"))


async def test_backend_killed_in_the_middle_of_a_local_training_fails_it_and_runs_the_queued_one(
    tmp_path: Path,
) -> None:
    flags = backend_flags(tmp_path)
    with a_service("backend_service", *flags) as backend:
        async with trainings_of(backend) as stub:
            running = await train(stub, LOCAL, epochs=100_000)
            queued = await train(stub, LOCAL, epochs=2)
            await until_epoch(stub, running, 1)
        workers = workers_of(backend)
        assert workers
        backend.kill()
        await eventually(lambda: not any(map(is_alive, workers)), what="the end of the worker")
    with a_service("backend_service", *flags) as backend:
        async with trainings_of(backend) as stub:
            failed = await get(stub, running)
            assert (failed.state, failed.error.reason) == (states.TRAINING_STATE_FAILED, "WORKER_DIED")

            async def has_completed() -> bool:
                return (await get(stub, queued)).state == states.TRAINING_STATE_COMPLETED

            await become(has_completed)
            third = await train(stub, LOCAL, epochs=100_000)
            await until_epoch(stub, third, 1)
            workers = workers_of(backend)
            assert workers
            answer = await stub.Cancel(pb.CancelRequest(training_id=third))
            assert answer.training.state == states.TRAINING_STATE_CANCELLED
            assert not any(map(is_alive, workers))
        async with trainings_of(backend) as stub:
            fourth = await train(stub, LOCAL, epochs=100_000)
            await until_epoch(stub, fourth, 1)
            backend.process.send_signal(signal.SIGTERM)
            with_drain = await refused_train(stub)
            assert with_drain in (grpc.StatusCode.UNAVAILABLE,)
        assert await asyncio.to_thread(backend.end, signal.SIGTERM) == 0  # the second signal is immediate


async def refused_train(stub: Any) -> grpc.StatusCode:
    async def probe() -> grpc.StatusCode | None:
        try:
            await train(stub, LOCAL, epochs=1)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return None

    return await become(probe)


async def test_trainer_killed_in_the_middle_fails_the_training_as_lost(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path)) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0", "--exit-when-idle-s", "3"]
        with a_service("backend_service", *flags, environment={"KTRDR_TRAINER_LOST_S": "0.5"}) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=100_000)
                await until_epoch(stub, training_id, 1)
                trainer.kill()
                stream = stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id))
                responses = [response async for response in stream]
            last = responses[-1].training
            assert (last.state, last.error.reason) == (states.TRAINING_STATE_FAILED, "TRAINER_LOST")
            # Nothing trains, nobody asks: it ends by itself.
            assert await asyncio.to_thread(backend.process.wait, PATIENCE_S) == 0


async def test_second_backend_on_a_data_directory_is_refused_with_one_sentence(tmp_path: Path) -> None:
    flags = [*backend_flags(tmp_path), "--slots", "0"]
    with a_service("backend_service", *flags) as backend:
        command = [sys.executable, "-m", "backend_service", *flags]
        second = await asyncio.to_thread(
            subprocess.run,
            [*command, "--port", "0", "--log-level", "ERROR"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 3
        assert second.stderr.strip().endswith("stop it, or choose another --data-dir")
        other = backend_flags(tmp_path / "other")
        taken = await asyncio.to_thread(
            subprocess.run,
            [*command[:3], *other, "--slots", "0", "--port", backend.port],
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 3
        assert f"cannot listen on 127.0.0.1:{backend.port}" in taken.stderr
        assert "Traceback" not in second.stderr + taken.stderr
