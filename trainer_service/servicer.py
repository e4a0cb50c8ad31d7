"""TrainerService: from proto, one call, to proto. The rules live in the orchestrator."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_service_pb2_grpc

from ktrdr_core.rpc.checkpoint_transfer import checkpoint_ref
from ktrdr_core.wire.to_proto import events_to_proto
from trainer_service.messages import (
    checkpoint_parts,
    optional_checkpoint_ref,
    order_from_proto,
    series_from_proto,
    session_to_proto,
)
from trainer_service.orchestrator import DEFAULT_CANCEL_REASON, HostTrainingOrchestrator
from trainer_service.server_info import ServerInfo

SERVICE_NAME = "ktrdr.trainer.v1.TrainerService"
Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """Answers the RPCs of `ktrdr.trainer.v1.TrainerService`."""

    def __init__(self, orchestrator: HostTrainingOrchestrator, server_info: ServerInfo) -> None:
        self._orchestrator = orchestrator
        self._server_info = server_info

    async def Train(self, request: pb.TrainRequest, context: Context) -> pb.TrainResponse:
        order = order_from_proto(request)
        if request.validate_only:
            await self._orchestrator.check(order.spec)
            return pb.TrainResponse()
        session = await self._orchestrator.train(
            order, series_from_proto(request.series), backend_version=request.backend_version
        )
        return pb.TrainResponse(session=await session_to_proto(session))

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        session = await self._orchestrator.cancel(
            request.session_id,
            save_checkpoint=request.save_checkpoint,
            reason=request.cancel_reason or DEFAULT_CANCEL_REASON,
        )
        message = await session_to_proto(session)
        return pb.CancelResponse(session=message, checkpoint_path=message.checkpoint_path)

    async def StreamProgress(
        self, request: pb.StreamProgressRequest, context: Context
    ) -> AsyncIterator[pb.StreamProgressResponse]:
        session, batches = self._orchestrator.watch(request.session_id, request.after_sequence)
        told = session.checkpoint
        yield pb.StreamProgressResponse(
            session=await session_to_proto(session), checkpoint=optional_checkpoint_ref(told)
        )
        async for events in batches:
            is_last = bool(events) and events[-1].terminal_state is not None
            newest = session.checkpoint
            yield pb.StreamProgressResponse(
                session=await session_to_proto(session) if is_last else None,
                events=events_to_proto(events),
                checkpoint=None if newest == told else optional_checkpoint_ref(newest),
            )
            told = newest

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        session = self._orchestrator.session(request.session_id)
        return pb.GetSessionResponse(session=await session_to_proto(session))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        sessions = await asyncio.gather(*map(session_to_proto, self._orchestrator.sessions()))
        return pb.ListSessionsResponse(sessions=sessions)

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> AsyncIterator[pb.GetCheckpointResponse]:
        checkpoint, chunks = await self._orchestrator.give_checkpoint(request.session_id)
        yield pb.GetCheckpointResponse(checkpoint=checkpoint_ref(checkpoint))
        async for chunk in chunks:
            yield pb.GetCheckpointResponse(chunk=chunk)

    async def PutCheckpoint(
        self, request_iterator: AsyncIterator[pb.PutCheckpointRequest], context: Context
    ) -> pb.PutCheckpointResponse:
        ref, chunks = await checkpoint_parts(request_iterator)
        await self._orchestrator.take_checkpoint(ref, chunks)
        return pb.PutCheckpointResponse()

    async def PrepareBars(
        self, request: pb.PrepareBarsRequest, context: Context
    ) -> AsyncIterator[pb.PrepareBarsResponse]:
        series = series_from_proto(request.series)
        async with aclosing(self._orchestrator.prepare_bars(series, request.source)) as reports:
            async for ready in reports:
                yield pb.PrepareBarsResponse(ready_size_bytes=ready.size_bytes, total_size_bytes=ready.total_size_bytes)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        trainer = await self._server_info.to_proto(is_draining=self._orchestrator.is_draining)
        return pb.GetServerInfoResponse(trainer=trainer)
