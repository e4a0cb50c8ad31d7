"""The backend as a process: restarted, killed, drained, left alone."""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
from ktrdr.training.v1 import retry_mode_pb2, training_pb2, training_service_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states
from ktrdr.training.v1.scheduling_pb2 import RetryPolicy, Scheduling

from backend_service.orchestration.host import READ_WATCHDOG_S
from ktrdr_core.errors import StorageError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.backend import HOST, LOCAL, a_spec, become
from tests.kit.builders import strategy_text
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.processes import ServiceProcess, a_service, backend_flags, trainer_flags
from tests.kit.trainer_process import is_alive


@asynccontextmanager
async def trainings_of(service: ServiceProcess) -> AsyncIterator[Any]:
    async with open_channel(service.address) as channel:
        yield training_service_pb2_grpc.TrainingServiceStub(channel)


NEVER = Scheduling(retry_policy=RetryPolicy(mode=retry_mode_pb2.RETRY_MODE_NEVER))


async def train(stub: Any, mode: Any, *, epochs: int, scheduling: Scheduling | None = None) -> str:
    spec = a_spec(mode, epochs=epochs)
    spec.strategy.yaml = strategy_text(name=f"processes_{epochs}")
    request = pb.TrainRequest(spec=spec, scheduling=scheduling)
    training_id: str = (await stub.Train(request)).training.training_id
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


async def test_backend_killed_in_the_middle_of_a_local_training_fails_one_without_another_attempt(
    tmp_path: Path,
) -> None:
    flags = backend_flags(tmp_path)
    with a_service("backend_service", *flags) as backend:
        async with trainings_of(backend) as stub:
            running = await train(stub, LOCAL, epochs=100_000, scheduling=NEVER)
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


async def test_trainer_killed_in_the_middle_fails_a_training_without_another_attempt(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path)) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0", "--exit-when-idle-s", "3"]
        with a_service("backend_service", *flags, environment={"KTRDR_TRAINER_LOST_S": "0.5"}) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=100_000, scheduling=NEVER)
                await until_epoch(stub, training_id, 1)
                trainer.kill()
                stream = stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id))
                responses = [response async for response in stream]
            last = responses[-1].training
            assert (last.state, last.error.reason) == (states.TRAINING_STATE_FAILED, "TRAINER_LOST")
            # Nothing trains, nobody asks: it ends by itself.
            assert await asyncio.to_thread(backend.process.wait, PATIENCE_S) == 0


OFTEN = {"KTRDR_CHECKPOINT_EVERY_S": "0.05"}


async def watch_to_the_end(stub: Any, training_id: str, after: int = 0) -> tuple[list[Any], training_pb2.Training]:
    """Return the durable events after a sequence and the training as it ended."""
    events = []
    async for response in stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id, after_sequence=after)):
        events += [event for event in response.events if event.WhichOneof("detail") != "batch"]
        last = response
    assert [event.sequence for event in events] == list(range(after + 1, after + 1 + len(events)))
    return events, last.training


def epochs_of(events: list[Any]) -> list[int]:
    return [event.epoch.epoch for event in events if event.WhichOneof("detail") == "epoch"]


async def until_checkpoint(directory: Path) -> None:
    await eventually(lambda: list((directory / "backend" / "checkpoints").glob("*/*")), what="a checkpoint")


async def test_trainer_killed_and_started_again_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path), environment=OFTEN) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0"]
        with a_service("backend_service", *flags) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=300)
                await until_epoch(stub, training_id, 5)
                await until_checkpoint(tmp_path)
                trainer.kill()
                again = [*trainer_flags(tmp_path), "--port", trainer.port]
                with a_service("trainer_service", *again, environment=OFTEN):
                    events, training = await watch_to_the_end(stub, training_id)
    assert training.state == states.TRAINING_STATE_COMPLETED, training.message
    assert [(session.attempt, session.outcome) for session in training.sessions] == [(1, "LOST"), (2, "COMPLETED")]
    assert training.sessions[1].resumed_from_epoch > 0
    assert epochs_of(events) == list(range(1, 301))  # none is missing, none is told twice


