"""`ktrdr show` for people: attempts, history, warnings, error and the way out."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.story import tell_story
from ktrdr_client.cli.ways_out import _WAYS_OUT, way_out
from ktrdr_client.settings import ClientSettings
from ktrdr_client.types import Failure, Placement, Progress, QueueStatus, SessionRef, Training
from rich.console import Console

from ktrdr_core.domain.progress import ProgressDetail, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.scheduling import RetryMode, Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import TrainingError, error_classes

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LOST = SessionRef(
    session_id="session-one",
    attempt=1,
    trainer="gpu-1:50052",
    trainer_id="0123456789abcdef",
    reasons=("a GPU was asked for", "most free slots"),
    start_time=NOW,
    end_time=NOW + timedelta(seconds=75),
    outcome="LOST",
    error_reason="TRAINER_LOST",
    message="silent for 10 s",
    is_fenced=True,
)
NEXT = SessionRef(
    session_id="session-two",
    attempt=2,
    trainer="gpu-2:50052",
    start_time=NOW + timedelta(seconds=80),
    resumed_from_epoch=40,
)
TRAINING = Training(
    training_id="abc123",
    request_id="my-request",
    strategy_name="neuro",
    spec=TrainingSpec(strategy_yaml="name: neuro", symbols=("EURUSD",), timeframes=("1h",), epochs=100, seed=7),
    strategy_source="",
    state=TrainingState.RUNNING,
    create_time=NOW,
    start_time=NOW,
    end_time=None,
    progress=Progress(overall=0.5),
    error=None,
    result=None,
    placement=Placement(mode=ExecutionMode.HOST, trainer="gpu-2:50052", reasons=("the only one left",)),
    sessions=(LOST, NEXT),
    resource_usage=None,
    checkpoint_path="",
    last_sequence=4,
    message="epoch 41",
    warnings=(),
    scheduling=Scheduling(user="alice", priority=5),
)


def _event(sequence: int, seconds: float, detail: ProgressDetail, *, attempt: int = 1) -> ProgressEvent:
    return ProgressEvent(
        sequence=sequence, create_time=NOW + timedelta(seconds=seconds), attempt=attempt, detail=detail
    )


EVENTS = [
    _event(1, 0, StateDetail(state=TrainingState.QUEUED), attempt=0),
    _event(2, 5, StateDetail(state=TrainingState.RUNNING)),
    _event(3, 40, WarningDetail(reason="UPLOAD_RETRY", message="the network is slow")),
    _event(4, 75, StateDetail(state=TrainingState.QUEUED, message="gpu-1 is lost")),
    _event(5, 80, StateDetail(state=TrainingState.RUNNING), attempt=2),
]


def _told(training: Training, events: list[ProgressEvent] = EVENTS, *, with_events: bool = False) -> list[str]:
    text = io.StringIO()
    session = CliSession(settings=ClientSettings.load(environment={}))
    session._consoles = {"stdout": Console(file=text, width=100, highlight=False, soft_wrap=True)}
    tell_story(session, training, events, with_events=with_events, now=NOW + timedelta(seconds=200))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_each_attempt_tells_where_why_when_and_how_it_ended() -> None:
    lines = _told(TRAINING)
    begun = lines.index("attempts")
    assert lines[begun + 1 : begun + 9] == [
        "1 on gpu-1:50052 (01234567): lost (TRAINER_LOST), fenced: nothing it produces counts any more",
        "time 2026-01-01 12:00:00 to 2026-01-01 12:01:15, 1:15",
        "because a GPU was asked for; most free slots",
        "message silent for 10 s",
        "session session-one",
        "2 on gpu-2:50052, from epoch 40: has not ended",
        "time 2026-01-01 12:01:20 to now, 2:00",
        "session session-two",
    ]


def test_history_tells_each_transition_with_its_time_and_how_long_it_lasted() -> None:
    lines = _told(TRAINING)
    begun = lines.index("history (UTC)")
    assert lines[begun + 2 : begun + 6] == [
        "2026-01-01 12:00:00 0:05 queued",
        "2026-01-01 12:00:05 1:10 running",
        "2026-01-01 12:01:15 0:05 queued again, attempt 1 is lost: gpu-1 is lost",
        "2026-01-01 12:01:20 2:00 running, attempt 2",
    ]
    assert lines[lines.index("warnings (UTC)") + 1] == "2026-01-01 12:00:40 the network is slow (UPLOAD_RETRY)"
    assert "events (UTC)" not in lines


def test_what_was_asked_for_stands_with_its_scheduling() -> None:
    lines = _told(TRAINING)
    for line in (
        "state running, attempt 2",
        "strategy neuro",
        "symbols EURUSD",
        "epochs 100",
        "seed 7",
        "mode as the backend is configured",
        "user alice",
        "priority 5",
        "retries at most 5, after a lost trainer",
        "request id my-request",
        "runs on host gpu-2:50052",
        "because the only one left",
    ):
        assert line in lines
    never = replace(TRAINING, scheduling=Scheduling(retry=RetryMode.NEVER, max_retries=0))
    assert "retries none" in _told(never)


def test_queued_training_tells_its_place() -> None:
    queue = QueueStatus(position=3, num_queued=7, estimated_wait_s=None, waiting_for="a free slot")
    queued = replace(TRAINING, state=TrainingState.QUEUED, queue=queue, sessions=(), placement=None)
    lines = _told(queued, EVENTS[:1])
    assert "queue 3 of 7 in the queue; a free slot" in lines
    assert "attempts" not in lines


def test_ended_state_has_no_duration_and_an_error_names_the_way_out() -> None:
    failed = replace(
        TRAINING, state=TrainingState.FAILED, error=Failure(reason="OUT_OF_MEMORY", message="killed in epoch 3")
    )
    end = _event(6, 90, StateDetail(state=TrainingState.FAILED, message="killed", error_reason="OUT_OF_MEMORY"))
    lines = _told(failed, [*EVENTS, end])
    assert "2026-01-01 12:01:30 failed: killed" in lines
    error = lines.index("error")
    assert lines[error + 1] == "killed in epoch 3 (OUT_OF_MEMORY)"
    assert lines[error + 2].startswith("next: ")
    assert "--batch-size" in lines[error + 2]


def test_with_events_every_one_is_told_with_its_number() -> None:
    lines = _told(TRAINING, with_events=True)
    begun = lines.index("events (UTC)")
    assert lines[begun + 2 : begun + 7] == [
        "1 2026-01-01 12:00:00 - 0.0 % queued",
        "2 2026-01-01 12:00:05 1 0.0 % running",
        "3 2026-01-01 12:00:40 1 0.0 % warning: the network is slow",
        "4 2026-01-01 12:01:15 1 0.0 % queued again, attempt 1 is lost: gpu-1 is lost",
        "5 2026-01-01 12:01:20 2 0.0 % running, attempt 2",
    ]


def test_every_way_out_is_of_a_reason_there_is_and_every_failure_of_a_training_has_one() -> None:
    assert set(_WAYS_OUT) <= set(error_classes())
    leaves = {
        cls.reason for cls in error_classes().values() if issubclass(cls, TrainingError) and cls is not TrainingError
    }
    assert {reason for reason in leaves if not way_out(reason)} == set()
