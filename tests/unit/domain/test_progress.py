"""Progress events: round trips, order of fractions, the folded summary."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktrdr_core.domain.progress import (
    NUM_STEPS,
    STEP_TITLES,
    BatchDetail,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    ProgressSummary,
    StateDetail,
    StepDetail,
    TrainingStep,
    WarningDetail,
    overall_fraction,
)
from ktrdr_core.domain.states import TrainingState

finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**31 - 1)
details: st.SearchStrategy[ProgressDetail] = st.one_of(
    st.builds(StateDetail, state=st.sampled_from(TrainingState), message=st.text(), error_reason=st.text()),
    st.builds(StepDetail, step=st.sampled_from(TrainingStep), title=st.text()),
    st.builds(
        EpochDetail,
        epoch=counts,
        total_epochs=counts,
        **dict.fromkeys(
            ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "rows_per_second"), finite
        ),
    ),
    st.builds(
        BatchDetail,
        epoch=counts,
        total_epochs=counts,
        batch=counts,
        total_batches_per_epoch=counts,
        **dict.fromkeys(("train_loss", "train_accuracy", "learning_rate", "rows_per_second"), finite),
    ),
    st.builds(WarningDetail, reason=st.text(), message=st.text()),
)
events = st.builds(
    ProgressEvent,
    sequence=counts,
    create_time=st.datetimes(timezones=st.just(UTC)),
    attempt=counts,
    overall=finite,
    elapsed_s=finite,
    remaining_s=st.none() | finite,
    detail=details,
)


@given(events)
def test_event_survives_json(event: ProgressEvent) -> None:
    assert ProgressEvent.from_json(event.to_json()) == event


@given(st.sampled_from(TrainingStep), finite, st.sampled_from(TrainingStep), finite)
@example(TrainingStep.TRAINING, 1.0, TrainingStep.EVALUATION, 0.0)
def test_overall_fraction_never_goes_back(a: TrainingStep, x: float, b: TrainingStep, y: float) -> None:
    if (a, x) > (b, y):
        (a, x), (b, y) = (b, y), (a, x)
    assert 0.0 <= overall_fraction(a, x) <= overall_fraction(b, y) <= 1.0


def test_there_are_twelve_titled_steps() -> None:
    assert NUM_STEPS == 12
    assert set(STEP_TITLES) == set(TrainingStep)


def test_only_batch_events_are_transient() -> None:
    assert [cls.is_durable for cls in (StateDetail, StepDetail, EpochDetail, BatchDetail, WarningDetail)] == [
        True,
        True,
        True,
        False,
        True,
    ]


def test_summary_keeps_the_latest_of_each_level() -> None:
    now = datetime(2017, 1, 1, tzinfo=UTC)
    summary = ProgressSummary()
    for sequence, overall, detail in (
        (1, 0.0, StateDetail(state=TrainingState.RUNNING, message="worker started")),
        (2, 0.5, StepDetail(step=TrainingStep.TRAINING, title="Training model")),
        (3, 0.4, WarningDetail(reason="INPUT_SIZE", message="declared 10, is 12")),
    ):
        summary.apply(ProgressEvent(sequence=sequence, create_time=now, attempt=1, overall=overall, detail=detail))
    assert (summary.sequence, summary.state, summary.step) == (3, TrainingState.RUNNING, TrainingStep.TRAINING)
    assert summary.overall == pytest.approx(0.5)
    assert summary.warnings == ["declared 10, is 12"]