async def test_backend_and_trainer_both_killed_complete_the_training_after_a_restart(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path), environment=OFTEN) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0"]
        with a_service("backend_service", *flags) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=300)
                seen = await until_epoch(stub, training_id, 5)
                await until_checkpoint(tmp_path)
            backend.kill()
            trainer.kill()
    again = [*trainer_flags(tmp_path), "--port", trainer.port]
    with a_service("trainer_service", *again, environment=OFTEN), a_service("backend_service", *flags) as backend:
        async with trainings_of(backend) as stub:
            events, training = await watch_to_the_end(stub, training_id, after=seen)
    assert training.state == states.TRAINING_STATE_COMPLETED, training.message
    assert epochs_of(events)[-1] == 300
    assert epochs_of(events) == sorted(set(epochs_of(events)))


async def test_backend_killed_in_the_middle_of_a_local_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    flags = backend_flags(tmp_path)
    with a_service("backend_service", *flags, environment=OFTEN) as backend:
        async with trainings_of(backend) as stub:
            training_id = await train(stub, LOCAL, epochs=300)
            await until_epoch(stub, training_id, 5)
            await eventually(
                lambda: list((tmp_path / "backend" / "sessions").glob("*/checkpoints/*.safetensors")),
                what="a checkpoint",
            )
        backend.kill()
    with a_service("backend_service", *flags, environment=OFTEN) as backend:
        async with trainings_of(backend) as stub:
            events, training = await watch_to_the_end(stub, training_id)
    assert training.state == states.TRAINING_STATE_COMPLETED, training.message
    assert training.sessions[1].resumed_from_epoch > 0
    assert epochs_of(events) == list(range(1, 301))


async def test_paused_trainer_that_is_back_in_time_is_adopted(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path)) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0"]
        with a_service("backend_service", *flags, environment={"KTRDR_HEALTH_TIMEOUT_S": "1"}) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=100)
                await until_epoch(stub, training_id, 2)
                trainer.process.send_signal(signal.SIGSTOP)

                async def is_missed() -> bool:  # its heartbeats have stayed away for longer than they may
                    listed = await stub.ListTrainers(pb.ListTrainersRequest())
                    return not listed.trainers[0].is_healthy

                try:
                    await become(is_missed)
                finally:
                    trainer.process.send_signal(signal.SIGCONT)
                events, training = await watch_to_the_end(stub, training_id)
    assert training.state == states.TRAINING_STATE_COMPLETED, training.message
    assert [session.attempt for session in training.sessions] == [1]
    assert epochs_of(events) == list(range(1, 101))


async def test_backend_that_stood_still_adopts_its_session_instead_of_giving_it_up(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path)) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0"]
        with a_service("backend_service", *flags, environment={"KTRDR_TRAINER_LOST_S": "3"}) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=300)
                await until_epoch(stub, training_id, 2)
                backend.process.send_signal(signal.SIGSTOP)
                since = time.monotonic()
                try:  # its own clock goes on: it finds the trainer silent for longer than a trainer may be
                    await eventually(lambda: time.monotonic() - since > READ_WATCHDOG_S + 1, what="a long standstill")
                finally:
                    backend.process.send_signal(signal.SIGCONT)
                events, training = await watch_to_the_end(stub, training_id)
    assert training.state == states.TRAINING_STATE_COMPLETED, training.message
    assert [session.attempt for session in training.sessions] == [1]
    assert epochs_of(events) == list(range(1, 301))


def limit_file_size(service: ServiceProcess, size_bytes: int) -> None:
    """Make every write that would grow a file of the service beyond a size fail, as on a full disk."""
    _, hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


async def test_backend_whose_disk_is_full_says_so_and_goes_on_once_there_is_space(tmp_path: Path) -> None:
    with a_service("trainer_service", *trainer_flags(tmp_path)) as trainer:
        flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0"]
        with a_service("backend_service", *flags) as backend:
            async with trainings_of(backend) as stub:
                training_id = await train(stub, HOST, epochs=100)
                await until_epoch(stub, training_id, 2)
                limit_file_size(backend, 1)
                before = await get(stub, training_id)

                async def refused() -> grpc.aio.AioRpcError | None:
                    try:
                        await train(stub, HOST, epochs=3)
                    except grpc.aio.AioRpcError as error:
                        return error
                    return None

                error = await become(refused)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert isinstance(from_rpc_error(error), StorageError)
                assert (await get(stub, training_id)).last_sequence >= before.last_sequence  # it answers all the same
                limit_file_size(backend, resource.RLIM_INFINITY)
                events, training = await watch_to_the_end(stub, training_id)
                assert training.state == states.TRAINING_STATE_COMPLETED, training.message
                assert epochs_of(events) == list(range(1, 101))
                await stub.Train(pb.TrainRequest(spec=a_spec(HOST)))


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
