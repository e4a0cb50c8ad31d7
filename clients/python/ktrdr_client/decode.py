"""From protobuf messages to the client's dataclasses; the one place that knows both."""

from __future__ import annotations

from ktrdr.data.v1 import series_pb2
from ktrdr.trainer.v1 import checkpoint_pb2, session_pb2, trainer_info_pb2
from ktrdr.training.v1 import (
    execution_mode_pb2,
    strategy_status_pb2,
    training_pb2,
    training_result_pb2,
    training_service_pb2,
    training_spec_pb2,
    training_state_pb2,
)

from ktrdr_client.bars_types import Series, SeriesPart
from ktrdr_client.decode_models import test_metrics, training_metrics
from ktrdr_client.types import (
    BackendConfig,
    Checkpoint,
    Device,
    Failure,
    ModeChange,
    Placement,
    Progress,
    QueueStatus,
    Session,
    SessionRef,
    Strategy,
    StrategyStatus,
    TrainerDevice,
    TrainerInfo,
    TrainerStatus,
    Training,
    TrainingReport,
)
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.resources import ResourceUsage
from ktrdr_core.wire.evaluation import evaluation_from_proto
from ktrdr_core.wire.from_proto import (
    batch_from_proto,
    duration_from_proto,
    epoch_from_proto,
    mode_from_proto,
    scheduling_from_proto,
    spec_from_proto,
    state_from_proto,
    step_from_proto,
    time_from_proto,
)

_STRATEGY_STATUS = {
    strategy_status_pb2.STRATEGY_STATUS_UNTRAINED: StrategyStatus.UNTRAINED,
    strategy_status_pb2.STRATEGY_STATUS_TRAINING: StrategyStatus.TRAINING,
    strategy_status_pb2.STRATEGY_STATUS_TRAINED: StrategyStatus.TRAINED,
    strategy_status_pb2.STRATEGY_STATUS_FAILED: StrategyStatus.FAILED,
}


def is_terminal(state: training_state_pb2.TrainingState.ValueType) -> bool:
    """Return whether a state of the wire is terminal; unset is not."""
    return state != training_state_pb2.TRAINING_STATE_UNSPECIFIED and state_from_proto(state).is_terminal


def training(message: training_pb2.Training) -> Training:
    """Return the training."""
    return Training(
        training_id=message.training_id,
        request_id=message.request_id,
        strategy_name=message.strategy_name,
        spec=_spec(message.spec) if message.HasField("spec") else None,
        strategy_source=message.spec.strategy.name,
        state=_state(message.state),
        create_time=time_from_proto(message.create_time) if message.HasField("create_time") else None,
        start_time=time_from_proto(message.start_time) if message.HasField("start_time") else None,
        end_time=time_from_proto(message.end_time) if message.HasField("end_time") else None,
        progress=_progress(message.progress),
        error=_failure(message.error) if message.HasField("error") else None,
        result=_report(message.result) if message.HasField("result") else None,
        placement=_placement(message.placement) if message.HasField("placement") else None,
        sessions=tuple(_session_ref(each) for each in message.sessions),
        resource_usage=_resource_usage(message.resource_usage) if message.HasField("resource_usage") else None,
        checkpoint_path=message.checkpoint_path,
        last_sequence=message.last_sequence,
        message=message.message,
        warnings=tuple(message.warnings),
        scheduling=scheduling_from_proto(message.scheduling),
        queue=_queue(message.queue) if message.HasField("queue") else None,
    )


def session(message: session_pb2.Session) -> Session:
    """Return the session."""
    return Session(
        session_id=message.session_id,
        training_id=message.training_id,
        attempt=message.attempt,
        state=state_from_proto(message.state),
        spec=_spec(message.spec) if message.HasField("spec") else None,
        create_time=time_from_proto(message.create_time) if message.HasField("create_time") else None,
        end_time=time_from_proto(message.end_time) if message.HasField("end_time") else None,
        progress=_progress(message.progress),
        error=_failure(message.error) if message.HasField("error") else None,
        result=_report(message.result) if message.HasField("result") else None,
        resource_usage=_resource_usage(message.resource_usage) if message.HasField("resource_usage") else None,
        artifact_path=message.artifact_path,
        checkpoint_path=message.checkpoint_path,
        worker_pid=message.worker_pid,
        last_sequence=message.last_sequence,
        message=message.message,
        checkpoint=checkpoint(message.checkpoint) if message.HasField("checkpoint") else None,
        resumed_from_epoch=message.resumed_from_epoch,
    )


