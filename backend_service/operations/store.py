"""The port of the operations store: trainings, their events, their sessions, the backend's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from backend_service.operations.records import RequestCancel, SessionRow, StrategyHistory, TrainingRow
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.states import TrainingState


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingQuery:
    """Which trainings to list, newest first.

    Attributes:
        limit: How many at most.
        before_position: Only trainings accepted before this position; None starts at the newest.
        states: Only these; empty means all.
        strategy_name: Only this strategy; "" means all.
    """

    limit: int
    before_position: int | None = None
    states: tuple[TrainingState, ...] = ()
    strategy_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedTraining:
    """A training and its position in the order of acceptance."""

    position: int
    row: TrainingRow


class OperationsStore(Protocol):
    """Keeps what must survive a restart. A write has been committed when its call returns; calls that fail change
    nothing, and never spoil another caller's write.

    Every call raises StorageError while the database takes no reads or writes (disk full, locked, unreachable); the
    same call succeeds once it does again, without a restart.
    """

    async def insert_training(self, row: TrainingRow, event: ProgressEvent) -> None:
        """Store a new training with the first event of its log.

        Raises:
            AlreadyExistsError: The training_id, or a request_id that is not "", is taken.
            StorageError: See above; nothing was stored.
        """

    async def save_training(
        self, row: TrainingRow, *, event: ProgressEvent | None = None, session: SessionRow | None = None
    ) -> None:
        """Store a training's new row, with the event that changed it and the session it came from, all or nothing.

        Raises:
            TrainingNotFoundError: There is no such training.
            WriteConflictError: Its log already has an event with this sequence: a second writer.
        """

    async def find_training(self, training_id: str) -> TrainingRow | None:
        """Return a training, or None."""

    async def find_by_request(self, request_id: str) -> TrainingRow | None:
        """Return the training that this idempotency key made, or None."""

    async def list_trainings(self, query: TrainingQuery) -> list[ListedTraining]:
        """Return trainings, newest first."""

    async def load_active(self) -> list[TrainingRow]:
        """Return every training that has not ended, oldest first."""

    async def load_events(
        self, training_id: str, *, after_sequence: int = 0, limit: int | None = None
    ) -> list[ProgressEvent]:
        """Return the durable log of a training after a sequence, oldest first, at most `limit` events; empty for an
        unknown one."""

    async def load_sessions(self, training_ids: Sequence[str]) -> dict[str, list[SessionRow]]:
        """Return the sessions of each training, oldest first; a training without any has an empty list."""

    async def load_fenced_sessions(self) -> list[SessionRow]:
        """Return the sessions whose fence is PENDING, also of trainings that have ended."""

    async def save_session(self, session: SessionRow) -> None:
        """Store a changed session of a training that may have ended; one of a deleted training is ignored."""

    async def keep_request_cancel(self, cancel: RequestCancel) -> bool:
        """Store the cancel of a request that has not arrived; False, and nothing stored, if its training exists.

        The same request_id twice keeps the first. With `insert_training` it is atomic: of a Train and a cancel of one
        request_id, at least one sees the other.
        """

    async def find_request_cancel(self, request_id: str) -> RequestCancel | None:
        """Return the cancel that came before its request, or None."""

    async def forget_request_cancels(self, *, before: datetime) -> int:
        """Forget cancels that came before a time; return how many."""

    async def delete_training(self, training_id: str) -> None:
        """Delete a training with its events and sessions.

        Raises:
            TrainingNotFoundError: There is no such training.
        """

    async def load_strategy_history(self) -> dict[str, StrategyHistory]:
        """Return, for each strategy name with trainings, what they say."""

    async def read_config(self, key: str) -> str | None:
        """Return a configuration value, or None if it was never written."""

    async def write_config(self, key: str, value: str) -> str | None:
        """Store a configuration value and return the one before."""
