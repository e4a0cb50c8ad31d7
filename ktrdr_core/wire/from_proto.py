"""Messages to domain values; what breaks a rule of the domain is refused here, naming the field."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.training.v1 import (
    data_mode_pb2,
    execution_mode_pb2,
    model_type_pb2,
    progress_event_pb2,
    retry_mode_pb2,
    scheduling_pb2,
    training_spec_pb2,
    training_state_pb2,
    training_step_pb2,
)

from ktrdr_core.domain.progress import (
    BatchDetail,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    StateDetail,
    StepDetail,
    TrainingStep,
    WarningDetail,
)
from ktrdr_core.domain.scheduling import DEFAULT_RETRIES, DEFAULT_SCHEDULING, RetryMode, Scheduling
from ktrdr_core.domain.spec import DataMode, ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import InvalidInputError, InvalidSpecError

T = TypeVar("T")


def time_from_proto(message: Timestamp, *, field: str = "time") -> datetime:
    """Return the aware time of a message, to the microsecond.

    Raises:
        InvalidInputError: The message is not a valid time.
    """
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{field} is not a time between years 1 and 9999: {error}", field=field) from error


def duration_from_proto(message: Duration) -> float:
    """Return a span in seconds."""
    return (message.seconds * 10**9 + message.nanos) / 10**9  # one rounding


def state_from_proto(value: training_state_pb2.TrainingState.ValueType) -> TrainingState:
    """Return the state.

    Raises:
        InvalidInputError: It is unset or unknown.
    """
    return TrainingState(_enum_name(training_state_pb2.TrainingState.DESCRIPTOR, value, "TRAINING_STATE_", "state"))


def step_from_proto(value: training_step_pb2.TrainingStep.ValueType) -> TrainingStep:
    """Return the step.

    Raises:
        InvalidInputError: It is unset or unknown.
    """
    return TrainingStep[_enum_name(training_step_pb2.TrainingStep.DESCRIPTOR, value, "TRAINING_STEP_", "step")]


def mode_from_proto(value: execution_mode_pb2.ExecutionMode.ValueType) -> ExecutionMode | None:
    """Return the mode, None if unset.

    Raises:
        InvalidInputError: It is unknown.
    """
    if value == execution_mode_pb2.EXECUTION_MODE_UNSPECIFIED:
        return None
    return ExecutionMode[
        _enum_name(execution_mode_pb2.ExecutionMode.DESCRIPTOR, value, "EXECUTION_MODE_", "execution_mode")
    ]


def data_mode_from_proto(value: data_mode_pb2.DataMode.ValueType) -> DataMode:
    """Return the data mode, BACKEND if unset.

    Raises:
        InvalidInputError: It is unknown.
    """
    if value == data_mode_pb2.DATA_MODE_UNSPECIFIED:
        return DataMode.BACKEND
    return DataMode[_enum_name(data_mode_pb2.DataMode.DESCRIPTOR, value, "DATA_MODE_", "spec.data_mode")]


def model_type_from_proto(value: model_type_pb2.ModelType.ValueType) -> str | None:
    """Return the model family, None if unset.

    Raises:
        InvalidInputError: It is unknown.
    """
    if value == model_type_pb2.MODEL_TYPE_UNSPECIFIED:
        return None
    return _enum_name(model_type_pb2.ModelType.DESCRIPTOR, value, "MODEL_TYPE_", "spec.model_type").lower()


def spec_from_proto(message: training_spec_pb2.TrainingSpec, *, strategy_yaml: str | None = None) -> TrainingSpec:
    """Return the spec of a message.

    Args:
        message: What arrived.
        strategy_yaml: Text of the strategy where the message names one; None takes the message's own text.

    Raises:
        InvalidSpecError: A field breaks a rule, or there is no text of a strategy.
    """
    if strategy_yaml is None:
        if message.strategy.WhichOneof("source") == "name":
            raise InvalidSpecError(
                f"the strategy must be given as text here, was the name {message.strategy.name!r}",
                field="spec.strategy",
            )
        strategy_yaml = message.strategy.yaml
    try:
        return TrainingSpec(
            strategy_yaml=strategy_yaml,
            symbols=tuple(message.symbols),
            timeframes=tuple(message.timeframes),
            start_date=_day(message, message.start_time, "start_time"),
            end_date=_day(message, message.end_time, "end_time"),
            data_mode=data_mode_from_proto(message.data_mode),
            validation_split=_optional(message, "validation_split", message.validation_split),
            model_type=model_type_from_proto(message.model_type),
            multi_symbol=_optional(message, "multi_symbol", message.multi_symbol),
            epochs=_optional(message, "epochs", message.epochs),
            batch_size=_optional(message, "batch_size", message.batch_size),
            learning_rate=_optional(message, "learning_rate", message.learning_rate),
            enable_gpu=message.enable_gpu if message.HasField("enable_gpu") else True,
            memory_fraction=_optional(message, "memory_fraction", message.memory_fraction),
            mixed_precision=message.mixed_precision,
            num_gpus=message.num_gpus,
            require_gpu=message.require_gpu,
            execution_mode=mode_from_proto(message.execution_mode),
            seed=message.seed if message.HasField("seed") else 42,
        )
    except InvalidSpecError:
        raise
    except InvalidInputError as error:
        raise InvalidSpecError(error.message, violations=error.violations) from error


def scheduling_from_proto(message: scheduling_pb2.Scheduling) -> Scheduling:
    """Return what a message asks of the queue; unset fields are the defaults.

    Raises:
        InvalidSpecError: A field breaks a rule.
    """
    policy = message.retry_policy
    retry = DEFAULT_SCHEDULING.retry
    if policy.mode != retry_mode_pb2.RETRY_MODE_UNSPECIFIED:
        known = retry_mode_pb2.RetryMode.DESCRIPTOR
        retry = RetryMode[_enum_name(known, policy.mode, "RETRY_MODE_", "scheduling.retry_policy.mode")]
    return Scheduling(
        user=message.user,
        priority=message.priority,
        retry=retry,
        max_retries=policy.max_retries if policy.HasField("max_retries") else DEFAULT_RETRIES,
    )


def event_from_proto(message: progress_event_pb2.ProgressEvent) -> ProgressEvent:
    """Return the event of a message.

    Raises:
        InvalidInputError: The message has no known detail, state or step.
    """
    return ProgressEvent(
        sequence=message.sequence,
        create_time=time_from_proto(message.create_time, field="create_time"),
        attempt=message.attempt,
        overall=message.overall_fraction,
        elapsed_s=duration_from_proto(message.elapsed),
        remaining_s=duration_from_proto(message.remaining) if message.HasField("remaining") else None,
        detail=_detail(message),
    )


def epoch_from_proto(message: progress_event_pb2.EpochProgress) -> EpochDetail:
    return EpochDetail(
        epoch=message.epoch,
        total_epochs=message.total_epochs,
        train_loss=message.train_loss,
        train_accuracy=message.train_accuracy,
        val_loss=message.val_loss,
        val_accuracy=message.val_accuracy,
        learning_rate=message.learning_rate,
        rows_per_second=message.rows_per_second,
    )


def batch_from_proto(message: progress_event_pb2.BatchProgress) -> BatchDetail:
    return BatchDetail(
        epoch=message.epoch,
        total_epochs=message.total_epochs,
        batch=message.batch,
        total_batches_per_epoch=message.total_batches_per_epoch,
        train_loss=message.train_loss,
        train_accuracy=message.train_accuracy,
        learning_rate=message.learning_rate,
        rows_per_second=message.rows_per_second,
    )


def _detail(message: progress_event_pb2.ProgressEvent) -> ProgressDetail:
    match message.WhichOneof("detail"):
        case "state":
            return StateDetail(
                state=state_from_proto(message.state.state),
                message=message.state.message,
                error_reason=message.state.error_reason,
                checkpoint_path=message.state.checkpoint_path,
                model_path=message.state.model_path,
            )
        case "step":
            return StepDetail(
                step=step_from_proto(message.step.step), title=message.step.title, num_steps=message.step.num_steps
            )
        case "epoch":
            return epoch_from_proto(message.epoch)
        case "batch":
            return batch_from_proto(message.batch)
        case "warning":
            return WarningDetail(reason=message.warning.reason, message=message.warning.message)
        case _:
            raise InvalidInputError("a progress event has no known detail; update this side", field="detail")


def _enum_name(enum: EnumDescriptor, value: int, prefix: str, field: str) -> str:
    found = enum.values_by_number.get(value)
    if found is None or found.number == 0:
        known = [entry.name for entry in enum.values if entry.number != 0]
        raise InvalidInputError(f"{field} must be one of {', '.join(known)}, was {value}", field=field)
    return found.name.removeprefix(prefix)


def _optional(message: Message, name: str, value: T) -> T | None:
    return value if message.HasField(name) else None


def _day(message: Message, time: Timestamp, name: str) -> date | None:
    if not message.HasField(name):
        return None
    return time_from_proto(time, field=f"spec.{name}").date()
