"""What the operations store keeps: plain rows, no behaviour."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime

from ktrdr_core.domain.progress import BatchDetail, EpochDetail, ProgressEvent, ProgressSummary, TrainingStep
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState

LOCAL_TRAINER = "local"
"""`SessionRow.trainer` of a session on the backend's own machine."""


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
    """One execution of a training.

    Attributes:
        trainer: Address of the trainer; LOCAL_TRAINER on the backend's machine.
        last_sequence: Last durable event of the session's own log that is in the training's log.
    """

    session_id: str
    training_id: str
    attempt: int
    trainer: str
    last_sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One training.

    Attributes:
        request_id: Idempotency key; "" if the caller gave none.
        content_digest: Digest of what was asked for; the same request_id must come with the same.
        cancel_save_checkpoint: None until a cancel was accepted; then what it asked for.
        summary: The fold of its durable events.
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
    return json.dumps(asdict(summary), separators=(",", ":"))


def summary_from_json(text: str) -> ProgressSummary:
    raw = json.loads(text)
    known = {item.name for item in fields(ProgressSummary)}
    values = {key: value for key, value in raw.items() if key in known}
    values["state"] = TrainingState(values["state"])
    values["step"] = TrainingStep(values["step"]) if values["step"] else None
    values["epoch"] = EpochDetail(**values["epoch"]) if values["epoch"] else None
    values["batch"] = BatchDetail(**values["batch"]) if values["batch"] else None
    return ProgressSummary(**values)
