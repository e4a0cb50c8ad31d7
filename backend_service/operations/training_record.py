"""One training that has not ended: the single writer of its row, its sessions and its log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from backend_service.operations.patience import Patience
from backend_service.operations.records import LOST, Fence, Placement, SessionRow, TrainingRow, fold
from backend_service.operations.store import OperationsStore
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import EpochDetail, ProgressEvent, ProgressSummary, StateDetail, WarningDetail
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState, check_transition
from ktrdr_core.errors import IllegalStateError
from ktrdr_core.execution.resources import ResourceUsage
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.event_log import EventLog
from ktrdr_core.undisturbed import undisturbed

T = TypeVar("T")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSnapshot:
    """Everything there is to say about a training at one moment."""

    row: TrainingRow
    sessions: tuple[SessionRow, ...]
    summary: ProgressSummary
    resource_usage: ResourceUsage | None = None


class TrainingRecord:
    """Every change of the training goes through here: checked against the table of states, stored with its event in
    one transaction, and shown only then. While the store takes no writes a change waits, and so does all after it.

    Args:
        store: Where it is kept.
        patience: How long a change waits for a store that takes no writes.
        row: The training as stored.
        sessions: Its sessions, oldest first.
        events: Its durable log.
        on_end: Called once when it has reached a terminal state.
    """

    def __init__(
        self,
        store: OperationsStore,
        row: TrainingRow,
        patience: Patience,
        *,
        sessions: Sequence[SessionRow] = (),
        events: Sequence[ProgressEvent] = (),
        on_end: Callable[[str], None] = lambda training_id: None,
    ) -> None:
        self._store = store
        self._patience = patience
        self._row = row
        self._next_row = row
        self._next_session: SessionRow | None = None
        self._sessions = {session.session_id: session for session in sessions}
        self._lock = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._moved = asyncio.Event()
        self.publication = asyncio.Lock()
        """Held while its model is published, and by who ends it otherwise: a model and a failure never meet."""
        self._on_end = on_end
        self.log = EventLog(self._store_event, events)
        self.resource_usage: Callable[[], ResourceUsage | None] = lambda: None

    @property
    def training_id(self) -> str:
        return self._row.training_id

    @property
    def row(self) -> TrainingRow:
        return self._row

    @property
    def state(self) -> TrainingState:
        return self._row.state

    @property
    def is_ended(self) -> bool:
        return self._row.state.is_terminal

    @property
    def sessions(self) -> tuple[SessionRow, ...]:
        return tuple(self._sessions.values())

    @property
    def last_session(self) -> SessionRow | None:
        """The session of the latest attempt, or None before the first."""
        return self.sessions[-1] if self._sessions else None

    @property
    def live_session(self) -> SessionRow | None:
        """The session that runs the training, or may do so; None while it waits for a place."""
        session = self.last_session
        return session if session is not None and session.trainer and not session.outcome else None

    @property
    def last_epoch(self) -> int:
        """The last epoch in the log; 0 before the first."""
        latest = self.log.summary.epoch
        return latest.epoch if latest is not None else 0

    def snapshot(self) -> TrainingSnapshot:
        return TrainingSnapshot(
            row=self._row, sessions=self.sessions, summary=copy(self.log.summary), resource_usage=self.resource_usage()
        )

    async def move_to(
        self,
        state: TrainingState,
        message: str,
        *,
        error_reason: str = "",
        checkpoint_path: str = "",
        result: TrainingResult | None = None,
        session: SessionRow | None = None,
    ) -> None:
        """Change the state, durably, and show the change.

        Args:
            state: The new state.
            message: One sentence for people.
            error_reason: `KtrdrError.reason` when FAILED.
            checkpoint_path: Where the checkpoint of a STOPPED training is.
            result: What a COMPLETED training produced.
            session: The session that said so, with its own last sequence advanced.

        Raises:
            IllegalStateError: The table of states forbids it; nothing changed.
        """
        await self._undisturbed(
            self._move(
                state,
                message,
                error_reason=error_reason,
                checkpoint_path=checkpoint_path,
                result=result,
                session=session,
            )
        )

    async def try_move_to(
        self,
        state: TrainingState,
        message: str,
        *,
        error_reason: str = "",
        checkpoint_path: str = "",
        session: SessionRow | None = None,
    ) -> bool:
        """Change the state as `move_to`, unless a cancel or an upload moved it elsewhere a moment ago; then False."""
        try:
            await self.move_to(
                state, message, error_reason=error_reason, checkpoint_path=checkpoint_path, session=session
            )
        except IllegalStateError as error:
            _log.info("not moved: %s", error.message)
            return False
        return True

    async def lose_session(
        self,
        session: SessionRow,
        *,
        error_reason: str,
        message: str,
        state: TrainingState | None = None,
        checkpoint_path: str = "",
    ) -> None:
        """Give an attempt up, durably and in one step: from then on nothing it produces counts.

        Args:
            session: The attempt.
            error_reason: Reason of the loss.
            message: One sentence on what becomes of the training.
            state: The state it goes to; None is QUEUED, for the next attempt.
            checkpoint_path: Where the checkpoint of a STOPPED training is.

        Raises:
            IllegalStateError: The training has ended, or was moved elsewhere a moment ago; nothing changed.
        """
        lost = replace(
            session,
            outcome=LOST,
            end_time=utc_now(),
            error_reason=error_reason,
            message=message,
            fence=Fence.PENDING if session.is_on_trainer else Fence.DONE,
        )
        if state is None and self.state is TrainingState.QUEUED:  # it had not begun, as far as anyone heard
            await self._undisturbed(self._lose_unbegun(lost))
        else:
            new_state = state or TrainingState.QUEUED
            await self.move_to(
                new_state,
                message,
                error_reason=error_reason if new_state in (TrainingState.QUEUED, TrainingState.FAILED) else "",
                checkpoint_path=checkpoint_path,
                session=lost,
            )

    async def append(self, event: ProgressEvent, *, session: SessionRow | None = None) -> bool:
        """Add a step, epoch, batch or warning to the log; return False if the training has ended and it was dropped.

        An epoch that an attempt repeats because it went on from a checkpoint before it is in the log already.
        """
        if not event.is_durable:
            if not self.is_ended:
                await self.log.append(event)
            return not self.is_ended
        return await self._undisturbed(self._append(event, session))

    async def warn(self, reason: str, message: str) -> None:
        """Add a warning of the backend's own to the log."""
        latest = self.log.summary
        await self.append(
            ProgressEvent(
                create_time=utc_now(),
                attempt=latest.attempt,
                overall=latest.overall,
                elapsed_s=latest.elapsed_s,
                remaining_s=latest.remaining_s,
                detail=WarningDetail(reason=reason, message=message),
            )
        )

    async def place(self, placement: Placement) -> None:
        """Store where the training shall run and why."""
        reasons = "; ".join(placement.reasons)
        _log.info("Placed %s %s: %s", placement.mode, placement.trainer, reasons)
        await self._undisturbed(self._place(placement))

    async def put_session(self, session: SessionRow) -> None:
        """Store a session of this training, new or changed."""
        await self._undisturbed(self._put_session(session))

    def accept_cancel(self, *, save_checkpoint: bool, reason: str, message: str) -> asyncio.Future[None]:
        """Show CANCELLING and keep what was asked for, so that a restarted backend goes on cancelling.

        The change is in line when this returns: whatever is asked of the record later is stored after CANCELLING.

        Returns:
            Done once it is stored; raises IllegalStateError if the training has ended.
        """
        return self._begin(self._accept_cancel(save_checkpoint, reason, message))

    async def wait_for(self, condition: Callable[[TrainingState], bool]) -> TrainingState:
        """Return the state once it meets `condition`."""
        while not condition(self.state):
            await self._moved.wait()
        return self.state

    async def wait_ended(self) -> TrainingState:
        """Return the terminal state once it is reached."""
        return await self.wait_for(lambda state: state.is_terminal)

    async def _undisturbed(self, change: Coroutine[Any, Any, T]) -> T:
        return await self._begin(change)

    def _begin(self, change: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Finish `change` although its caller may be cancelled: store, memory and watchers must not be torn apart."""
        return undisturbed(change, self._changes)

    async def _append(self, event: ProgressEvent, session: SessionRow | None) -> bool:
        async with self._lock:
            if self.is_ended:
                return False
            if session is not None and self._is_repeated(event, session):
                await self._save(self._row, session=session)
                return True
            self._next_row = self._row
            self._next_session = session
            await self.log.append(event)
            return True

    def _is_repeated(self, event: ProgressEvent, session: SessionRow) -> bool:
        return (
            isinstance(event.detail, EpochDetail)
            and session.resumed_from_epoch > 0
            and event.detail.epoch <= self.last_epoch
        )

    async def _lose_unbegun(self, session: SessionRow) -> None:
        async with self._lock:
            if self.is_ended:
                raise IllegalStateError(
                    f"training {self.training_id} has already ended: {self.state}", metadata={"state": str(self.state)}
                )
            await self._save(replace(self._row, placement=None), session=session)

    async def _place(self, placement: Placement) -> None:
        async with self._lock:
            await self._save(replace(self._row, placement=placement))

    async def _put_session(self, session: SessionRow) -> None:
        async with self._lock:
            await self._save(self._row, session=session)

    async def _accept_cancel(self, save_checkpoint: bool, reason: str, message: str) -> None:
        async with self._lock:
            row = replace(self._row, cancel_save_checkpoint=save_checkpoint, cancel_reason=reason)
            if self.state is TrainingState.CANCELLING:
                await self._save(row)
            else:
                await self._move_locked(TrainingState.CANCELLING, message, row=row)

    async def _move(self, state: TrainingState, message: str, **changes: Any) -> None:
        async with self._lock:
            await self._move_locked(state, message, **changes)

    async def _move_locked(
        self,
        state: TrainingState,
        message: str,
        *,
        error_reason: str = "",
        checkpoint_path: str = "",
        result: TrainingResult | None = None,
        session: SessionRow | None = None,
        row: TrainingRow | None = None,
    ) -> None:
        check_transition(self.state, state, subject=f"training {self.training_id}")
        now = utc_now()
        row = replace(row or self._row, state=state)
        if state is TrainingState.RUNNING and row.start_time is None:
            row = replace(row, start_time=now)
        if state.is_terminal:
            row = replace(row, end_time=now, result=result)
            session = self._ended_session(session or self.live_session, state, message, error_reason)
        elif state is TrainingState.QUEUED:
            row = replace(row, placement=None)
        latest = self.log.summary
        self._next_row = row
        self._next_session = session
        await self.log.append(
            ProgressEvent(
                create_time=now,
                attempt=max(latest.attempt, session.attempt if session else 0),
                overall=1.0 if state is TrainingState.COMPLETED else latest.overall,
                elapsed_s=max(latest.elapsed_s, (now - row.start_time).total_seconds()) if row.start_time else 0.0,
                remaining_s=0.0 if state.is_terminal else latest.remaining_s,
                detail=StateDetail(
                    state=state,
                    message=message,
                    error_reason=error_reason,
                    checkpoint_path=checkpoint_path,
                    model_path=result["model_path"] if result else "",
                ),
            )
        )
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        if state.is_terminal:
            self._on_end(self.training_id)

    def _ended_session(
        self, session: SessionRow | None, state: TrainingState, message: str, error_reason: str
    ) -> SessionRow | None:
        """Return the attempt that ends with its training; one that was lost before stays lost."""
        if session is None or session.outcome or not session.trainer:
            return session
        return replace(session, outcome=str(state), end_time=utc_now(), error_reason=error_reason, message=message)

    async def _store_event(self, event: ProgressEvent) -> None:
        """Store a numbered event with the row it leads to; the log shows it only after this returned."""
        row = replace(self._next_row, summary=fold(self.log.summary, event))
        await self._save(row, event=event, session=self._next_session)

    async def _save(
        self, row: TrainingRow, *, event: ProgressEvent | None = None, session: SessionRow | None = None
    ) -> None:
        await self._patience.until_stored(
            lambda: self._store.save_training(row, event=event, session=session), what=f"training {self.training_id}"
        )
        self._row = row
        if session is not None:
            self._sessions[session.session_id] = session
