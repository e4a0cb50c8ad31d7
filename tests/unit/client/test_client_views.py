"""What people and programs see of a training, rendered to text."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from ktrdr_client.cli import json_lines
from ktrdr_client.cli.live_view import LiveView
from ktrdr_client.cli.report import baseline_sentence, metrics_table, store_name, tell_end
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_table
from ktrdr_client.cli.views import PlainView, describe, queue_sentence
from ktrdr_client.settings import ClientSettings
from ktrdr_client.types import Failure, Placement, Progress, QueueStatus, Training, TrainingReport
from rich.console import Console

from ktrdr_core.domain import result as results
from ktrdr_core.domain.progress import (
    STEP_TITLES,
    BatchDetail,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    StateDetail,
    StepDetail,
    TrainingStep,
    WarningDetail,
)
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LAST_METRICS = results.TrainingMetrics(
    best_epoch=2, epochs=3, train_loss=0.9, train_accuracy=0.6, val_loss=1.0, val_accuracy=0.55
)
TEST_PART = results.TestMetrics(
    loss=1.01, accuracy=0.571, precision=0.5, recall=0.4, f1_score=0.45, majority_baseline_accuracy=0.523
)
REPORT = TrainingReport(
    model_id="m",
    model_path="/store/neuro/EURUSD_1h_v3",
    training_metrics=LAST_METRICS,
    test_metrics=TEST_PART,
    feature_importance={"rsi": 0.02},
    device="cpu",
    start_time=NOW,
    end_time=NOW,
    duration_s=12.3,
    total_samples=100,
    training_samples=60,
    test_samples=20,
    artifact_digest="d",
    warnings=("input_size is ignored",),
)
TRAINING = Training(
    training_id="abc123",
    request_id="r",
    strategy_name="neuro",
    spec=TrainingSpec(strategy_yaml="name: neuro", symbols=("EURUSD",), timeframes=("1h",)),
    strategy_source="",
    state=TrainingState.RUNNING,
    create_time=NOW,
    start_time=None,
    end_time=None,
    progress=Progress(step=TrainingStep.TRAINING),
    error=None,
    result=None,
    placement=Placement(mode=ExecutionMode.HOST, trainer="gpu:1", reasons=("asked for",)),
    sessions=(),
    resource_usage=None,
    checkpoint_path="",
    last_sequence=0,
    message="",
    warnings=(),
)


def _session(width: int = 100) -> tuple[CliSession, io.StringIO]:
    text = io.StringIO()
    session = CliSession(settings=ClientSettings.load(environment={}))
    console = Console(file=text, width=width, highlight=False, soft_wrap=True)
    session._consoles = {"stdout": console, "stderr": console}
    return session, text


def _event(detail: ProgressDetail, *, overall: float = 0.5, remaining_s: float | None = None) -> ProgressEvent:
    return ProgressEvent(
        sequence=1,
        create_time=NOW,
        attempt=1,
        overall=overall,
        elapsed_s=61.0,
        remaining_s=remaining_s,
        detail=detail,
    )


EPOCH = EpochDetail(
    epoch=12,
    total_epochs=50,
    train_loss=0.8123,
    train_accuracy=0.612,
    val_loss=0.9,
    val_accuracy=0.581,
    learning_rate=0.001,
    rows_per_second=14_230.0,
)
BATCH = BatchDetail(
    epoch=13,
    total_epochs=50,
    batch=85,
    total_batches_per_epoch=112,
    train_loss=0.8,
    train_accuracy=0.62,
    learning_rate=0.001,
    rows_per_second=15_000.0,
)


def _a_step(step: TrainingStep) -> StepDetail:
    return StepDetail(step=step, title=STEP_TITLES[step])


def test_plain_view_prints_one_line_for_each_change_and_none_for_batches() -> None:
    session, text = _session()
    view = PlainView(session)
    view.begin(TRAINING)
    for detail in (_a_step(TrainingStep.TRAINING), BATCH, EPOCH, WarningDetail(reason="X", message="slow disk")):
        view.event(_event(detail, remaining_s=9.0))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert "neuro" in lines[0]
    assert "abc123" in lines[0]
    assert lines[1] == " 50 %  step 7/12  Training model"
    assert "epoch 12/50" in lines[2]
    assert "14,230 rows/s" in lines[2]
    assert "remaining 0:09" in lines[2]
    assert lines[3].endswith("warning: slow disk")


def test_state_is_told_with_its_message() -> None:
    assert describe(_event(StateDetail(state=TrainingState.QUEUED))) == "queued"
    assert describe(_event(StateDetail(state=TrainingState.FAILED, message="NaN"))) == "failed: NaN"


def test_live_view_shows_three_levels_metrics_rate_and_times() -> None:
    session, text = _session()
    view = LiveView(session)
    view._training = TRAINING
    for detail in (StateDetail(state=TrainingState.RUNNING), _a_step(TrainingStep.TRAINING), EPOCH, BATCH):
        view.event(_event(detail, remaining_s=125.0))
    session.out.print(view.render())
    shown = text.getvalue()
    for part in ("neuro", "abc123", "running", "7/12", "Training model", "12/50", "85/112", "15,000 rows/s"):
        assert part in shown
    for part in ("elapsed 1:01", "remaining 2:05", "0.8000", "62.0 %", "0.9000", "58.1 %", "0.001", "50.0 %"):
        assert part in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_live_view_shows_the_remaining_time_at_every_width(width: int) -> None:
    session, text = _session(width)
    view = LiveView(session)
    view._training = TRAINING
    for detail in (_a_step(TrainingStep.TRAINING), EPOCH, BATCH):
        view.event(_event(detail, remaining_s=36_005.0))
    session.out.print(view.render())
    assert "remaining 10:00:05" in text.getvalue()
    assert all(len(line) <= width for line in text.getvalue().splitlines())


def test_live_view_fills_the_batch_bar_between_epochs() -> None:
    session, text = _session()
    view = LiveView(session)
    for detail in (_a_step(TrainingStep.TRAINING), replace(BATCH, epoch=12), EPOCH):
        view.event(_event(detail))
    session.out.print(view.render())
    assert "112/112" in text.getvalue()


def test_live_view_begins_anew_with_the_next_attempt() -> None:
    session, _ = _session()
    view = LiveView(session)
    view.event(_event(_a_step(TrainingStep.EVALUATION), overall=0.94))
    view.event(replace(_event(_a_step(TrainingStep.LOADING_MARKET_DATA), overall=0.0), attempt=2))
    assert view._summary.overall == 0.0
    assert view._summary.step is TrainingStep.LOADING_MARKET_DATA


QUEUED_AGAIN = ProgressEvent(
    sequence=9,
    create_time=NOW,
    attempt=1,
    overall=0.94,
    detail=StateDetail(state=TrainingState.QUEUED, message="gpu-1 was silent for 10 s", error_reason="TRAINER_LOST"),
)


def test_lost_attempt_is_one_line_that_says_it_goes_on() -> None:
    session, text = _session()
    view = PlainView(session)
    view.event(_event(StateDetail(state=TrainingState.QUEUED, message="accepted"), overall=0.0))
    view.event(QUEUED_AGAIN)
    view.event(replace(_event(StateDetail(state=TrainingState.RUNNING, message="on gpu-2")), attempt=2, sequence=10))
    assert text.getvalue().splitlines() == [
        "  0 %  queued: accepted",
        " 94 %  queued again, attempt 1 is lost: gpu-1 was silent for 10 s",
        " 50 %  running, attempt 2: on gpu-2",
    ]


def test_live_view_tells_a_lost_attempt_waits_and_then_shows_the_next() -> None:
    session, text = _session()
    view = LiveView(session)
    view._training = TRAINING
    for detail in (StateDetail(state=TrainingState.RUNNING), _a_step(TrainingStep.EVALUATION), EPOCH):
        view.event(_event(detail, overall=0.94))
    view.event(QUEUED_AGAIN)
    assert text.getvalue().splitlines() == ["queued again, attempt 1 is lost: gpu-1 was silent for 10 s"]
    session.out.print(view.render())
    assert "abc123  queued" in text.getvalue()
    assert "12/50" not in text.getvalue()
    running = StateDetail(state=TrainingState.RUNNING)
    for detail in (running, _a_step(TrainingStep.TRAINING), replace(EPOCH, epoch=5)):
        view.event(replace(_event(detail, overall=0.2), attempt=2))
    session.out.print(view.render())
    shown = text.getvalue()
    assert "running  attempt 2" in shown
    assert "5/50" in shown
    assert "20.0 %" in shown


@pytest.mark.parametrize(
    ("wait", "waiting_for", "expected"),
    [
        (None, "", "3 of 7 in the queue"),
        (90.0, "a trainer with a GPU", "3 of 7 in the queue, about 1:30 to wait; a trainer with a GPU"),
    ],
)
def test_place_in_the_queue_is_said_with_what_is_known(wait: float | None, waiting_for: str, expected: str) -> None:
    queue = QueueStatus(position=3, num_queued=7, estimated_wait_s=wait, waiting_for=waiting_for)
    assert queue_sentence(queue) == expected


def test_end_of_a_training_shows_accuracy_next_to_the_baseline_and_what_to_type_next() -> None:
    session, text = _session()
    tell_end(session, replace(TRAINING, state=TrainingState.COMPLETED, result=REPORT))
    shown = text.getvalue()
    test_row = next(line for line in shown.splitlines() if line.startswith("test "))
    assert test_row.split()[:6] == ["test", "1.0100", "57.1", "%", "52.3", "%"]
    assert "majority baseline 52.3 %: +4.8 points" in shown
    assert "model  /store/neuro/EURUSD_1h_v3\n" in shown
    assert "next   ktrdr models predict neuro/EURUSD_1h_v3\n" in shown
    assert "warning: input_size is ignored" in shown
    assert "trained in 0:12 on cpu (host on gpu:1)" in shown


def test_backend_without_best_epoch_is_told_no_epoch_zero() -> None:
    session, text = _session()
    older = replace(REPORT, training_metrics={**REPORT.training_metrics, "best_epoch": 0})
    tell_end(session, replace(TRAINING, state=TrainingState.COMPLETED, result=older))
    assert "epoch 0" not in text.getvalue()


def test_failed_training_tells_its_reason_and_message() -> None:
    session, text = _session()
    failure = Failure(reason="NON_FINITE_LOSS", message="the loss became NaN in epoch 2, batch 7")
    tell_end(session, replace(TRAINING, state=TrainingState.FAILED, error=failure))
    assert "abc123 failed (NON_FINITE_LOSS): the loss became NaN in epoch 2, batch 7" in text.getvalue()


def test_stopped_training_tells_where_its_checkpoint_is() -> None:
    session, text = _session()
    tell_end(session, replace(TRAINING, state=TrainingState.STOPPED, checkpoint_path="/x/checkpoint"))
    assert "stopped; checkpoint: /x/checkpoint" in text.getvalue()


def test_worse_than_the_baseline_is_said_with_a_minus() -> None:
    worse = results.TestMetrics(**{**TEST_PART, "accuracy": 0.5})
    assert baseline_sentence(worse).endswith("52.3 %: -2.3 points")
    assert metrics_table(LAST_METRICS, worse).row_count == 3


def test_table_in_a_narrow_pipe_never_cuts_an_id() -> None:
    session, text = _session(width=40)
    long_id = "0123456789abcdef" * 3
    say_table(session, ("id", "state"), [(long_id, "completed")], empty="none")
    assert f"{long_id}   completed" in text.getvalue()


def test_store_name_is_the_last_two_parts_of_the_path() -> None:
    assert store_name("/a/b/models/neuro/EURUSD_1h_v3") == "neuro/EURUSD_1h_v3"


def test_json_event_has_its_detail_beside_its_own_fields() -> None:
    line = json.loads(json_lines.event_line(_event(EPOCH, remaining_s=1.5)))
    assert line == {
        "type": "event",
        "sequence": 1,
        "create_time": "2026-01-01T00:00:00.000000Z",
        "attempt": 1,
        "overall": 0.5,
        "elapsed_s": 61.0,
        "remaining_s": 1.5,
        "kind": "epoch",
        "epoch": 12,
        "total_epochs": 50,
        "train_loss": 0.8123,
        "train_accuracy": 0.612,
        "val_loss": 0.9,
        "val_accuracy": 0.581,
        "learning_rate": 0.001,
        "rows_per_second": 14_230.0,
    }


def test_json_of_a_training_leaves_out_the_text_of_the_strategy_and_writes_nan_as_null() -> None:
    broken = replace(EPOCH, val_loss=float("nan"))
    training = replace(TRAINING, progress=Progress(epoch=broken), result=REPORT)
    line = json.loads(json_lines.line("training", training))
    assert line["type"] == "training"
    assert "strategy_yaml" not in line["spec"]
    assert line["spec"]["symbols"] == ["EURUSD"]
    assert line["state"] == "RUNNING"
    assert line["placement"]["mode"] == "host"
    assert line["progress"]["epoch"]["val_loss"] is None
    assert line["result"]["test_metrics"]["majority_baseline_accuracy"] == 0.523
