"""Every invariant turns red for what it is about, and nothing else does for a training that went well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from backend_service.orchestration.completion import HISTORY_INCOMPLETE
from ktrdr_core.domain.progress import (
    CHECKPOINT_UNUSABLE,
    BatchDetail,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    StateDetail,
    WarningDetail,
)
from ktrdr_core.domain.states import TrainingState
from tests.chaos.invariants import MAX_ATTEMPTS, check_digests, check_training
from tests.chaos.observed import Attempt, CancelAnswer, Observed, StoredModel, Watched
from tests.chaos.schedule import Action, CancelPlan, Kind, Recipe, Schedule, TrainingPlan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUIET = Schedule(seed=1, trainings=())
S = TrainingState
PLAN = TrainingPlan(
    name="t1",
    at_s=0,
    recipe=Recipe.QUICK,
    mode="host",
    user="",
    priority=0,
    may_retry=True,
    num_requests=1,
    watchers=(),
    num_stuck=0,
    cancel=None,
)


def epoch(number: int) -> EpochDetail:
    return EpochDetail(
        epoch=number,
        total_epochs=4,
        train_loss=1.0,
        train_accuracy=0.5,
        val_loss=1.0,
        val_accuracy=0.5,
        learning_rate=0.1,
        rows_per_second=1.0,
    )


def batch(sequence: int) -> ProgressEvent:
    detail = BatchDetail(
        epoch=1,
        total_epochs=4,
        batch=1,
        total_batches_per_epoch=9,
        train_loss=1.0,
        train_accuracy=0.5,
        learning_rate=0.1,
        rows_per_second=1.0,
    )
    return ProgressEvent(sequence=sequence, create_time=NOW, attempt=1, detail=detail)


def state(value: TrainingState, **fields: str) -> StateDetail:
    return StateDetail(state=value, **fields)


def log(*details: tuple[int, ProgressDetail]) -> list[ProgressEvent]:
    """Return a history of (attempt, detail)."""
    return [
        ProgressEvent(sequence=number, create_time=NOW, attempt=attempt, detail=detail)
        for number, (attempt, detail) in enumerate(details, start=1)
    ]


def watching(history: list[ProgressEvent]) -> list[Watched]:
    return [Watched(name="watcher 1", events=[history[0], batch(1), *history[1:]])]


def completed() -> Observed:
    """A training that was lost after two epochs and went on from a checkpoint of the first."""
    history = log(
        (0, state(S.QUEUED)),
        (1, state(S.RUNNING)),
        (1, epoch(1)),
        (1, epoch(2)),
        (1, state(S.QUEUED, error_reason="TRAINER_LOST")),
        (2, state(S.RUNNING)),
        (2, epoch(3)),
        (2, epoch(4)),
        (2, state(S.UPLOADING)),
        (2, state(S.COMPLETED)),
    )
    return Observed(
        plan=PLAN,
        training_ids={"id"},
        state=S.COMPLETED,
        history=history,
        watched=watching(history),
        attempts=[
            Attempt(session_id="x", number=1, trainer="h:1", outcome="LOST", resumed_from_epoch=0, is_fenced=True),
            Attempt(
                session_id="y",
                number=2,
                trainer="h:2",
                outcome="COMPLETED",
                resumed_from_epoch=1,
                is_fenced=False,
                digest="d",
            ),
        ],
        models=[StoredModel(name="m", attempt=2, digest="d", digest_of_files="d")],
        result_digest="d",
    )


def ended(value: TrainingState, **fields: str) -> Observed:
    """A training that ended otherwise after an epoch."""
    history = log((0, state(S.QUEUED)), (1, state(S.RUNNING)), (1, epoch(1)), (1, state(value, **fields)))
    session = Attempt(
        session_id="x", number=1, trainer="h:1", outcome=str(value), resumed_from_epoch=0, is_fenced=False
    )
    asked = value in (S.CANCELLED, S.STOPPED)
    return Observed(
        plan=PLAN,
        training_ids={"id"},
        state=value,
        history=history,
        watched=watching(history),
        attempts=[session],
        cancels=[CancelAnswer(save_checkpoint=value is S.STOPPED, state=value)] if asked else [],
    )


def retell(observed: Observed, history: list[ProgressEvent]) -> None:
    """Make a changed history everybody's."""
    observed.history = [replace(event, sequence=number) for number, event in enumerate(history, start=1)]
    observed.watched = watching(observed.history)
    observed.state = observed.history[-1].terminal_state


