"""The ways to trainers: one channel each, the health check, and what a trainer says of itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ktrdr.trainer.v1 import trainer_service_pb2 as trainer_pb2
from ktrdr.trainer.v1.trainer_info_pb2 import TrainerInfo
from ktrdr.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import (
    InvalidInputError,
    KtrdrError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.wire.to_proto import spec_to_proto

if TYPE_CHECKING:
    from ktrdr.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

CHECK_SPEC_TIMEOUT_S = 5.0
NUM_ASKED_AT_ONCE = 32
_MAX_NAMED = 10
TRAINER_SERVICE = "ktrdr.trainer.v1.TrainerService"
_Health = health_pb2.HealthCheckResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerAnswer:
    """What came back when one address was asked.

    Attributes:
        is_reached: Somebody answered the health check, whatever the answer.
        problem: Why it is not healthy; "" if it is.
        latency_s: Round trip of the health check.
        info: What it is and has; None if it did not say in time.
    """

    is_reached: bool
    problem: str
    latency_s: float = 0.0
    info: TrainerInfo | None = None


@dataclass(slots=True)
class _Way:
    channel: grpc.aio.Channel
    used_at: float


def error_of_trainer(rpc_error: grpc.RpcError) -> KtrdrError:
    """Return what a trainer answered.

    One that does not take the backend's own token cannot be reached: a table or a token may be about to be replaced,
    and that says nothing of the training.
    """
    error = from_rpc_error(rpc_error)
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return UnreachableError(error.message, metadata=error.metadata)
    return error


class TrainerChannels:
    """A channel to each address that was ever asked for, until nobody needs it.

    Args:
        health_timeout_s: Limit of a health check, and of the question that follows it.
        security: TLS and the token of the calls; None is plain text.
    """

    def __init__(self, *, health_timeout_s: float, security: ChannelSecurity | None = None) -> None:
        self._health_timeout_s = health_timeout_s
        self._security = security
        self._ways: dict[str, _Way] = {}

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return the channel to an address; it connects by itself."""
        way = self._ways.get(address)
        if way is None:
            way = self._ways[address] = _Way(open_channel(address, self._security), 0.0)
        way.used_at = time.monotonic()
        return way.channel

    def stub(self, address: str) -> TrainerServiceAsyncStub:
        stub: TrainerServiceAsyncStub = TrainerServiceStub(self.channel(address))
        return stub

    async def ask(self, address: str) -> TrainerAnswer:
        """Check a trainer by the gRPC health protocol, then ask what it is."""
        start = time.monotonic()
        try:
            problem = await self._check_health(address)
            latency_s = time.monotonic() - start
            info = await self.ask_info(address, self._health_timeout_s)
        except grpc.aio.AioRpcError as error:
            is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            late = f"did not answer within {self._health_timeout_s:g} s"
            return TrainerAnswer(is_reached=False, problem=late if is_late else from_rpc_error(error).message)
        return TrainerAnswer(is_reached=True, problem=problem, latency_s=latency_s, info=info)

    async def ask_info(self, address: str, timeout_s: float) -> TrainerInfo | None:
        """Return what a trainer is and has; None if it does not say in time, as while it looks for its devices.

        Raises:
            AioRpcError: It answers something else.
        """
        try:
            answer = await self.stub(address).GetServerInfo(trainer_pb2.GetServerInfoRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return None
            raise
        return answer.trainer

    async def check_spec(self, addresses: Sequence[str], spec: TrainingSpec) -> None:
        """Return as soon as one trainer would take `spec` with the bars it has.

        Raises:
            InvalidInputError, NotFoundError: A trainer refuses it and none takes it.
            UnavailableError: No trainer answers.
        """
        request = trainer_pb2.TrainRequest(spec=spec_to_proto(spec), validate_only=True)
        refusals: list[KtrdrError] = []
        silences: list[str] = []
        for begin in range(0, len(addresses), NUM_ASKED_AT_ONCE):
            tasks = [
                asyncio.create_task(self._ask_check(address, request))
                for address in addresses[begin : begin + NUM_ASKED_AT_ONCE]
            ]
            try:
                for answered in asyncio.as_completed(tasks):
                    address, error = await answered
                    if error is None:
                        return
                    if isinstance(error, InvalidInputError | NotFoundError):
                        refusals.append(error)
                    else:
                        silences.append(f"{address}: {error.message}")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        if refusals:
            raise refusals[0]
        raise UnavailableError(f"no trainer answers ({'; '.join(silences[:_MAX_NAMED])})")

    async def close_unused(self, is_needed: Callable[[str], bool], *, unused_s: float) -> None:
        """Close the channels to addresses that are not needed and were not asked for in a while."""
        before = time.monotonic() - unused_s
        for address in [key for key, way in self._ways.items() if way.used_at < before and not is_needed(key)]:
            await self._ways.pop(address).channel.close()

    async def close(self) -> None:
        """Close every channel."""
        while self._ways:
            _, way = self._ways.popitem()
            await way.channel.close()

    async def _ask_check(self, address: str, request: trainer_pb2.TrainRequest) -> tuple[str, KtrdrError | None]:
        try:
            await self.stub(address).Train(request, timeout=CHECK_SPEC_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return address, from_rpc_error(error)
        return address, None

    async def _check_health(self, address: str) -> str:
        health: Any = health_pb2_grpc.HealthStub(self.channel(address))  # its stubs know no methods
        request = health_pb2.HealthCheckRequest(service=TRAINER_SERVICE)
        answer = await health.Check(request, timeout=self._health_timeout_s)
        return "" if answer.status == _Health.SERVING else f"answered {_Health.ServingStatus.Name(answer.status)}"
