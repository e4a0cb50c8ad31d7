"""Trainers as a backend meets them: they tell what they are, and announce themselves; they train nothing."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as registry_pb
from ktrdr.trainer.v1 import trainer_registry_service_pb2_grpc, trainer_service_pb2, trainer_service_pb2_grpc
from ktrdr.trainer.v1.trainer_info_pb2 import Device, TrainerInfo

from backend_service.orchestration.registry import TrainerRegistry
from backend_service.orchestration.trainer_health import TrainerHealth
from backend_service.orchestration.trainers import Trainers
from backend_service.servicers.registry import TrainerRegistryServicer
from ktrdr_core.errors import KtrdrError, NotBuiltError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.server import HealthServicer, add_health_and_reflection
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.grpc_server import serving

BACKEND_VERSION = "1.4.2"
LEASE_S = 1.0
RENEW_S = 0.05
SERVICE = "ktrdr.trainer.v1.TrainerService"


class Config:
    """A store of configuration values; it refuses writes while `problem` is set, and delays them until `may_write`."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.problem: KtrdrError | None = None

    async def read_config(self, key: str) -> str | None:
        return self.values.get(key)

    async def write_config(self, key: str, value: str) -> str | None:
        if self.problem is not None:
            raise self.problem
        await self.may_write.wait()
        previous = self.values.get(key)
        self.values[key] = value
        return previous


def an_info(trainer_id: str = "", *, slots: int = 2, free: int | None = None, gpus: int = 0) -> TrainerInfo:
    devices = [Device(device_type="cuda", name="GPU", memory_available_gb=40.0)] * gpus
    return TrainerInfo(
        version="1.4.0",
        python_version="3.11.2",
        torch_version="2.13.0",
        trainer_id=trainer_id,
        devices=[*devices, Device(device_type="cpu", name="CPU")],
        num_slots=slots,
        num_free_slots=slots if free is None else free,
    )


class ToldTrainer:
    """Answers what `info` says, once `may_answer` is set; refuses a validation with `refusal`."""

    def __init__(self, info: TrainerInfo) -> None:
        self.info = info
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.refusal: KtrdrError | None = None
        self.num_asked = 0
        self.num_waiting = 0
        self.health: HealthServicer | None = None

    def __getattr__(self, name: str) -> Any:
        """Answer an RPC that no test needs."""
        if not name[:1].isupper():
            raise AttributeError(name)

        async def refuse(request: Any, context: Any) -> Any:
            raise NotBuiltError(f"this trainer has no {name}")

        return refuse

    async def GetServerInfo(self, request: Any, context: Any) -> trainer_service_pb2.GetServerInfoResponse:
        self.num_asked += 1
        self.num_waiting += 1
        try:
            await self.may_answer.wait()
        finally:
            self.num_waiting -= 1
        return trainer_service_pb2.GetServerInfoResponse(trainer=self.info)

    async def Train(self, request: Any, context: Any) -> trainer_service_pb2.TrainResponse:
        assert request.validate_only
        if self.refusal is not None:
            raise self.refusal
        return trainer_service_pb2.TrainResponse()

    def add_to(self, server: grpc.aio.Server) -> None:
        servicer: Any = self
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server)
        self.health = add_health_and_reflection(server, [SERVICE])

    async def stop_serving(self) -> None:
        """Answer NOT_SERVING from now on."""
        assert self.health is not None
        await self.health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)


@asynccontextmanager
async def told_trainer(info: TrainerInfo, address: str = "127.0.0.1:0") -> AsyncIterator[tuple[ToldTrainer, str]]:
    trainer = ToldTrainer(info)
    async with serving(trainer.add_to, address=address) as served:
        yield trainer, served


@asynccontextmanager
async def following(
    *addresses: str, config: Config | None = None, is_started: bool = True, **limits: Any
) -> AsyncIterator[Trainers]:
    """Follow trainers with a short lease; `is_started=False` asks in the background nobody."""
    limits = {"lease_s": LEASE_S, "renew_s": RENEW_S, "health_timeout_s": 5.0} | limits
    trainers = Trainers(addresses, version=BACKEND_VERSION, config=config or Config(), **limits)
    if is_started:
        await trainers.start()
    try:
        yield trainers
    finally:
        await trainers.close()


async def see(trainers: Trainers, number: int = 0, **expected: Any) -> TrainerHealth:
    """Return the health of a trainer once these of its attributes are as expected, by what the backend knows."""

    async def probe() -> TrainerHealth | None:
        found = await trainers.check_all(max_age_s=3600.0)
        if len(found) <= number:
            return None
        health = found[number]
        is_so = all(getattr(health, name) == value for name, value in expected.items())
        return health if is_so else None

    health = await eventually(probe, what=f"trainer {number} with {expected}")
    assert health is not None
    return health


class Lease:
    """The trainer's side of a Register stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.renewing: asyncio.Task[None] | None = None
        self.answers: list[registry_pb.RegisterResponse] = []

    async def renew(self, trainer_id: str, address: str, info: TrainerInfo) -> registry_pb.RegisterResponse:
        """Renew once.

        Raises:
            KtrdrError: The backend ended the stream.
        """
        request = registry_pb.RegisterRequest(trainer_id=trainer_id, address=address, trainer=info)
        try:
            await self.call.write(request)
            answer = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if not isinstance(answer, registry_pb.RegisterResponse):
            raise await self.end()
        self.answers.append(answer)
        return answer

    def keep(self, trainer_id: str, address: str, info: TrainerInfo) -> None:
        """Renew from now on, as a living trainer does."""

        async def renew_for_ever() -> None:
            while True:
                await self.renew(trainer_id, address, info)
                await asyncio.sleep(RENEW_S)

        self.renewing = asyncio.create_task(renew_for_ever())

    async def fall_silent(self) -> None:
        """Renew no more, with the stream left open."""
        if self.renewing is not None:
            self.renewing.cancel()
            await asyncio.gather(self.renewing, return_exceptions=True)

    async def end(self) -> KtrdrError:
        """Return how the backend ended the stream, once it has."""
        async with asyncio.timeout(PATIENCE_S):
            await self.call.code()
        error = grpc.aio.AioRpcError(
            await self.call.code(),
            await self.call.initial_metadata(),
            await self.call.trailing_metadata(),
            details=await self.call.details(),
        )
        return from_rpc_error(error)

    async def close(self) -> None:
        """Break the stream off."""
        await self.fall_silent()
        self.call.cancel()


class Registry:
    """A served registry and leases held there."""

    def __init__(self, registry: TrainerRegistry, channel: grpc.aio.Channel) -> None:
        self.registry = registry
        self._stub: Any = trainer_registry_service_pb2_grpc.TrainerRegistryServiceStub(channel)
        self._leases: list[Lease] = []

    def open(self) -> Lease:
        lease = Lease(self._stub.Register())
        self._leases.append(lease)
        return lease

    async def close(self) -> None:
        for lease in self._leases:
            await lease.close()


@asynccontextmanager
async def serving_registry(trainers: Trainers) -> AsyncIterator[Registry]:
    registry = TrainerRegistry(trainers)
    servicer = TrainerRegistryServicer(registry)
    async with (
        serving(
            lambda server: trainer_registry_service_pb2_grpc.add_TrainerRegistryServiceServicer_to_server(
                servicer, server
            )
        ) as address,
        open_channel(address) as channel,
    ):
        served = Registry(registry, channel)
        try:
            yield served
        finally:
            await served.close()