def test_training_that_went_well_breaks_nothing() -> None:
    for observed in (completed(), ended(S.CANCELLED), ended(S.STOPPED)):
        assert check_training(observed, QUIET) == []


def test_attempt_that_could_not_use_its_checkpoint_begins_at_the_beginning() -> None:
    observed = completed()
    warning = WarningDetail(reason=CHECKPOINT_UNUSABLE, message="another machine")
    history = [*observed.history[:6], *log((2, warning), (2, epoch(1)), (2, epoch(2))), *observed.history[6:]]
    retell(observed, history)
    assert check_training(observed, QUIET) == []


def without_warning(observed: Observed) -> None:
    retell(observed, [*observed.history[:6], *log((2, epoch(2))), *observed.history[6:]])


def with_two_models(observed: Observed) -> None:
    observed.models *= 2


def with_other_digest(field: str) -> Callable[[Observed], None]:
    def change(observed: Observed) -> None:
        observed.models = [replace(observed.models[0], **{field: "e"})]  # type: ignore[arg-type]

    return change


def with_other_attempt(index: int, **fields: object) -> Callable[[Observed], None]:
    def change(observed: Observed) -> None:
        observed.attempts[index] = replace(observed.attempts[index], **fields)  # type: ignore[arg-type]

    return change


def with_history(change_log: Callable[[list[ProgressEvent]], list[ProgressEvent]]) -> Callable[[Observed], None]:
    def change(observed: Observed) -> None:
        retell(observed, change_log(observed.history))

    return change


def with_watched(change_log: Callable[[list[ProgressEvent]], list[ProgressEvent]]) -> Callable[[Observed], None]:
    def change(observed: Observed) -> None:
        observed.watched[0].events = change_log(observed.watched[0].events)

    return change


def with_field(name: str, value: object) -> Callable[[Observed], None]:
    def change(observed: Observed) -> None:
        setattr(observed, name, value)

    return change


def gap_in_history(observed: Observed) -> None:
    observed.history = [event for event in observed.history if event.sequence != 3]
    observed.watched = watching(observed.history)


