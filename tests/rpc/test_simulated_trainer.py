"""The trainers of the load benchmarks speak the protocol: register, train, upload, cancel, get lost, get fenced."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ktrdr.trainer.v1 import trainer_registry_service_pb2 as registry_pb
from ktrdr.trainer.v1 import trainer_registry_service_pb2_grpc, trainer_service_pb2_grpc
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import training_service_pb2 as training_pb
from ktrdr.training.v1 import training_state_pb2

from ktrdr_core.errors import KtrdrError, NoSlotError, SessionNotFoundError
from ktrdr_core.rpc.channel import open_channel
from tests.kit.backend import HOST, Backend, a_spec, become, refusal, running_backend
from tests.kit.grpc_server import serving
from tests.kit.processes import ServiceProcess
from tests.kit.simulated_trainer import Behaviour, SimulatedTrainer


@asynccontextmanager
async def simulated(name: str = "simulated", backend: str = "", **behaviour: float) -> AsyncIterator[SimulatedTrainer]:
    trainer = SimulatedTrainer(name, Behaviour(**behaviour), backend=backend)  # type: ignore[arg-type]
    await trainer.start()
    try:
        yield trainer
    finally:
        await trainer.stop()


async def until_registered(backend: Backend, count: int) -> list[training_pb.TrainerStatus]:
    async def probe() -> list[training_pb.TrainerStatus] | None:
        answer = await backend.trainings.ListTrainers(training_pb.ListTrainersRequest())
        healthy = [each for each in answer.trainers if each.is_healthy]
        return healthy if len(healthy) == count else None

    return await become(probe, what=f"{count} registered trainers")


def address_of(backend: Backend) -> str:
    return f"127.0.0.1:{backend.app.port}"


async def test_registered_trainer_reports_epochs_and_uploads_a_model(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        simulated(backend=address_of(backend), run_s=0.3, events_per_s=20) as trainer,
    ):
        (status,) = await until_registered(backend, 1)
        assert (status.trainer_id, status.address, status.num_slots) == ("simulated", trainer.address, 1)
        training_id = await backend.train(a_spec(HOST))
        durable = [one for response in await backend.watch(training_id) for one in response.events]
        assert [one.sequence for one in durable] == list(range(1, len(durable) + 1))
        epochs = [one.epoch.epoch for one in durable if one.WhichOneof("detail") == "epoch"]
        assert epochs == list(range(1, len(epochs) + 1))
        assert len(epochs) in (5, 6)
        assert await backend.state(training_id) == "COMPLETED"
        (stored,) = await asyncio.to_thread(lambda: list((tmp_path / "state" / "models").glob("*/*_v1")))
        assert (await backend.get(training_id)).result.model_path == str(stored)


async def test_cancel_ends_a_session_that_would_run_for_ever(tmp_path: Path) -> None:
    async with (
        running_backend(tmp_path) as backend,
        simulated(backend=address_of(backend)) as trainer,
        open_channel(trainer.address) as channel,
    ):
        await until_registered(backend, 1)
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        await backend.cancel(training_id)
        assert await backend.state(training_id) == "CANCELLED"
        stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        (session,) = (await stub.ListSessions(pb.ListSessionsRequest())).sessions
        assert session.training_id == training_id
        assert (await stub.GetServerInfo(pb.GetServerInfoRequest())).trainer.num_free_slots == 1


async def test_slots_are_limited_and_repeated_calls_are_the_same_session() -> None:
    async with simulated() as trainer, open_channel(trainer.address) as channel:
        stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        await stub.Train(pb.TrainRequest(session_id="a", attempt=1))
        await stub.Train(pb.TrainRequest(session_id="a", attempt=1))
        assert isinstance(await refusal(stub.Train(pb.TrainRequest(session_id="b", attempt=1))), NoSlotError)
        assert len((await stub.ListSessions(pb.ListSessionsRequest())).sessions) == 1
        unknown: KtrdrError = await refusal(stub.GetSession(pb.GetSessionRequest(session_id="b")))
        assert isinstance(unknown, SessionNotFoundError)


async def test_silent_trainer_is_replaced_and_its_session_ended_when_it_is_back(tmp_path: Path) -> None:
    async with running_backend(tmp_path, trainer_lost_s=2.0) as backend:
        flags = ("--backend", address_of(backend), "--name", "first")
        first = await asyncio.to_thread(ServiceProcess, "tests.kit.simulated_trainer", *flags)
        try:
            await until_registered(backend, 1)
            training_id = await backend.train(a_spec(HOST))
            await backend.until(training_id, "RUNNING")
            async with simulated("second", address_of(backend)) as second:
                await until_registered(backend, 2)
                first.process.send_signal(signal.SIGSTOP)

                async def is_on_second() -> bool:
                    sessions = (await backend.get(training_id)).sessions
                    return sessions[-1].attempt > 1 and sessions[-1].trainer == second.address

                await become(is_on_second, what="an attempt on the other trainer")
                await backend.until(training_id, "RUNNING")
                first.process.send_signal(signal.SIGCONT)
                async with open_channel(first.address) as channel:
                    stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)

                    async def is_free() -> bool:
                        info = (await stub.GetServerInfo(pb.GetServerInfoRequest())).trainer
                        return bool(info.num_free_slots == 1)

                    await become(is_free, what="the end of the fenced session")
                    (session,) = (await stub.ListSessions(pb.ListSessionsRequest())).sessions
                    assert session.state == training_state_pb2.TRAINING_STATE_CANCELLED
                await backend.until(training_id, "RUNNING")
                await backend.cancel(training_id)
        finally:
            await asyncio.to_thread(first.kill)


class FencingBackend(trainer_registry_service_pb2_grpc.TrainerRegistryServiceServicer):
    """Grants every lease, and fences session "a" once it is told of it."""

    async def Register(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802  the name of the RPC
        async for request in request_iterator:
            response = registry_pb.RegisterResponse(
                fenced_session_ids=[each.session_id for each in request.sessions if each.session_id == "a"]
            )
            response.renew_after.FromMilliseconds(10)
            yield response


async def test_session_that_the_lease_names_as_fenced_is_ended() -> None:
    add = trainer_registry_service_pb2_grpc.add_TrainerRegistryServiceServicer_to_server
    async with (
        serving(lambda server: add(FencingBackend(), server)) as backend,
        simulated(backend=backend, slots=2) as trainer,
        open_channel(trainer.address) as channel,
    ):
        stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        for session_id in ("b", "a"):
            await stub.Train(pb.TrainRequest(session_id=session_id, attempt=1))

        async def states() -> list[int] | None:
            sessions = (await stub.ListSessions(pb.ListSessionsRequest())).sessions
            is_ended = training_state_pb2.TRAINING_STATE_CANCELLED in [each.state for each in sessions]
            return [each.state for each in sessions] if is_ended else None

        assert await become(states, what="the end of the fenced session") == [
            training_state_pb2.TRAINING_STATE_CANCELLED,
            training_state_pb2.TRAINING_STATE_RUNNING,
        ]


async def test_one_process_is_many_trainers(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        flags = ("--backend", address_of(backend), "--count", "12")
        process = await asyncio.to_thread(ServiceProcess, "tests.kit.simulated_trainer", *flags)
        try:
            trainers = await until_registered(backend, 12)
            assert {each.address for each in trainers} == set(process.address.split(","))
            assert {each.trainer_id for each in trainers} == {f"simulated-{number}" for number in range(12)}
        finally:
            assert await asyncio.to_thread(process.end) == 0
