"""A TrainerRegistryService that answers what a test says."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_registry_service_pb2_grpc

from ktrdr_core.errors import KtrdrError
from tests.kit.eventually import eventually


class FakeRegistry(trainer_registry_service_pb2_grpc.TrainerRegistryServiceServicer):
    """Holds leases.

    Attributes:
        renewals: What each renewal said.
        num_streams: Streams there ever were.
        fenced: Session ids that each answer names.
        renew_after_s: When trainers shall renew.
        refusal: Raised at the first renewal of a stream.
        error_after_answer: Raised once a stream has been answered, while the trainer waits to renew.
        is_silent: Renewals are taken and not answered.
    """

    def __init__(self, *, renew_after_s: float = 0.05) -> None:
        self.renewals: list[pb.RegisterRequest] = []
        self.num_streams = 0
        self.fenced: list[str] = []
        self.renew_after_s = renew_after_s
        self.refusal: KtrdrError | None = None
        self.error_after_answer: KtrdrError | None = None
        self.is_silent = False

    def add_to(self, server: grpc.aio.Server) -> None:
        trainer_registry_service_pb2_grpc.add_TrainerRegistryServiceServicer_to_server(self, server)

    async def more(self, num: int = 1) -> None:
        """Return once there were `num` more renewals."""
        target = len(self.renewals) + num
        await eventually(lambda: len(self.renewals) >= target, what=f"{num} renewals")

    async def Register(
        self, request_iterator: AsyncIterator[pb.RegisterRequest], context: Any
    ) -> AsyncIterator[pb.RegisterResponse]:
        self.num_streams += 1
        async for request in request_iterator:
            self.renewals.append(request)
            if self.refusal is not None:
                raise self.refusal
            if self.is_silent:
                await asyncio.Event().wait()
            response = pb.RegisterResponse(fenced_session_ids=self.fenced)
            response.lease.FromSeconds(10)
            response.renew_after.FromMilliseconds(round(self.renew_after_s * 1_000))
            yield response
            if self.error_after_answer is not None:
                raise self.error_after_answer