BREAKS: dict[str, tuple[Callable[[], Observed], Callable[[Observed], None], str]] = {
    "two trainings of one request": (completed, with_field("training_ids", {"a", "b"}), "with 2 trainings"),
    "no training": (completed, with_field("training_ids", set()), "with 0 trainings"),
    "duplicate answered otherwise": (completed, with_field("duplicate_problems", ["odd"]), "odd"),
    "gap in the history": (completed, gap_in_history, "sequences are not 1 to 9"),
    "two terminal events": (
        completed,
        with_history(lambda history: [*history, history[-1]]),
        "terminal events are ['COMPLETED', 'COMPLETED']",
    ),
    "no terminal event": (completed, with_history(lambda history: history[:-1]), "terminal events are []"),
    "terminal event before the last": (
        completed,
        with_history(lambda history: [*history[:-1], history[-1], history[2]]),
        "it ends with EpochDetail",
    ),
    "illegal transition": (
        completed,
        with_history(lambda history: [*history[:-2], history[-1]]),
        "from RUNNING to COMPLETED",
    ),
    "beginning without QUEUED": (completed, with_history(lambda history: history[1:]), "not with QUEUED"),
    "batch event in the history": (
        completed,
        lambda observed: observed.history.append(batch(10)),
        "has batch events",
    ),
    "state that the history does not tell": (completed, with_field("state", S.FAILED), "its history ends with"),
    "epoch missing": (
        completed,
        with_history(lambda history: [event for event in history if event.sequence != 7]),
        "told epoch 4 after epoch 2",
    ),
    "epoch twice": (
        completed,
        with_history(lambda history: [*history[:3], history[2], *history[3:]]),
        "told epoch 1 after epoch 1",
    ),
    "resumed attempt repeats epochs": (completed, without_warning, "told epoch 2 after epoch 2"),
    "completed before its last epoch": (
        completed,
        with_history(lambda history: [event for event in history if event.sequence != 8]),
        "told 3 epochs of 4",
    ),
    "completed without an epoch": (
        completed,
        with_history(lambda history: [event for event in history if not isinstance(event.detail, EpochDetail)]),
        "told 0 epochs of all",
    ),
    "completed without a model": (completed, with_field("models", []), "has 0 models"),
    "completed with two models": (completed, with_two_models, "has 2 models"),
    "model of a lost attempt": (
        completed,
        lambda observed: observed.models.__setitem__(0, replace(observed.models[0], attempt=1)),
        "model is of attempt 1",
    ),
    "store tells another digest": (completed, with_other_digest("digest"), "digests differ"),
    "files have another digest": (completed, with_other_digest("digest_of_files"), "digests differ"),
    "result has another digest": (completed, with_field("result_digest", "e"), "digests differ"),
    "trainer has another digest": (completed, with_other_attempt(1, digest="e"), "digests differ"),
    "damaged file": (
        completed,
        lambda observed: observed.models.__setitem__(0, replace(observed.models[0], damaged_files=("config.json",))),
        "differ from their SHA-256: config.json",
    ),
    "cancelled with a model": (
        lambda: ended(S.CANCELLED),
        with_field("models", [StoredModel(name="m", attempt=1, digest="d", digest_of_files="d")]),
        "has the models ['m']",
    ),
    "attempt left out": (completed, with_other_attempt(1, number=3), "its attempts are [1, 3]"),
    "attempt without an outcome": (completed, with_other_attempt(0, outcome=""), "without an outcome: [1]"),
    "attempt after one that was not lost": (
        completed,
        with_other_attempt(0, outcome="FAILED"),
        "not lost was followed by another",
    ),
    "first attempt resumed": (completed, with_other_attempt(0, resumed_from_epoch=3), "first attempt went on"),
    "completed by a lost attempt": (completed, with_other_attempt(1, outcome="LOST"), "its attempts ended"),
    "retried against its will": (
        completed,
        with_field("plan", replace(PLAN, may_retry=False)),
        "must not be retried and has 2",
    ),
    "cancelled by nobody": (lambda: ended(S.CANCELLED), with_field("cancels", []), "nobody asked for that"),
    "stopped by nobody": (
        lambda: ended(S.STOPPED),
        with_field("cancels", [CancelAnswer(save_checkpoint=False)]),
        "nobody asked for a checkpoint",
    ),
    "cancel answered otherwise": (
        completed,
        with_field("cancels", [CancelAnswer(save_checkpoint=False, state=S.CANCELLED)]),
        "answered CANCELLED, it is COMPLETED",
    ),
    "cancel answered with a defect": (
        completed,
        with_field("cancels", [CancelAnswer(save_checkpoint=False, error_reason="INTERNAL")]),
        "answered with INTERNAL",
    ),
    "completed though cancelled before": (
        completed,
        with_field(
            "plan",
            replace(PLAN, cancel=CancelPlan(after_s=-1, save_checkpoint=False, by_request_id=True, num_times=1)),
        ),
        "cancelled before it arrived, is COMPLETED",
    ),
    "begun though cancelled before": (
        lambda: ended(S.CANCELLED),
        with_field(
            "plan",
            replace(PLAN, cancel=CancelPlan(after_s=-1, save_checkpoint=False, by_request_id=True, num_times=1)),
        ),
        "and has 1 attempts",
    ),
    "failed for no reason": (
        lambda: ended(S.FAILED, error_reason="TRAINER_LOST"),
        lambda _: None,
        "FAILED with TRAINER_LOST",
    ),
    "completed with degenerate labels": (
        completed,
        with_field("plan", replace(PLAN, recipe=Recipe.DEGENERATE)),
        "with degenerate labels",
    ),
    "watcher with a gap": (completed, with_watched(lambda seen: [*seen[:4], *seen[5:]]), "saw 1-3, 5-10"),
    "watcher with a repeat": (completed, with_watched(lambda seen: [*seen[:4], *seen[3:]]), "saw 1-3, 3-10"),
    "watcher that missed the end": (completed, with_watched(lambda seen: seen[:-1]), "ended after StateDetail"),
    "watcher that saw something else": (
        completed,
        with_watched(lambda seen: [*seen[:4], replace(seen[4], overall=0.7), *seen[5:]]),
        "the history has ProgressEvent",
    ),
    "watcher with a batch out of place": (
        completed,
        with_watched(lambda seen: [seen[0], batch(7), *seen[2:]]),
        "batch event of sequence 7 after event 1",
    ),
    "watcher that was refused": (
        completed,
        lambda observed: setattr(observed.watched[0], "error", "INTERNAL: odd"),
        "ended with INTERNAL: odd",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_broken_invariant_is_told(name: str) -> None:
    build, damage, expected = BREAKS[name]
    observed = build()
    damage(observed)
    problems = check_training(observed, QUIET)
    assert any(expected in problem for problem in problems), problems
    assert all(problem.startswith("t1 (") for problem in problems)


def test_hole_in_the_history_is_allowed_only_if_it_is_said_and_a_cancel_asked_for_haste() -> None:
    def with_hole() -> Observed:
        observed = completed()
        hole = WarningDetail(reason=HISTORY_INCOMPLETE, message="what it had not told is missing")
        observed.history[7] = replace(observed.history[7], detail=hole)
        observed.watched = watching(observed.history)
        return observed

    observed = with_hole()
    assert any("told 3 epochs of 4" in problem for problem in check_training(observed, QUIET))
    observed.cancels = [CancelAnswer(save_checkpoint=False, state=S.COMPLETED)]
    assert not any("epochs of" in problem for problem in check_training(observed, QUIET))


def test_too_many_attempts_are_told() -> None:
    observed = completed()
    lost = observed.attempts[0]
    observed.attempts[:1] = [replace(lost, number=number) for number in range(1, MAX_ATTEMPTS + 1)]
    observed.attempts[-1] = replace(observed.attempts[-1], number=MAX_ATTEMPTS + 1)
    assert any(f"has {MAX_ATTEMPTS + 1} attempts" in problem for problem in check_training(observed, QUIET))


@pytest.mark.parametrize(
    ("reason", "kind", "plan"),
    [
        ("WORKER_DIED", Kind.KILL_WORKER, PLAN),
        ("STORAGE_UNAVAILABLE", Kind.FILL_DISK, PLAN),
        ("TRAINER_LOST", None, replace(PLAN, may_retry=False)),
        ("DRAINING", Kind.HURRY, replace(PLAN, may_retry=False)),
        ("DEGENERATE_LABELS", None, replace(PLAN, recipe=Recipe.DEGENERATE)),
    ],
)
def test_failure_is_allowed_by_what_causes_it_and_by_nothing_else(
    reason: str, kind: Kind | None, plan: TrainingPlan
) -> None:
    observed = ended(S.FAILED, error_reason=reason)
    observed.plan = plan
    actions = (Action(at_s=0, kind=kind, target="a"),) if kind else ()
    assert check_training(observed, replace(QUIET, actions=actions)) == []
    observed.plan = PLAN
    assert len(check_training(observed, QUIET)) == 1


def test_equal_jobs_with_other_bits_are_told() -> None:
    first, second = completed(), completed()
    known: dict[str, str] = {}
    assert check_digests([first, second], known) == []
    second.result_digest = "e"
    assert len(check_digests([first, second], known)) == 1
    second.plan = replace(PLAN, recipe=Recipe.FOLDS)
    assert check_digests([first, second], known) == []
