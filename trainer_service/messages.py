"""Sessions and the trainer's facts to their messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import islice, pairwise

from ktrdr.data.v1 import series_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1 import (
    checkpoint_pb2,
    session_pb2,
    trainer_info_pb2,
    trainer_registry_service_pb2,
    trainer_service_pb2,
)

from ktrdr_core.clock import utc_now
from ktrdr_core.config.naming import check_name
from ktrdr_core.data.partitions import Manifest
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidInputError, InvalidUploadError
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.rpc.checkpoint_transfer import MAX_CHECKPOINT_BYTES, check_ref, checkpoint_ref
from ktrdr_core.wire.from_proto import spec_from_proto
from ktrdr_core.wire.market_data import part_from_proto
from ktrdr_core.wire.to_proto import (
    error_to_proto,
    resource_usage_to_proto,
    result_to_proto,
    spec_to_proto,
    state_to_proto,
    summary_to_proto,
    time_to_proto,
)
from trainer_service.journal import ResumePoint, SessionOrder
from trainer_service.session import Session

MAX_RENEWED_SESSIONS = 1_000


def order_from_proto(request: trainer_service_pb2.TrainRequest) -> SessionOrder:
    """Return what a request orders.

    Raises:
        InvalidSpecError: A field of the spec breaks a rule.
        InvalidUploadError: The checkpoint to go on from is not named completely.
    """
    resume_from = None
    if request.HasField("resume_from"):
        check_ref(request.resume_from, max_size_bytes=MAX_CHECKPOINT_BYTES)
        resume_from = ResumePoint(
            epoch=request.resume_from.epoch,
            sha256=request.resume_from.sha256.hex(),
            last_epoch_told=request.last_epoch_told,
        )
    return SessionOrder(
        session_id=request.session_id,
        training_id=request.training_id,
        attempt=request.attempt or 1,
        spec=spec_from_proto(request.spec),
        upload_target=request.upload_target,
        create_time=utc_now(),
        resume_from=resume_from,
    )


def series_from_proto(messages: Iterable[series_pb2.Series]) -> tuple[Manifest, ...]:
    """Return the series that a request names, each with its parts.

    Raises:
        InvalidInputError: A name or a part breaks a rule, parts are not in order of time, or a series is named twice.
    """
    found: dict[tuple[str, str], Manifest] = {}
    for index, message in enumerate(messages):
        field = f"series[{index}]"
        check_name(message.symbol, field=f"{field}.symbol", what="symbol", error_class=InvalidInputError)
        timeframe = str(Timeframe.parse(message.timeframe, field=f"{field}.timeframe"))
        parts = tuple(part_from_proto(part, field=f"{field}.parts[{at}]") for at, part in enumerate(message.parts))
        subject = f"{message.symbol} {timeframe}"
        if not parts:
            raise InvalidInputError(f"{subject} has no parts; name those that GetSeries answers", field=field)
        if any(before.last_ns >= after.first_ns for before, after in pairwise(parts)):
            raise InvalidInputError(f"the parts of {subject} must be in order of time", field=field)
        if (message.symbol, timeframe) in found:
            raise InvalidInputError(f"{subject} is named twice; name it once", field=field)
        found[message.symbol, timeframe] = Manifest(message.symbol, timeframe, parts)
    return tuple(found.values())


async def checkpoint_parts(
    requests: AsyncIterator[trainer_service_pb2.PutCheckpointRequest],
) -> tuple[checkpoint_pb2.CheckpointRef, AsyncIterator[UploadChunk]]:
    """Return what a stream of PutCheckpoint announces, and its chunks.

    Raises:
        InvalidUploadError: The order of the messages breaks the contract; for the chunks, as they are read.
    """
    first = await anext(aiter(requests), None)
    if first is None or first.WhichOneof("part") != "checkpoint":
        raise InvalidUploadError("the first message must have the checkpoint", field="checkpoint")

    async def chunks() -> AsyncIterator[UploadChunk]:
        async for request in requests:
            if request.WhichOneof("part") != "chunk":
                raise InvalidUploadError("each message after the first must have a chunk", field="chunk")
            yield request.chunk

    return first.checkpoint, chunks()


def optional_checkpoint_ref(checkpoint: SessionCheckpoint | None) -> checkpoint_pb2.CheckpointRef | None:
    """Return the message that names a checkpoint, or None for none."""
    return None if checkpoint is None else checkpoint_ref(checkpoint)


def brief_to_proto(session: Session) -> session_pb2.Session:
    """Return what a renewal of a lease says of a session: no spec, no result."""
    order, summary = session.order, session.log.summary
    return session_pb2.Session(
        session_id=order.session_id,
        training_id=order.training_id,
        attempt=order.attempt,
        state=state_to_proto(summary.state),
        create_time=time_to_proto(order.create_time),
        progress=summary_to_proto(summary),
        last_sequence=session.log.last_sequence,
        checkpoint=optional_checkpoint_ref(session.checkpoint),
        resumed_from_epoch=session.resumed_from_epoch,
    )


def renewal_to_proto(
    trainer: trainer_info_pb2.TrainerInfo, *, address: str, sessions: Iterable[Session]
) -> trainer_registry_service_pb2.RegisterRequest:
    """Return one renewal of a lease.

    Args:
        trainer: What the trainer is and has.
        address: Where the backend reaches it.
        sessions: Its sessions, newest first; those that have not ended are told, up to MAX_RENEWED_SESSIONS.
    """
    active = (session for session in sessions if not session.log.is_closed)
    return trainer_registry_service_pb2.RegisterRequest(
        trainer_id=trainer.trainer_id,
        address=address,
        trainer=trainer,
        sessions=map(brief_to_proto, islice(active, MAX_RENEWED_SESSIONS)),
    )


async def session_to_proto(session: Session) -> session_pb2.Session:
    """Return the message of a session as it is now."""
    usage = await asyncio.to_thread(session.resource_usage) if session.worker is not None else None
    order, summary, end_time = session.order, session.log.summary, session.end_time
    return session_pb2.Session(
        session_id=order.session_id,
        training_id=order.training_id,
        attempt=order.attempt,
        state=state_to_proto(summary.state),
        spec=spec_to_proto(order.spec),
        create_time=time_to_proto(order.create_time),
        end_time=None if end_time is None else time_to_proto(end_time),
        progress=summary_to_proto(summary),
        error=error_to_proto(summary),
        result=None if session.result is None else result_to_proto(session.result),
        resource_usage=None if usage is None else resource_usage_to_proto(usage),
        artifact_path="" if session.artifact_path is None else str(session.artifact_path),
        checkpoint_path=summary.checkpoint_path,
        worker_pid=0 if session.worker is None else session.worker.pid,
        last_sequence=session.log.last_sequence,
        message=summary.message,
        checkpoint=optional_checkpoint_ref(session.checkpoint),
        resumed_from_epoch=session.resumed_from_epoch,
    )
