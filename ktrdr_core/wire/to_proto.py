"""Domain values to their messages. Absent stays absent, NaN and infinities of figures stay themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.training.v1 import (
    data_mode_pb2,
    execution_mode_pb2,
    model_type_pb2,
    progress_event_pb2,
    retry_mode_pb2,
    scheduling_pb2,
    training_pb2,
    training_result_pb2,
    training_spec_pb2,
    training_state_pb2,
    training_step_pb2,
)

from ktrdr_core.clock import from_iso
from ktrdr_core.domain.progress import (
    BatchDetail,
    EpochDetail,
    ProgressEvent,
    ProgressSummary,
    StateDetail,
    StepDetail,
    TrainingStep,
    WarningDetail,
)
from ktrdr_core.domain.result import TestMetrics, TrainingMetrics, TrainingResult
from ktrdr_core.domain.scheduling import Scheduling
from ktrdr_core.domain.spec import DataMode, ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import InvalidSpecError
from ktrdr_core.wire.evaluation import evaluation_to_proto

if TYPE_CHECKING:
    from ktrdr_core.execution.resources import ResourceUsage

_MAX_DURATION_S = 315_576_000_000  # the limit of google.protobuf.Duration
_INT32_MAX = 2**31 - 1


def time_to_proto(value: datetime) -> Timestamp:
    """Return the message of an aware time."""
    message = Timestamp()
    message.FromDatetime(value.astimezone(UTC))
    return message


def day_to_proto(value: date) -> Timestamp:
    """Return midnight UTC of a day."""
    return time_to_proto(datetime.combine(value, time(), UTC))


def duration_to_proto(seconds: float) -> Duration:
    """Return the message of a span; one that is not finite becomes 0."""
    message = Duration()
    if math.isfinite(seconds):
        fraction, whole = math.modf(min(max(seconds, -_MAX_DURATION_S), _MAX_DURATION_S))
        message.FromNanoseconds(int(whole) * 10**9 + round(fraction * 1e9))
    return message


def optional_duration_to_proto(seconds: float | None) -> Duration | None:
    """Return the message of a span, or None where it is unknown or not finite."""
    return None if seconds is None or not math.isfinite(seconds) else duration_to_proto(seconds)


def state_to_proto(state: TrainingState) -> training_state_pb2.TrainingState.ValueType:
    return training_state_pb2.TrainingState.Value(f"TRAINING_STATE_{state.name}")


def step_to_proto(step: TrainingStep | None) -> training_step_pb2.TrainingStep.ValueType:
    if step is None:
        return training_step_pb2.TRAINING_STEP_UNSPECIFIED
    return training_step_pb2.TrainingStep.Value(f"TRAINING_STEP_{step.name}")


def mode_to_proto(mode: ExecutionMode | None) -> execution_mode_pb2.ExecutionMode.ValueType:
    if mode is None:
        return execution_mode_pb2.EXECUTION_MODE_UNSPECIFIED
    return execution_mode_pb2.ExecutionMode.Value(f"EXECUTION_MODE_{mode.name}")


def data_mode_to_proto(mode: DataMode) -> data_mode_pb2.DataMode.ValueType:
    return data_mode_pb2.DataMode.Value(f"DATA_MODE_{mode.name}")


def model_type_to_proto(model_type: str | None) -> model_type_pb2.ModelType.ValueType:
    """Return the message value of a model family.

    Raises:
        InvalidSpecError: No such family.
    """
    if model_type is None:
        return model_type_pb2.MODEL_TYPE_UNSPECIFIED
    known = {name.removeprefix("MODEL_TYPE_").lower(): name for name in model_type_pb2.ModelType.keys()[1:]}
    if model_type not in known:
        raise InvalidSpecError(
            f"model_type must be one of {', '.join(sorted(known))}, was {model_type!r}", field="spec.model_type"
        )
    return model_type_pb2.ModelType.Value(known[model_type])


def spec_to_proto(spec: TrainingSpec) -> training_spec_pb2.TrainingSpec:
    """Return the message of a spec; the strategy travels as text.

    Raises:
        InvalidSpecError: A whole number does not fit its field, or the model type is unknown.
    """
    for field in ("epochs", "batch_size", "num_gpus"):
        value = getattr(spec, field)
        if value is not None and value > _INT32_MAX:
            raise InvalidSpecError(f"{field} must be at most {_INT32_MAX}, was {value}", field=f"spec.{field}")
    message = training_spec_pb2.TrainingSpec(
        symbols=spec.symbols,
        timeframes=spec.timeframes,
        start_time=None if spec.start_date is None else day_to_proto(spec.start_date),
        end_time=None if spec.end_date is None else day_to_proto(spec.end_date),
        data_mode=data_mode_to_proto(spec.data_mode),
        validation_split=spec.validation_split,
        model_type=model_type_to_proto(spec.model_type),
        multi_symbol=spec.multi_symbol,
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        enable_gpu=spec.enable_gpu,
        memory_fraction=spec.memory_fraction,
        mixed_precision=spec.mixed_precision,
        num_gpus=spec.num_gpus,
        require_gpu=spec.require_gpu,
        execution_mode=mode_to_proto(spec.execution_mode),
        seed=spec.seed,
    )
    message.strategy.yaml = spec.strategy_yaml
    return message


def scheduling_to_proto(scheduling: Scheduling) -> scheduling_pb2.Scheduling:
    """Return the message of what is asked of the queue."""
    return scheduling_pb2.Scheduling(
        user=scheduling.user,
        priority=scheduling.priority,
        retry_policy=scheduling_pb2.RetryPolicy(
            mode=retry_mode_pb2.RetryMode.Value(f"RETRY_MODE_{scheduling.retry.name}"),
            max_retries=scheduling.max_retries,
        ),
    )


def event_to_proto(event: ProgressEvent) -> progress_event_pb2.ProgressEvent:
    """Return the message of an event."""
    message = progress_event_pb2.ProgressEvent(
        sequence=event.sequence,
        create_time=time_to_proto(event.create_time),
        attempt=event.attempt,
        overall_fraction=event.overall,
        elapsed=duration_to_proto(event.elapsed_s),
        remaining=optional_duration_to_proto(event.remaining_s),
    )
    match event.detail:
        case StateDetail() as detail:
            message.state.CopyFrom(
                progress_event_pb2.StateChange(
                    state=state_to_proto(detail.state),
                    message=detail.message,
                    error_reason=detail.error_reason,
                    checkpoint_path=detail.checkpoint_path,
                    model_path=detail.model_path,
                )
            )
        case StepDetail() as detail:
            message.step.CopyFrom(
                progress_event_pb2.StepProgress(
                    step=step_to_proto(detail.step), title=detail.title, num_steps=detail.num_steps
                )
            )
        case EpochDetail() as detail:
            message.epoch.CopyFrom(epoch_to_proto(detail))
        case BatchDetail() as detail:
            message.batch.CopyFrom(batch_to_proto(detail))
        case WarningDetail() as detail:
            message.warning.CopyFrom(progress_event_pb2.Warning(reason=detail.reason, message=detail.message))
    return message


def events_to_proto(events: Iterable[ProgressEvent]) -> list[progress_event_pb2.ProgressEvent]:
    return [event_to_proto(event) for event in events]


def epoch_to_proto(detail: EpochDetail) -> progress_event_pb2.EpochProgress:
    return progress_event_pb2.EpochProgress(
        epoch=detail.epoch,
        total_epochs=detail.total_epochs,
        train_loss=detail.train_loss,
        train_accuracy=detail.train_accuracy,
        val_loss=detail.val_loss,
        val_accuracy=detail.val_accuracy,
        learning_rate=detail.learning_rate,
        rows_per_second=detail.rows_per_second,
    )


def batch_to_proto(detail: BatchDetail) -> progress_event_pb2.BatchProgress:
    return progress_event_pb2.BatchProgress(
        epoch=detail.epoch,
        total_epochs=detail.total_epochs,
        batch=detail.batch,
        total_batches_per_epoch=detail.total_batches_per_epoch,
        train_loss=detail.train_loss,
        train_accuracy=detail.train_accuracy,
        learning_rate=detail.learning_rate,
        rows_per_second=detail.rows_per_second,
    )


def summary_to_proto(summary: ProgressSummary) -> training_pb2.Progress:
    """Return the latest progress at each level."""
    return training_pb2.Progress(
        overall_fraction=summary.overall,
        step=step_to_proto(summary.step),
        epoch=None if summary.epoch is None else epoch_to_proto(summary.epoch),
        batch=None if summary.batch is None else batch_to_proto(summary.batch),
        elapsed=duration_to_proto(summary.elapsed_s),
        remaining=optional_duration_to_proto(summary.remaining_s),
    )


def error_to_proto(summary: ProgressSummary) -> training_pb2.TrainingError | None:
    """Return why a training or session FAILED, or None."""
    if summary.state is not TrainingState.FAILED:
        return None
    return training_pb2.TrainingError(reason=summary.error_reason, message=summary.message)


def result_to_proto(result: TrainingResult, *, with_evaluation: bool = True) -> training_result_pb2.TrainingResult:
    """Return the message of a result; lists do without the evaluation."""
    metadata = result["metadata"]
    return training_result_pb2.TrainingResult(
        model_id=result["model_id"],
        model_path=result["model_path"],
        training_metrics=training_metrics_to_proto(result["training_metrics"]),
        test_metrics=test_metrics_to_proto(result["test_metrics"]),
        features=_features_to_proto(result),
        device=metadata["device"],
        start_time=time_to_proto(from_iso(metadata["start_time"])),
        end_time=time_to_proto(from_iso(metadata["end_time"])),
        duration=duration_to_proto(metadata["duration_seconds"]),
        total_samples=metadata["total_samples"],
        training_samples=metadata["training_samples"],
        test_samples=metadata["test_samples"],
        artifact_digest=result["artifact_digest"],
        warnings=result.get("warnings", ()),
        evaluation=evaluation_to_proto(result["evaluation"]) if with_evaluation else None,
    )


def resource_usage_to_proto(usage: ResourceUsage) -> training_pb2.ResourceUsage:
    """Return the message of a worker's resources."""
    return training_pb2.ResourceUsage(
        gpu_name=usage.gpu_name,
        gpu_utilisation=usage.gpu_utilisation,
        gpu_memory_used_bytes=usage.gpu_memory_used_bytes,
        resident_memory_bytes=usage.resident_memory_bytes,
        cpu_time=duration_to_proto(usage.cpu_time_s),
    )


def training_metrics_to_proto(metrics: TrainingMetrics) -> training_result_pb2.TrainingMetrics:
    """Return the message of the metrics of a model's own epoch."""
    return training_result_pb2.TrainingMetrics(
        epochs=metrics["epochs"],
        best_epoch=metrics["best_epoch"],
        train_loss=metrics["train_loss"],
        train_accuracy=metrics["train_accuracy"],
        val_loss=metrics["val_loss"],
        val_accuracy=metrics["val_accuracy"],
    )


def test_metrics_to_proto(metrics: TestMetrics) -> training_result_pb2.TestMetrics:
    """Return the message of the metrics of the test part."""
    return training_result_pb2.TestMetrics(
        loss=metrics["loss"],
        accuracy=metrics["accuracy"],
        precision=metrics["precision"],
        recall=metrics["recall"],
        f1_score=metrics["f1_score"],
        majority_baseline_accuracy=metrics["majority_baseline_accuracy"],
    )


def _features_to_proto(result: TrainingResult) -> Sequence[training_result_pb2.FeatureImportance]:
    importance = result["feature_importance"]
    return [
        training_result_pb2.FeatureImportance(name=name, importance=importance[name])
        for name in result["feature_names"]
    ]
