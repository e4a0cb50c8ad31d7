"""Progress of a training: one event type with its details, three levels, one overall fraction.

Durable events (state, step, epoch, warning) are numbered 1, 2, 3, ... per session and per training and are stored
before they are shown. A batch event is transient: it carries the sequence of the durable event before it, may be
skipped for a slow watcher, and is never stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import IntEnum
from operator import attrgetter
from typing import Any, ClassVar

from ktrdr_core.clock import from_iso, to_iso
from ktrdr_core.domain.states import TrainingState

ProgressCallback = Callable[[int, int, dict[str, Any]], None]
"""(epoch, 1-indexed; total_epochs; metrics). Called on the training thread; its exceptions never stop training.

`metrics` has `progress_type` ("epoch" or "batch"), `epoch`, `total_epochs`, `batch`, `total_batches_per_epoch`,
`train_loss`, `train_accuracy`, `val_loss`, `val_accuracy`, `val_balanced_accuracy` and `val_mcc` (the last four of the
last finished epoch; None before it), `learning_rate`, `batch_time` (seconds, mean since the update before) and
`rows_per_second`.
"""


class TrainingStep(IntEnum):
    """The twelve steps, in order; the value is the step's number."""

    LOADING_MARKET_DATA = 1
    INDICATORS = 2
    FUZZY_MEMBERSHIPS = 3
    FEATURES = 4
    LABELS = 5
    SPLIT = 6
    TRAINING = 7
    EVALUATION = 8
    FEATURE_IMPORTANCE = 9
    SAVING = 10
    BUILDING_RESULT = 11
    COMPLETE = 12


STEP_TITLES: dict[TrainingStep, str] = {
    TrainingStep.LOADING_MARKET_DATA: "Loading market data",
    TrainingStep.INDICATORS: "Calculating technical indicators",
    TrainingStep.FUZZY_MEMBERSHIPS: "Generating fuzzy memberships",
    TrainingStep.FEATURES: "Engineering features",
    TrainingStep.LABELS: "Generating labels",
    TrainingStep.SPLIT: "Splitting data",
    TrainingStep.TRAINING: "Training model",
    TrainingStep.EVALUATION: "Evaluating model",
    TrainingStep.FEATURE_IMPORTANCE: "Calculating feature importance",
    TrainingStep.SAVING: "Saving model",
    TrainingStep.BUILDING_RESULT: "Building result",
    TrainingStep.COMPLETE: "Complete",
}
NUM_STEPS = len(TrainingStep)

# Overall fraction at the start of each step: preparation and evaluation are short beside training.
STEP_STARTS: dict[TrainingStep, float] = {
    TrainingStep.LOADING_MARKET_DATA: 0.0,
    TrainingStep.INDICATORS: 0.01,
    TrainingStep.FUZZY_MEMBERSHIPS: 0.02,
    TrainingStep.FEATURES: 0.03,
    TrainingStep.LABELS: 0.04,
    TrainingStep.SPLIT: 0.05,
    TrainingStep.TRAINING: 0.06,
    TrainingStep.EVALUATION: 0.93,
    TrainingStep.FEATURE_IMPORTANCE: 0.94,
    TrainingStep.SAVING: 0.97,
    TrainingStep.BUILDING_RESULT: 0.98,
    TrainingStep.COMPLETE: 1.0,
}


def overall_fraction(step: TrainingStep, step_fraction: float) -> float:
    """Return the overall fraction in [0, 1] at `step_fraction` in [0, 1] of `step`; monotone in both."""
    start = STEP_STARTS[step]
    end = STEP_STARTS[TrainingStep(step + 1)] if step < NUM_STEPS else 1.0
    return min(start + (end - start) * min(max(step_fraction, 0.0), 1.0), end)  # rounding may pass the end


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDetail:
    """A change of state; the last event of a session or training has a terminal state.

    Attributes:
        state: The new state.
        message: One sentence for people.
        error_reason: `KtrdrError.reason` when FAILED, else "".
        checkpoint_path: Where the checkpoint of a STOPPED training is, else "".
        model_path: Where the stored model of a COMPLETED training is, else "".
    """

    kind: ClassVar[str] = "state"
    is_durable: ClassVar[bool] = True
    state: TrainingState
    message: str = ""
    error_reason: str = ""
    checkpoint_path: str = ""
    model_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDetail:
    """A step has begun."""

    kind: ClassVar[str] = "step"
    is_durable: ClassVar[bool] = True
    step: TrainingStep
    title: str
    num_steps: int = NUM_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDetail:
    """An epoch has ended. Losses are means per row; accuracies in [0, 1]."""

    kind: ClassVar[str] = "epoch"
    is_durable: ClassVar[bool] = True
    epoch: int
    total_epochs: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    rows_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDetail:
    """Batches up to `batch` (1-indexed) of `epoch` are done; train figures are means of the epoch so far."""

    kind: ClassVar[str] = "batch"
    is_durable: ClassVar[bool] = False
    epoch: int
    total_epochs: int
    batch: int
    total_batches_per_epoch: int
    train_loss: float
    train_accuracy: float
    learning_rate: float
    rows_per_second: float


