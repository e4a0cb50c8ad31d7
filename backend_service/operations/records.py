"""What the operations store keeps: plain rows, no behaviour."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum

from ktrdr_core.domain.progress import (
    BatchDetail,
    EpochDetail,
    ProgressEvent,
    ProgressSummary,
    TrainingStep,
    compact_json,
    detail_to_dict,
)
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState

LOCAL_TRAINER = "local"
"""`SessionRow.trainer` of a session on the backend's own machine."""

LOST = "LOST"
"""`SessionRow.outcome` of a session whose trainer, or machine, was lost under it."""


class Fence(StrEnum):
    """Whether a session still counts.

    NONE: it does. PENDING: it does not, and its trainer has to end it once it answers. DONE: its trainer has said that
    nothing of it runs.
    """

    NONE = "none"
    PENDING = "pending"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a training runs, and each consideration that led there, in order."""

    mode: ExecutionMode
    trainer: str = ""
    reasons: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Placement:
        raw = json.loads(text)
        return cls(mode=ExecutionMode(raw["mode"]), trainer=raw["trainer"], reasons=tuple(raw["reasons"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """One execution of a training: an attempt.

    Attributes:
        trainer: Address of the trainer; LOCAL_TRAINER on the backend's machine; "" if the trainer refused it, so that
            it never began and its number is used again.
        last_sequence: Last durable event of the session's own log that is in the training's log.
        trainer_id: Stable identity of the trainer, which outlives a change of its address; "" if it has none.
        reasons: Why it was placed there, each consideration in order.
        start_time: When it was handed over.
        end_time: When it was known to have ended or to be lost; None before.
        outcome: Name of the terminal state it ended in, or LOST; "" before.
        error_reason: `KtrdrError.reason` if it FAILED or was LOST.
        message: One sentence on its end.
        resumed_from_epoch: Last epoch of the checkpoint it went on from; 0 from the beginning.
        fence: Whether it still counts.
        bars: The bars of the backend that it was handed: name of each series, and a digest; empty if none were.
    """

    session_id: str
    training_id: str
    attempt: int
    trainer: str
    last_sequence: int = 0
    trainer_id: str = ""
    reasons: tuple[str, ...] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    outcome: str = ""
    error_reason: str = ""
    message: str = ""
    resumed_from_epoch: int = 0
    fence: Fence = Fence.NONE
    bars: tuple[tuple[str, str], ...] = ()

    @property
    def is_on_trainer(self) -> bool:
        """Whether a trainer may have it."""
        return self.trainer not in ("", LOCAL_TRAINER)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One training.

    Attributes:
        request_id: Idempotency key; "" if the caller gave none.
        content_digest: Digest of what was asked for; the same request_id must come with the same.
        cancel_save_checkpoint: None until a cancel was accepted; then what it asked for.
        summary: The fold of its durable events.
        scheduling: What was asked of the queue.
        cancel_reason: Why it was cancelled; "" until a cancel was accepted.
    """

    training_id: str
    request_id: str = ""
    content_digest: str
    strategy_name: str
    spec: TrainingSpec
    state: TrainingState = TrainingState.QUEUED
    create_time: datetime
    start_time: datetime | None = None
    end_time: datetime | None = None
    placement: Placement | None = None
    result: TrainingResult | None = None
    cancel_save_checkpoint: bool | None = None
    summary: ProgressSummary = field(default_factory=ProgressSummary)
    scheduling: Scheduling = DEFAULT_SCHEDULING
    cancel_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCancel:
    """The cancel of a Train that has not arrived yet.

    Attributes:
        request_id: Idempotency key of that Train.
        save_checkpoint, reason: What the cancel asked for.
        create_time: When it came; it is kept for a day.
    """

    request_id: str
    save_checkpoint: bool
    reason: str
    create_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyHistory:
    """What the trainings of one strategy name say about it."""

    last_state: TrainingState
    last_create_time: datetime
    has_active: bool


def fold(summary: ProgressSummary, event: ProgressEvent) -> ProgressSummary:
    """Return a new summary with `event` applied; `summary` stays as it is."""
    copy = replace(summary, warnings=list(summary.warnings))
    copy.apply(event)
    return copy


def summary_to_json(summary: ProgressSummary) -> str:
    raw = vars(summary).copy()
    raw["epoch"] = detail_to_dict(summary.epoch) if summary.epoch else None
    raw["batch"] = detail_to_dict(summary.batch) if summary.batch else None
    return compact_json(raw)


def summary_from_json(text: str) -> ProgressSummary:
    raw = json.loads(text)
    known = {item.name for item in fields(ProgressSummary)}
    values = {key: value for key, value in raw.items() if key in known}
    values["state"] = TrainingState(values["state"])
    values["step"] = TrainingStep(values["step"]) if values["step"] else None
    values["epoch"] = EpochDetail(**values["epoch"]) if values["epoch"] else None
    values["batch"] = BatchDetail(**values["batch"]) if values["batch"] else None
    return ProgressSummary(**values)