def checkpoint(message: checkpoint_pb2.CheckpointRef) -> Checkpoint:
    """Return the name of a checkpoint."""
    return Checkpoint(epoch=message.epoch, size_bytes=message.size_bytes, sha256=message.sha256.hex())


def backend_config(message: training_service_pb2.GetConfigResponse) -> BackendConfig:
    """Return the configuration."""
    return BackendConfig(
        default_mode=_mode(message.default_mode),
        version=message.version,
        models_path=message.models_path,
        bars_path=message.bars_path,
        strategies_path=message.strategies_path,
        trainers=tuple(message.trainers),
        local_slots=message.local_slots,
    )


def mode_change(message: training_service_pb2.UpdateConfigResponse) -> ModeChange:
    """Return the mode before and now."""
    return ModeChange(previous=_mode(message.previous_default_mode), current=_mode(message.default_mode))


def trainer_status(message: training_service_pb2.TrainerStatus) -> TrainerStatus:
    """Return the trainer as the backend sees it."""
    return TrainerStatus(
        address=message.address,
        is_healthy=message.is_healthy,
        message=message.message,
        version=message.version,
        devices=tuple(message.devices),
        has_gpu=message.has_gpu,
        num_slots=message.num_slots,
        num_free_slots=message.num_free_slots,
        latency_s=duration_from_proto(message.latency),
        trainer_id=message.trainer_id,
        is_draining=message.is_draining,
        is_registered=message.is_registered,
        silence_s=duration_from_proto(message.silence) if message.HasField("silence") else None,
        num_sessions=message.num_sessions,
        python_version=message.python_version,
        torch_version=message.torch_version,
        device_details=tuple(
            TrainerDevice(
                device_type=each.device_type,
                name=each.name,
                memory_available_gb=each.memory_available_gb if each.HasField("memory_available_gb") else None,
            )
            for each in message.device_details
        ),
    )


def strategy(message: training_service_pb2.Strategy) -> Strategy:
    """Return the strategy; a status of a newer backend is UNKNOWN."""
    return Strategy(
        name=message.name,
        description=message.description,
        symbols=tuple(message.symbols),
        timeframes=tuple(message.timeframes),
        status=_STRATEGY_STATUS.get(message.status, StrategyStatus.UNKNOWN),
        latest_version=message.latest_version if message.HasField("latest_version") else None,
        error=message.error,
        last_training_time=time_from_proto(message.last_training_time)
        if message.HasField("last_training_time")
        else None,
    )


def trainer_info(message: trainer_info_pb2.TrainerInfo) -> TrainerInfo:
    """Return what a trainer is and has."""
    return TrainerInfo(
        version=message.version,
        python_version=message.python_version,
        torch_version=message.torch_version,
        devices=tuple(
            Device(
                device_type=each.device_type,
                name=each.name,
                memory_available_gb=each.memory_available_gb if each.HasField("memory_available_gb") else None,
                supports_mixed_precision=each.supports_mixed_precision,
            )
            for each in message.devices
        ),
        num_slots=message.num_slots,
        num_free_slots=message.num_free_slots,
        is_draining=message.is_draining,
        unavailable_reason=message.unavailable_reason,
        start_time=time_from_proto(message.start_time) if message.HasField("start_time") else None,
        trainer_id=message.trainer_id,
        current_time=time_from_proto(message.current_time) if message.HasField("current_time") else None,
        disk_free_bytes=message.disk_free_bytes,
    )


def _session_ref(message: training_pb2.SessionRef) -> SessionRef:
    return SessionRef(
        session_id=message.session_id,
        attempt=message.attempt,
        trainer=message.trainer,
        trainer_id=message.trainer_id,
        reasons=tuple(message.reasons),
        start_time=time_from_proto(message.start_time) if message.HasField("start_time") else None,
        end_time=time_from_proto(message.end_time) if message.HasField("end_time") else None,
        outcome=message.outcome,
        error_reason=message.error_reason,
        message=message.message,
        resumed_from_epoch=message.resumed_from_epoch,
        is_fenced=message.is_fenced,
    )


