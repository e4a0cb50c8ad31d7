"""TrainerRegistryService: from proto, one call, to proto."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_registry_service_pb2_grpc

from backend_service.orchestration.registry import TrainerRegistry
from ktrdr_core.wire.to_proto import duration_to_proto

Context = grpc.aio.ServicerContext[Any, Any]


class TrainerRegistryServicer(trainer_registry_service_pb2_grpc.TrainerRegistryServiceServicer):
    """The contract is in `trainer_registry_service.proto`."""

    def __init__(self, registry: TrainerRegistry) -> None:
        self._registry = registry

    async def Register(
        self, request_iterator: AsyncIterator[pb.RegisterRequest], context: Context
    ) -> AsyncIterator[pb.RegisterResponse]:
        async with aclosing(self._registry.hold_lease(request_iterator)) as answers:
            async for answer in answers:
                yield pb.RegisterResponse(
                    lease=duration_to_proto(answer.lease_s),
                    renew_after=duration_to_proto(answer.renew_after_s),
                    fenced_session_ids=answer.fenced_session_ids,
                )
