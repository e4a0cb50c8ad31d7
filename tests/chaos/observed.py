"""What was seen of one training from outside: the input of the invariants."""

from __future__ import annotations

from dataclasses import dataclass, field

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.states import TrainingState
from tests.chaos.schedule import TrainingPlan


@dataclass(kw_only=True)
class Watched:
    """What one watcher saw.

    Attributes:
        name: Of the watcher, for messages.
        events: In the order they came.
        error: Why it ended, unless by itself.
    """

    name: str
    events: list[ProgressEvent] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class CancelAnswer:
    """What one Cancel was answered.

    Attributes:
        save_checkpoint: What it asked for.
        state: State of the training in the answer; None without one.
        error_reason: Of the error it was answered instead; "" without one.
    """

    save_checkpoint: bool
    state: TrainingState | None = None
    error_reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A session as the backend tells it.

    Attributes:
        outcome: How it ended, or LOST; "" if it has not.
        digest: Artifact digest of its result as its trainer tells it; "" if it has none.
    """

    session_id: str
    number: int
    trainer: str
    outcome: str
    resumed_from_epoch: int
    is_fenced: bool
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model of a training in the store.

    Attributes:
        digest: Artifact digest the store tells.
        digest_of_files: Computed anew from its files.
        damaged_files: Files whose SHA-256 is not the one the store tells.
    """

    name: str
    attempt: int
    digest: str
    digest_of_files: str
    damaged_files: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Observed:
    """Everything that was seen of one training, after it had time to end.

    Attributes:
        training_ids: What its Train calls were answered.
        state: State of the training now.
        history: Its durable events.
        result_digest: Artifact digest of its result; "" without one.
        duplicate_problems: What was wrong with the answers of duplicates.
    """

    plan: TrainingPlan
    training_ids: set[str] = field(default_factory=set)
    state: TrainingState | None = None
    history: list[ProgressEvent] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    cancels: list[CancelAnswer] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    models: list[StoredModel] = field(default_factory=list)
    result_digest: str = ""
    duplicate_problems: list[str] = field(default_factory=list)

    @property
    def training_id(self) -> str:
        return next(iter(self.training_ids), "")
