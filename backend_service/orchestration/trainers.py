"""The trainers this backend knows, one channel each, and what their health checks find."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ktrdr.trainer.v1 import trainer_service_pb2 as trainer_pb2
from ktrdr.trainer.v1.trainer_info_pb2 import TrainerInfo
from ktrdr.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import InvalidInputError, KtrdrError, NotFoundError, UnavailableError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.wire.to_proto import spec_to_proto

if TYPE_CHECKING:
    from ktrdr.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

CHECK_TIMEOUT_S = 5.0
DEVICES_TIMEOUT_S = 30.0  # a cold trainer loads torch to look
TRAINER_SERVICE = "ktrdr.trainer.v1.TrainerService"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerHealth:
    """What a health check found.

    Attributes:
        address: host:port.
        is_healthy: It answered SERVING within the limit, and takes sessions.
        message: One sentence for people.
        latency_s: Round trip of the health check.
        info: What the trainer is and has; None if it did not say in time.
    """

    address: str
    is_healthy: bool
    message: str
    latency_s: float = 0.0
    info: TrainerInfo | None = None

    @property
    def num_gpus(self) -> int:
        return sum(device.device_type != "cpu" for device in self.info.devices) if self.info else 0

    @property
    def num_free_slots(self) -> int:
        return self.info.num_free_slots if self.info else 0


class Trainers:
    """Known trainers, in the order they were configured.

    Args:
        addresses: host:port of each.
        health_timeout_s: Limit of a health check.
    """

    def __init__(self, addresses: Sequence[str], *, health_timeout_s: float = 2.0) -> None:
        self.addresses = tuple(addresses)
        self._health_timeout_s = health_timeout_s
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return the channel to a trainer; also to one that is no longer configured but still runs a session."""
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        return self._channels[address]

    def stub(self, address: str) -> TrainerServiceAsyncStub:
        stub: TrainerServiceAsyncStub = TrainerServiceStub(self.channel(address))
        return stub

    async def check_all(self, *, needs_devices: bool = False) -> list[TrainerHealth]:
        """Check every trainer at once; takes as long as the slowest.

        Args:
            needs_devices: Wait for a trainer that is still finding out what devices it has.
        """
        info_timeout_s = DEVICES_TIMEOUT_S if needs_devices else self._health_timeout_s
        return list(await asyncio.gather(*(self.check(address, info_timeout_s) for address in self.addresses)))

    async def check(self, address: str, info_timeout_s: float) -> TrainerHealth:
        """Check one trainer by the gRPC health protocol, then ask what it is; only the former decides its health."""
        start = time.monotonic()
        try:
            problem = await self._find_problem(address)
            latency_s = time.monotonic() - start
            info = None if problem else await self._ask_info(address, info_timeout_s)
        except grpc.aio.AioRpcError as error:
            return TrainerHealth(address=address, is_healthy=False, message=from_rpc_error(error).message)
        if info is not None:
            problem = info.unavailable_reason or ("it is draining" if info.is_draining else "")
        return TrainerHealth(
            address=address, is_healthy=not problem, message=problem or "SERVING", latency_s=latency_s, info=info
        )

    async def _find_problem(self, address: str) -> str:
        health: Any = health_pb2_grpc.HealthStub(self.channel(address))  # its stubs know no methods
        try:
            async with asyncio.timeout(self._health_timeout_s):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=TRAINER_SERVICE))
        except TimeoutError:
            return f"did not answer within {self._health_timeout_s:g} s"
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return ""
        return f"answered {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"

    async def _ask_info(self, address: str, timeout_s: float) -> TrainerInfo | None:
        try:
            async with asyncio.timeout(timeout_s):
                return (await self.stub(address).GetServerInfo(trainer_pb2.GetServerInfoRequest())).trainer
        except TimeoutError:
            return None

    async def check_spec(self, spec: TrainingSpec) -> None:
        """Return if a trainer would take `spec` with the bars it has.

        Raises:
            InvalidInputError, NotFoundError: A trainer refuses it and none takes it.
            UnavailableError: No trainer answers.
        """
        if not self.addresses:
            raise UnavailableError("no trainer is configured")
        request = trainer_pb2.TrainRequest(spec=spec_to_proto(spec), validate_only=True)
        answers = await asyncio.gather(*(self._ask_check(address, request) for address in self.addresses))
        if None in answers:
            return
        refusals = [answer for answer in answers if isinstance(answer, InvalidInputError | NotFoundError)]
        if refusals:
            raise refusals[0]
        details = "; ".join(f"{address}: {answer}" for address, answer in zip(self.addresses, answers, strict=True))
        raise UnavailableError(f"no trainer answers ({details})")

    async def _ask_check(self, address: str, request: trainer_pb2.TrainRequest) -> KtrdrError | None:
        try:
            await self.stub(address).Train(request, timeout=CHECK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        return None

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
