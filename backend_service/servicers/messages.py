"""Answers of the backend as messages."""

from __future__ import annotations

from ktrdr.training.v1 import strategy_status_pb2, training_pb2, training_service_pb2

from backend_service.operations.training_record import TrainingSnapshot
from backend_service.orchestration.trainers import TrainerHealth
from backend_service.strategies import StrategyEntry
from ktrdr_core.wire.to_proto import (
    duration_to_proto,
    error_to_proto,
    mode_to_proto,
    resource_usage_to_proto,
    result_to_proto,
    spec_to_proto,
    state_to_proto,
    summary_to_proto,
    time_to_proto,
)


def training_to_proto(snapshot: TrainingSnapshot, *, with_evaluation: bool = True) -> training_pb2.Training:
    """Return a training as it is now; lists do without the evaluation of its result."""
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
            training_pb2.SessionRef(session_id=session.session_id, attempt=session.attempt, trainer=session.trainer)
            for session in snapshot.sessions
            if session.trainer  # one without was refused and never began
        ],
        resource_usage=resource_usage_to_proto(usage) if usage else None,
        checkpoint_path=summary.checkpoint_path,
        last_sequence=summary.sequence,
        message=summary.message,
        warnings=summary.warnings,
    )


def trainer_to_proto(health: TrainerHealth) -> training_service_pb2.TrainerStatus:
    """Return what a health check found."""
    info = health.info
    return training_service_pb2.TrainerStatus(
        address=health.address,
        is_healthy=health.is_healthy,
        message=health.message,
        version=info.version if info else "",
        devices=[device.name or device.device_type for device in info.devices] if info else [],
        has_gpu=health.num_gpus > 0,
        num_slots=info.num_slots if info else 0,
        num_free_slots=info.num_free_slots if info else 0,
        latency=duration_to_proto(health.latency_s),
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
