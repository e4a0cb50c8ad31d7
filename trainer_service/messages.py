"""Sessions and the trainer's facts to their messages."""

from __future__ import annotations

import asyncio

from ktrdr.trainer.v1 import session_pb2, trainer_service_pb2

from ktrdr_core.clock import utc_now
from ktrdr_core.wire.from_proto import spec_from_proto
from ktrdr_core.wire.to_proto import (
    error_to_proto,
    resource_usage_to_proto,
    result_to_proto,
    spec_to_proto,
    state_to_proto,
    summary_to_proto,
    time_to_proto,
)
from trainer_service.journal import SessionOrder
from trainer_service.session import Session


def order_from_proto(request: trainer_service_pb2.TrainRequest) -> SessionOrder:
    """Return what a request orders.

    Raises:
        InvalidSpecError: A field of the spec breaks a rule.
    """
    return SessionOrder(
        session_id=request.session_id,
        training_id=request.training_id,
        attempt=request.attempt or 1,
        spec=spec_from_proto(request.spec),
        upload_target=request.upload_target,
        create_time=utc_now(),
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
    )
