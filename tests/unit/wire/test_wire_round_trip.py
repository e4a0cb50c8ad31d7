"""What goes through a message comes back equal."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ktrdr.training.v1 import progress_event_pb2, training_spec_pb2
from ktrdr.training.v1.data_mode_pb2 import DATA_MODE_UNSPECIFIED

from ktrdr_core.domain.progress import (
    BatchDetail,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    ProgressSummary,
    StateDetail,
    StepDetail,
    TrainingStep,
    WarningDetail,
)
from ktrdr_core.domain.spec import DataMode, ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import InvalidInputError, InvalidSpecError
from ktrdr_core.wire.from_proto import (
    data_mode_from_proto,
    event_from_proto,
    mode_from_proto,
    model_type_from_proto,
    spec_from_proto,
    state_from_proto,
    step_from_proto,
)
from ktrdr_core.wire.to_proto import (
    data_mode_to_proto,
    error_to_proto,
    event_to_proto,
    mode_to_proto,
    model_type_to_proto,
    spec_to_proto,
    state_to_proto,
    step_to_proto,
    summary_to_proto,
)

texts = st.text(st.characters(codec="utf-8"), max_size=30)
int32 = st.integers(0, 2**31 - 1)
figures = st.floats(allow_nan=True, allow_infinity=True)
seconds = st.integers(0, 10**9).map(lambda millis: millis / 1000)
names = st.lists(st.text("ABCxyz019._-", min_size=1, max_size=8), max_size=3).map(tuple)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)

specs = st.builds(
    TrainingSpec,
    strategy_yaml=texts.filter(str.strip),
    symbols=names,
    timeframes=names,
    start_date=st.none() | st.dates(max_value=date(2020, 1, 1)),
    end_date=st.none() | st.dates(min_value=date(2020, 1, 1)),
    data_mode=st.sampled_from(DataMode),
    validation_split=st.none() | fractions,
    model_type=st.none() | st.sampled_from(["mlp", "lstm", "transformer", "gru"]),
    multi_symbol=st.none() | st.booleans(),
    epochs=st.none() | st.integers(1, 2**31 - 1),
    batch_size=st.none() | st.integers(1, 2**31 - 1),
    learning_rate=st.none() | fractions,
    enable_gpu=st.booleans(),
    memory_fraction=st.none() | fractions,
    mixed_precision=st.booleans(),
    num_gpus=int32,
    require_gpu=st.booleans(),
    execution_mode=st.none() | st.sampled_from(ExecutionMode),
    seed=st.integers(0, 2**63 - 1),
)
details: st.SearchStrategy[ProgressDetail] = st.one_of(
    st.builds(
        StateDetail,
        state=st.sampled_from(TrainingState),
        message=texts,
        error_reason=texts,
        checkpoint_path=texts,
        model_path=texts,
    ),
    st.builds(StepDetail, step=st.sampled_from(TrainingStep), title=texts, num_steps=int32),
    st.builds(
        EpochDetail,
        epoch=int32,
        total_epochs=int32,
        train_loss=figures,
        train_accuracy=figures,
        val_loss=figures,
        val_accuracy=figures,
        learning_rate=figures,
        rows_per_second=figures,
    ),
    st.builds(
        BatchDetail,
        epoch=int32,
        total_epochs=int32,
        batch=int32,
        total_batches_per_epoch=int32,
        train_loss=figures,
        train_accuracy=figures,
        learning_rate=figures,
        rows_per_second=figures,
    ),
    st.builds(WarningDetail, reason=texts, message=texts),
)
events = st.builds(
    ProgressEvent,
    sequence=st.integers(0, 2**63 - 1),
    create_time=st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(fold=0)),
    attempt=int32,
    overall=figures,
    elapsed_s=seconds,
    remaining_s=st.none() | seconds,
    detail=details,
)


@given(spec=specs)
def test_a_spec_comes_back_equal(spec: TrainingSpec) -> None:
    data = spec_to_proto(spec).SerializeToString()

    assert spec_from_proto(training_spec_pb2.TrainingSpec.FromString(data)) == spec


@given(event=events)
def test_an_event_comes_back_equal_with_nan_infinite_and_absent_figures(event: ProgressEvent) -> None:
    data = event_to_proto(event).SerializeToString()

    # repr is equal for NaN, which == is not
    assert repr(event_from_proto(progress_event_pb2.ProgressEvent.FromString(data))) == repr(event)


def test_every_enum_value_comes_back() -> None:
    assert [state_from_proto(state_to_proto(state)) for state in TrainingState] == list(TrainingState)
    assert [step_from_proto(step_to_proto(step)) for step in TrainingStep] == list(TrainingStep)
    assert [int(step_to_proto(step)) for step in TrainingStep] == [int(step) for step in TrainingStep]
    assert [mode_from_proto(mode_to_proto(mode)) for mode in (None, *ExecutionMode)] == [None, *ExecutionMode]
    assert [data_mode_from_proto(data_mode_to_proto(mode)) for mode in DataMode] == list(DataMode)
    assert data_mode_from_proto(DATA_MODE_UNSPECIFIED) is DataMode.BACKEND
    assert [model_type_from_proto(model_type_to_proto(name)) for name in (None, "mlp", "gru")] == [None, "mlp", "gru"]


@pytest.mark.parametrize("value", [0, 99])
def test_an_unset_or_unknown_state_or_step_is_refused(value: int) -> None:
    with pytest.raises(InvalidInputError, match=f"was {value}"):
        state_from_proto(value)  # type: ignore[arg-type]  # enums are open on the wire
    with pytest.raises(InvalidInputError, match=f"was {value}"):
        step_from_proto(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("remaining", [math.nan, math.inf])
def test_a_remaining_time_that_is_no_time_is_unknown(remaining: float) -> None:
    event = ProgressEvent(
        create_time=datetime(2026, 1, 1, tzinfo=UTC), remaining_s=remaining, detail=WarningDetail(reason="", message="")
    )

    assert event_from_proto(event_to_proto(event)).remaining_s is None


def test_an_empty_spec_message_means_the_defaults() -> None:
    message = training_spec_pb2.TrainingSpec()
    message.strategy.yaml = "name: x"

    assert spec_from_proto(message) == TrainingSpec(strategy_yaml="name: x")


def test_zero_that_was_set_is_not_unset() -> None:
    message = training_spec_pb2.TrainingSpec(batch_size=0)

    with pytest.raises(InvalidSpecError, match="batch_size must be at least 1, was 0"):
        spec_from_proto(message, strategy_yaml="name: x")


def test_a_named_strategy_takes_the_text_it_was_resolved_to() -> None:
    message = training_spec_pb2.TrainingSpec()
    message.strategy.name = "neuro"

    assert spec_from_proto(message, strategy_yaml="name: neuro").strategy_yaml == "name: neuro"
    with pytest.raises(InvalidSpecError, match="neuro"):
        spec_from_proto(message)


def test_no_strategy_is_refused() -> None:
    with pytest.raises(InvalidSpecError, match="strategy is empty"):
        spec_from_proto(training_spec_pb2.TrainingSpec())


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [("execution_mode", 9, "execution_mode"), ("data_mode", 9, "data_mode"), ("model_type", 9, "model_type")],
)
def test_an_unknown_enum_in_a_spec_names_its_field(field: str, value: int, name: str) -> None:
    message = training_spec_pb2.TrainingSpec()
    setattr(message, field, value)

    with pytest.raises(InvalidSpecError, match=name) as caught:
        spec_from_proto(message, strategy_yaml="name: x")

    assert name in caught.value.violations[0].field


def test_a_time_outside_the_calendar_is_refused() -> None:
    message = training_spec_pb2.TrainingSpec()
    message.start_time.seconds = 10**15

    with pytest.raises(InvalidSpecError, match="start_time"):
        spec_from_proto(message, strategy_yaml="name: x")


@pytest.mark.parametrize("field", ["epochs", "batch_size", "num_gpus"])
def test_a_number_too_large_for_its_field_is_refused(field: str) -> None:
    spec = TrainingSpec(strategy_yaml="name: x", **{field: 2**31})  # type: ignore[arg-type]

    with pytest.raises(InvalidSpecError, match=field):
        spec_to_proto(spec)


def test_an_unknown_model_type_is_refused() -> None:
    with pytest.raises(InvalidSpecError, match="perceptron"):
        spec_to_proto(TrainingSpec(strategy_yaml="name: x", model_type="perceptron"))


def test_an_event_without_detail_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="detail"):
        event_from_proto(progress_event_pb2.ProgressEvent())


def test_an_empty_summary_says_nothing_it_does_not_know() -> None:
    message = summary_to_proto(ProgressSummary())

    assert not message.HasField("epoch")
    assert not message.HasField("batch")
    assert not message.HasField("remaining")
    assert message.step == 0
    assert error_to_proto(ProgressSummary()) is None


def test_a_failed_summary_has_its_error() -> None:
    summary = ProgressSummary(state=TrainingState.FAILED, message="loss became NaN", error_reason="NON_FINITE_LOSS")

    error = error_to_proto(summary)

    assert error is not None
    assert (error.reason, error.message) == ("NON_FINITE_LOSS", "loss became NaN")


def test_a_status_does_not_grow_with_the_training() -> None:
    def size_after(num_epochs: int) -> int:
        summary = ProgressSummary()
        for epoch in range(1, num_epochs + 1):
            figures = {"train_loss": 0.5, "train_accuracy": 0.5, "learning_rate": 0.001, "rows_per_second": 9e4}
            for detail in (
                BatchDetail(epoch=epoch, total_epochs=num_epochs, batch=50, total_batches_per_epoch=100, **figures),
                EpochDetail(epoch=epoch, total_epochs=num_epochs, val_loss=0.5, val_accuracy=0.5, **figures),
            ):
                summary.apply(ProgressEvent(create_time=datetime(2026, 1, 1, tzinfo=UTC), detail=detail))
        return len(summary_to_proto(summary).SerializeToString())

    assert size_after(5_000) - size_after(10) <= 8  # two counts with one digit group more