CHECKPOINT_UNUSABLE = "CHECKPOINT_UNUSABLE"
"""Reason of the warning of an attempt that could not go on from its checkpoint and began at the beginning."""

BARS_CHANGED = "BARS_CHANGED"
"""Reason of the warning that bars differ from those of an earlier attempt, or of an earlier model of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningDetail:
    """Something the user should know that does not end the training."""

    kind: ClassVar[str] = "warning"
    is_durable: ClassVar[bool] = True
    reason: str
    message: str


ProgressDetail = StateDetail | StepDetail | EpochDetail | BatchDetail | WarningDetail
_DETAILS: dict[str, type[ProgressDetail]] = {
    cls.kind: cls for cls in (StateDetail, StepDetail, EpochDetail, BatchDetail, WarningDetail)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """One entry of the log of a session or of a training.

    Attributes:
        sequence: 1, 2, 3, ... for durable events; a batch event carries that of the durable event before it.
            0 until the log's owner has numbered it.
        create_time: When it happened, UTC.
        attempt: Number of the session within its training, from 1; 0 before the first.
        overall: Overall fraction in [0, 1]; never goes back within a session.
        elapsed_s: Seconds since the session began.
        remaining_s: Estimated seconds left; None while unknown.
        detail: What happened.
    """

    sequence: int = 0
    create_time: datetime
    attempt: int = 0
    overall: float = 0.0
    elapsed_s: float = 0.0
    remaining_s: float | None = None
    detail: ProgressDetail

    @property
    def is_durable(self) -> bool:
        return self.detail.is_durable

    @property
    def terminal_state(self) -> TrainingState | None:
        """The state this event ends the log with, or None."""
        if isinstance(self.detail, StateDetail) and self.detail.state.is_terminal:
            return self.detail.state
        return None

    def to_json(self) -> str:
        """Return one line of JSON that `from_json` reads back equal; used by the pipe, the journal and the database."""
        raw = dict(zip(_ENVELOPE, _envelope_of(self), strict=True))
        raw["create_time"] = to_iso(self.create_time)
        raw["kind"] = self.detail.kind
        raw["detail"] = detail_to_dict(self.detail)
        return compact_json(raw)

    @classmethod
    def from_json(cls, text: str | bytes) -> ProgressEvent:
        raw = json.loads(text)
        detail_class = _DETAILS[raw["kind"]]
        known = {f.name for f in fields(detail_class)}
        values = {key: value for key, value in raw["detail"].items() if key in known}
        if "state" in values:
            values["state"] = TrainingState(values["state"])
        if "step" in values:
            values["step"] = TrainingStep(values["step"])
        envelope = {name: raw[name] for name in _ENVELOPE}
        envelope["create_time"] = from_iso(raw["create_time"])
        return cls(**envelope, detail=detail_class(**values))


_ENVELOPE = ("sequence", "create_time", "attempt", "overall", "elapsed_s", "remaining_s")

# Made once: `asdict` copies every value, and `json.dumps` with separators makes an encoder, each time.
_envelope_of = attrgetter(*_ENVELOPE)
_FIELDS = {cls: tuple(item.name for item in fields(cls)) for cls in _DETAILS.values()}
_VALUES_OF = {cls: attrgetter(*names) for cls, names in _FIELDS.items()}
compact_json = json.JSONEncoder(separators=(",", ":")).encode


def detail_to_dict(detail: ProgressDetail) -> dict[str, Any]:
    """Return the fields of a detail; what `asdict` does, in a tenth of the time."""
    cls = type(detail)
    return dict(zip(_FIELDS[cls], _VALUES_OF[cls](detail), strict=True))


@dataclass(kw_only=True)
class ProgressSummary:
    """The latest of everything in a log: what a status shows. Fold events into it with `apply`."""

    sequence: int = 0
    state: TrainingState = TrainingState.QUEUED
    attempt: int = 0
    step: TrainingStep | None = None
    epoch: EpochDetail | None = None
    batch: BatchDetail | None = None
    overall: float = 0.0
    elapsed_s: float = 0.0
    remaining_s: float | None = None
    message: str = ""
    error_reason: str = ""
    checkpoint_path: str = ""
    model_path: str = ""
    warnings: list[str] = field(default_factory=list)

    def apply(self, event: ProgressEvent) -> None:
        self.sequence = max(self.sequence, event.sequence)
        # Another attempt may begin further back.
        self.overall = event.overall if event.attempt > self.attempt else max(self.overall, event.overall)
        self.attempt = max(self.attempt, event.attempt)
        self.elapsed_s = max(self.elapsed_s, event.elapsed_s)
        self.remaining_s = event.remaining_s
        match event.detail:
            case StateDetail() as detail:
                self.state = detail.state
                self.message = detail.message
                self.error_reason = detail.error_reason
                self.checkpoint_path = detail.checkpoint_path
                self.model_path = detail.model_path
            case StepDetail() as detail:
                self.step = detail.step
            case EpochDetail() as detail:
                self.epoch = detail
            case BatchDetail() as detail:
                self.batch = detail
            case WarningDetail() as detail:
                self.warnings.append(detail.message)
