"""ProgressTracker: three levels, a fraction that never goes back, a bounded rate of batch events."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.execution.progress_tracker import MIN_BATCH_INTERVAL_S, ProgressTracker
from ktrdr_core.training.checkpoint_file import LoopPosition


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def metrics(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "progress_type": kind,
        "train_loss": 0.9,
        "train_accuracy": 0.6,
        "val_loss": 1.1,
        "val_accuracy": 0.5,
        "learning_rate": 0.01,
        "rows_per_second": 500.0,
        **more,
    }


@pytest.fixture
def events() -> list[ProgressEvent]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(events: list[ProgressEvent], clock: Clock) -> ProgressTracker:
    return ProgressTracker(events.append, attempt=3, monotonic=clock)


def report_batch(tracker: ProgressTracker, epoch: int, batch: int, *, epochs: int = 4, batches: int = 10) -> None:
    tracker.report_progress(epoch, epochs, metrics("batch", batch=batch, total_batches_per_epoch=batches))


def test_events_carry_attempt_and_elapsed_time_and_no_sequence(
    tracker: ProgressTracker, events: list[ProgressEvent], clock: Clock
) -> None:
    clock.now_s += 2.5
    tracker.report_running("go")
    assert (events[0].attempt, events[0].elapsed_s, events[0].sequence) == (3, 2.5, 0)
    assert events[0].detail == StateDetail(state=TrainingState.RUNNING, message="go")


def test_each_kind_of_report_becomes_its_own_detail(
    tracker: ProgressTracker, events: list[ProgressEvent], clock: Clock
) -> None:
    tracker.report_step(TrainingStep.TRAINING)
    report_batch(tracker, 1, 5)
    tracker.report_progress(1, 4, metrics("epoch"))
    tracker.report_warning("NEAR_DEGENERATE", "90 % are HOLD")
    assert [event.detail for event in events] == [
        StepDetail(step=TrainingStep.TRAINING, title="Training model"),
        BatchDetail(
            epoch=1,
            total_epochs=4,
            batch=5,
            total_batches_per_epoch=10,
            train_loss=0.9,
            train_accuracy=0.6,
            learning_rate=0.01,
            rows_per_second=500.0,
        ),
        EpochDetail(
            epoch=1,
            total_epochs=4,
            train_loss=0.9,
            train_accuracy=0.6,
            val_loss=1.1,
            val_accuracy=0.5,
            learning_rate=0.01,
            rows_per_second=500.0,
        ),
        WarningDetail(reason="NEAR_DEGENERATE", message="90 % are HOLD"),
    ]


def test_remaining_time_follows_the_pace_of_training_alone(
    tracker: ProgressTracker, events: list[ProgressEvent], clock: Clock
) -> None:
    tracker.report_step(TrainingStep.LOADING_MARKET_DATA)
    clock.now_s += 50.0
    tracker.report_step(TrainingStep.TRAINING)
    assert [event.remaining_s for event in events] == [None, None]
    clock.now_s += 10.0
    tracker.report_progress(1, 4, metrics("epoch"))
    assert events[-1].remaining_s == pytest.approx(30.0)
    tracker.report_step(TrainingStep.COMPLETE)
    assert (events[-1].remaining_s, events[-1].overall) == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["epoch", "batch"])
def test_remaining_time_of_a_resumed_training_follows_the_pace_of_this_session(
    tracker: ProgressTracker, events: list[ProgressEvent], clock: Clock, kind: str
) -> None:
    tracker.report_step(TrainingStep.TRAINING)
    clock.now_s += 10.0
    if kind == "batch":  # half of the epoch
        tracker.report_progress(91, 100, metrics("batch", batch=5, total_batches_per_epoch=10))
    else:
        tracker.report_progress(91, 100, metrics("epoch"))
    # 100 epochs, 90 of them done before: 10 s for one of the ten left, or for half of it.
    assert events[-1].remaining_s == pytest.approx(90.0 if kind == "epoch" else 190.0, rel=0.01)
    clock.now_s += 10.0
    tracker.report_progress(92, 100, metrics("epoch"))
    assert events[-1].remaining_s == pytest.approx(80.0)


def test_a_checkpoint_is_described_and_sent(tmp_path: Path) -> None:
    sent: list[SessionCheckpoint] = []
    tracker = ProgressTracker(lambda event: None, attempt=1, send_checkpoint=sent.append)
    assert tracker.checkpoint is None
    path = tmp_path / "one"
    path.write_bytes(b"abc")
    tracker.report_checkpoint(path, LoopPosition(epoch=4, batches_done=2))
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sent == [tracker.checkpoint] == [SessionCheckpoint(path=path, epoch=3, size_bytes=3, sha256=digest)]


def test_batch_events_are_at_most_ten_a_second(
    tracker: ProgressTracker, events: list[ProgressEvent], clock: Clock
) -> None:
    tracker.report_step(TrainingStep.TRAINING)
    for batch in range(1, 1001):
        clock.now_s += 0.002
        report_batch(tracker, 1, batch, batches=1000)
    times = [event.elapsed_s for event in events if isinstance(event.detail, BatchDetail)]
    assert 18 <= len(times) <= 20
    assert all(later - earlier >= MIN_BATCH_INTERVAL_S - 1e-9 for earlier, later in itertools.pairwise(times))


def test_a_skipped_batch_still_moves_the_fraction(
    tracker: ProgressTracker, events: list[ProgressEvent], clock: Clock
) -> None:
    tracker.report_step(TrainingStep.TRAINING)
    report_batch(tracker, 1, 1)
    report_batch(tracker, 4, 10)
    tracker.report_warning("X", "y")
    assert len(events) == 3
    assert events[-1].overall == pytest.approx(0.93)


reports = st.lists(
    st.one_of(
        st.sampled_from(list(TrainingStep)),
        st.tuples(st.integers(1, 4), st.integers(1, 10)),
        st.integers(1, 4),
    ),
    max_size=30,
)


@given(reports=reports)
def test_overall_fraction_never_goes_back_whatever_is_reported(reports: list[Any]) -> None:
    events: list[ProgressEvent] = []
    clock = Clock()
    tracker = ProgressTracker(events.append, attempt=1, monotonic=clock)
    for report in reports:
        clock.now_s += 1.0
        if isinstance(report, TrainingStep):
            tracker.report_step(report)
        elif isinstance(report, tuple):
            report_batch(tracker, *report)
        else:
            tracker.report_progress(report, 4, metrics("epoch"))
    overall = [event.overall for event in events]
    assert overall == sorted(overall)
    assert all(0.0 <= value <= 1.0 for value in overall)
    summary = ProgressSummary()
    for event in events:
        summary.apply(event)
    assert summary.overall == max(overall, default=0.0)