def _queue(message: training_pb2.QueueStatus) -> QueueStatus:
    return QueueStatus(
        position=message.position,
        num_queued=message.num_queued,
        estimated_wait_s=duration_from_proto(message.estimated_wait) if message.HasField("estimated_wait") else None,
        waiting_for=message.waiting_for,
    )


def _state(value: training_state_pb2.TrainingState.ValueType) -> TrainingState:
    # A training that was only validated has no state yet: it would begin QUEUED.
    return TrainingState.QUEUED if value == training_state_pb2.TRAINING_STATE_UNSPECIFIED else state_from_proto(value)


def _mode(value: execution_mode_pb2.ExecutionMode.ValueType) -> ExecutionMode:
    return mode_from_proto(value) or ExecutionMode.AUTO


def _spec(message: training_spec_pb2.TrainingSpec) -> TrainingSpec:
    text = message.strategy.yaml or f"# the backend's strategy {message.strategy.name!r}\n"
    return spec_from_proto(message, strategy_yaml=text)


def _progress(message: training_pb2.Progress) -> Progress:
    return Progress(
        overall=message.overall_fraction,
        step=step_from_proto(message.step) if message.step else None,
        epoch=epoch_from_proto(message.epoch) if message.HasField("epoch") else None,
        batch=batch_from_proto(message.batch) if message.HasField("batch") else None,
        elapsed_s=duration_from_proto(message.elapsed),
        remaining_s=duration_from_proto(message.remaining) if message.HasField("remaining") else None,
    )


def _failure(message: training_pb2.TrainingError) -> Failure:
    return Failure(reason=message.reason, message=message.message)


def _placement(message: training_pb2.Placement) -> Placement:
    return Placement(mode=_mode(message.mode), trainer=message.trainer, reasons=tuple(message.reasons))


def _resource_usage(message: training_pb2.ResourceUsage) -> ResourceUsage:
    return ResourceUsage(
        resident_memory_bytes=message.resident_memory_bytes,
        cpu_time_s=duration_from_proto(message.cpu_time),
        gpu_name=message.gpu_name,
        gpu_utilisation=message.gpu_utilisation if message.HasField("gpu_utilisation") else None,
        gpu_memory_used_bytes=message.gpu_memory_used_bytes if message.HasField("gpu_memory_used_bytes") else None,
    )


def _report(message: training_result_pb2.TrainingResult) -> TrainingReport:
    return TrainingReport(
        model_id=message.model_id,
        model_path=message.model_path,
        training_metrics=training_metrics(message.training_metrics),
        test_metrics=test_metrics(message.test_metrics),
        feature_importance={each.name: each.importance for each in message.features},
        device=message.device,
        start_time=time_from_proto(message.start_time) if message.HasField("start_time") else None,
        end_time=time_from_proto(message.end_time) if message.HasField("end_time") else None,
        duration_s=duration_from_proto(message.duration),
        total_samples=message.total_samples,
        training_samples=message.training_samples,
        test_samples=message.test_samples,
        artifact_digest=message.artifact_digest,
        warnings=tuple(message.warnings),
        evaluation=evaluation_from_proto(message.evaluation) if message.HasField("evaluation") else None,
    )


def series(message: series_pb2.Series) -> Series:
    """Return the series."""
    return Series(
        symbol=message.symbol,
        timeframe=message.timeframe,
        num_bars=message.num_bars,
        start_time=time_from_proto(message.start_time) if message.HasField("start_time") else None,
        end_time=time_from_proto(message.end_time) if message.HasField("end_time") else None,
        digest=message.sha256.hex(),
        parts=tuple(
            SeriesPart(
                start_time=time_from_proto(part.start_time),
                end_time=time_from_proto(part.end_time),
                num_bars=part.num_bars,
                size_bytes=part.size_bytes,
                sha256=part.sha256.hex(),
            )
            for part in message.parts
        ),
    )
