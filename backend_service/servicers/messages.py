"""Answers of the backend as messages."""

from __future__ import annotations

from ktrdr.training.v1 import strategy_status_pb2, training_pb2, training_service_pb2

from backend_service.operations.records import Fence, SessionRow
from backend_service.operations.training_record import TrainingSnapshot
from backend_service.orchestration.placer import QueueStatus
from backend_service.orchestration.trainer_health import TrainerHealth
from backend_service.strategies import StrategyEntry
from ktrdr_core.wire.to_proto import (
    duration_to_proto,
    error_to_proto,
    mode_to_proto,
    optional_duration_to_proto,
    resource_usage_to_proto,
    result_to_proto,
    scheduling_to_proto,
    spec_to_proto,
    state_to_proto,
    summary_to_proto,
    time_to_proto,
)


def training_to_proto(
    snapshot: TrainingSnapshot, *, queue: QueueStatus | None = None, with_evaluation: bool = True
) -> training_pb2.Training:
    """Return a training as it is now, with its place in the queue; lists do without the evaluation of its result."""
    row, summary = snapshot.row, snapshot.summary
    usage = snapshot.resource_usage
    return training_pb2.Training(
        training_id=row.training_id,
        request_id=row.request_id,
        strategy_name=row.strategy_name,
        spec=spec_to_proto(row.spec),
        state=state_to_proto(row.state),
        create_time=time_to_proto(row.create_time),
        start_time=time_to_proto(row.start_time) if row.start_time else None,
        end_time=time_to_proto(row.end_time) if row.end_time else None,
        progress=summary_to_proto(summary),
        error=error_to_proto(summary),
        result=result_to_proto(row.result, with_evaluation=with_evaluation) if row.result else None,
        placement=None
        if row.placement is None
        else training_pb2.Placement(
            mode=mode_to_proto(row.placement.mode), trainer=row.placement.trainer, reasons=row.placement.reasons
        ),
        sessions=[
            session_to_proto(session)
            for session in snapshot.sessions
            if session.trainer  # one without was refused and never began
        ],
        resource_usage=resource_usage_to_proto(usage) if usage else None,
        checkpoint_path=summary.checkpoint_path,
        last_sequence=summary.sequence,
        message=summary.message,
        warnings=summary.warnings,
        scheduling=scheduling_to_proto(row.scheduling),
        queue=None
        if queue is None
        else training_pb2.QueueStatus(
            position=queue.position,
            num_queued=queue.num_queued,
            estimated_wait=optional_duration_to_proto(queue.estimated_wait_s),
            waiting_for=queue.waiting_for,
        ),
    )


def session_to_proto(session: SessionRow) -> training_pb2.SessionRef:
    """Return an attempt with its story."""
    return training_pb2.SessionRef(
        session_id=session.session_id,
        attempt=session.attempt,
        trainer=session.trainer,
        trainer_id=session.trainer_id,
        reasons=session.reasons,
        start_time=time_to_proto(session.start_time) if session.start_time else None,
        end_time=time_to_proto(session.end_time) if session.end_time else None,
        outcome=session.outcome,
        error_reason=session.error_reason,
        message=session.message,
        resumed_from_epoch=session.resumed_from_epoch,
        is_fenced=session.fence is not Fence.NONE,
    )


def trainer_to_proto(health: TrainerHealth) -> training_service_pb2.TrainerStatus:
    """Return a trainer as the backend sees it."""
    info = health.info
    devices = info.devices if info else ()
    return training_service_pb2.TrainerStatus(
        address=health.address,
        is_healthy=health.is_healthy,
        message=health.message,
        version=info.version if info else "",
        devices=[device.name or device.device_type for device in devices],
        has_gpu=health.num_gpus > 0,
        num_slots=health.num_slots,
        num_free_slots=health.num_free_slots,
        latency=duration_to_proto(health.latency_s),
        trainer_id=health.trainer_id,
        is_draining=health.is_draining,
        is_registered=health.is_registered,
        silence=optional_duration_to_proto(health.silence_s),
        num_sessions=health.num_sessions,
        python_version=info.python_version if info else "",
        torch_version=info.torch_version if info else "",
        device_details=[
            training_service_pb2.TrainerDevice(
                device_type=device.device_type,
                name=device.name,
                memory_available_gb=device.memory_available_gb if device.HasField("memory_available_gb") else None,
            )
            for device in devices
        ],
    )


def strategy_to_proto(entry: StrategyEntry) -> training_service_pb2.Strategy:
    """Return a strategy and what is known of it."""
    config = entry.config
    return training_service_pb2.Strategy(
        name=entry.name,
        description=config.description if config else "",
        symbols=config.symbols if config else (),
        timeframes=config.timeframes if config else (),
        status=strategy_status_pb2.StrategyStatus.Value(f"STRATEGY_STATUS_{entry.status}"),
        latest_version=entry.latest_version,
        error=entry.error,
        last_training_time=time_to_proto(entry.last_training_time) if entry.last_training_time else None,
    )
