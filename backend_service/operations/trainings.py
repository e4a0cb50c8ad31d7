"""All trainings: those that have not ended are held in memory, the others are read from the store."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from backend_service.operations.pages import check_page_size, decode_page_token, encode_page_token, num_that_fit
from backend_service.operations.patience import Patience
from backend_service.operations.records import Fence, RequestCancel, SessionRow, TrainingRow, fold
from backend_service.operations.store import OperationsStore, TrainingQuery
from backend_service.operations.training_record import TrainingRecord, TrainingSnapshot
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import ProgressEvent, ProgressSummary, StateDetail
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling, request_digest
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    AlreadyExistsError,
    IllegalStateError,
    InternalError,
    NoSlotError,
    TrainingNotFoundError,
)
from ktrdr_core.rpc.event_log import EventLog

DEFAULT_EVENT_PAGE_SIZE = 200
MAX_ENDED_LOGS = 16
REQUEST_CANCELS_KEPT = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPage:
    """One page of trainings and the token of the next; "" on the last page."""

    snapshots: tuple[TrainingSnapshot, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """One page of a training's history and the token of the next; "" on the last page."""

    events: tuple[ProgressEvent, ...]
    next_page_token: str


class Trainings:
    """Finds, accepts, lists and deletes trainings.

    Args:
        store: Where they are kept.
        max_queued: Trainings that may wait; a further one is refused.
        sessions_dir: Where sessions on this machine have their directories; a deleted training's go with it.
        on_delete: Removes what else there is of a deleted training.
    """

    def __init__(
        self,
        store: OperationsStore,
        *,
        max_queued: int,
        sessions_dir: Path,
        on_delete: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._on_delete = on_delete
        self._sessions_dir = sessions_dir
        self._max_queued = max_queued
        self._active: dict[str, TrainingRecord] = {}
        self._accepting: set[str] = set()
        self._patience = Patience()
        self._ended_logs: OrderedDict[str, asyncio.Task[EventLog]] = OrderedDict()

    @property
    def active(self) -> tuple[TrainingRecord, ...]:
        """Every training that has not ended, oldest first."""
        return tuple(self._active.values())

    async def load_active(self) -> tuple[TrainingRecord, ...]:
        """Bring every training that had not ended back into memory, with its sessions and its log."""
        await self._bring_back(await self._store.load_active())
        for record in self.active:
            if record.state is TrainingState.QUEUED and record.row.request_id:
                await self._obey_request_cancel(record)
        return self.active

    async def _bring_back(self, rows: Sequence[TrainingRow]) -> None:
        """Make records of trainings that have not ended and have none."""
        sessions = await self._store.load_sessions([row.training_id for row in rows])
        for row in rows:
            events = await self._store.load_events(row.training_id)
            if not self._is_known(row.training_id):
                self._active[row.training_id] = TrainingRecord(
                    self._store,
                    row,
                    self._patience,
                    sessions=sessions[row.training_id],
                    events=events,
                    on_end=self._forget,
                )

    async def find_duplicate(
        self, request_id: str, spec: TrainingSpec, scheduling: Scheduling = DEFAULT_SCHEDULING
    ) -> TrainingSnapshot | None:
        """Return the training this request has already made, or None.

        Raises:
            AlreadyExistsError: The request_id was used with other content.
        """
        if not request_id:
            return None
        row = await self._store.find_by_request(request_id)
        if row is None:
            return None
        if row.content_digest != request_digest(spec.digest(), scheduling):
            raise AlreadyExistsError(
                f"request_id {request_id!r} was used for training {row.training_id} with other content; "
                "use another request_id",
                metadata={"training_id": row.training_id},
            )
        if not self._is_known(row.training_id):
            row = await self._require_row(row.training_id)  # again: it may have ended this moment
            if not row.state.is_terminal:
                await self._bring_back([row])  # its insert was answered with an error and had succeeded all the same
        return await self.snapshot(row.training_id)

    def _is_known(self, training_id: str) -> bool:
        return training_id in self._active or training_id in self._accepting

    def check_room(self) -> None:
        """Raise if as many trainings as may wait are waiting.

        Raises:
            NoSlotError: See above.
        """
        if len(self._active) + len(self._accepting) < self._max_queued:
            return
        num_queued = sum(record.state is TrainingState.QUEUED for record in self._active.values())
        if num_queued + len(self._accepting) >= self._max_queued:
            raise NoSlotError(
                f"{num_queued} trainings are queued and the limit is {self._max_queued}; "
                "wait until some have ended, or cancel some",
                retry_after_s=5.0,
            )

    async def accept(
        self,
        spec: TrainingSpec,
        *,
        strategy_name: str,
        request_id: str,
        scheduling: Scheduling = DEFAULT_SCHEDULING,
    ) -> TrainingRecord:
        """Store a new training as QUEUED; one whose request was cancelled before it arrived has ended on return.

        Raises:
            NoSlotError: The queue is full.
            AlreadyExistsError: A concurrent call with the same request_id came first; look for it again.
            StorageError: The store takes no writes now; nothing was stored.
        """
        self.check_room()
        now = utc_now()
        queued = ProgressEvent(
            sequence=1, create_time=now, detail=StateDetail(state=TrainingState.QUEUED, message="Waits for a place")
        )
        row = TrainingRow(
            training_id=str(uuid4()),
            request_id=request_id,
            content_digest=request_digest(spec.digest(), scheduling),
            strategy_name=strategy_name,
            spec=spec,
            create_time=now,
            summary=fold(ProgressSummary(), queued),
            scheduling=scheduling,
        )
        self._accepting.add(row.training_id)
        try:
            await self._store.insert_training(row, queued)
            record = TrainingRecord(self._store, row, self._patience, events=[queued], on_end=self._forget)
            self._active[row.training_id] = record
            if request_id:
                await self._obey_request_cancel(record)
        finally:
            self._accepting.discard(row.training_id)
        return record

    def is_accepting(self, training_id: str) -> bool:
        """Return whether a training is still being accepted: whether it may run at all is not known yet."""
        return training_id in self._accepting

    async def _obey_request_cancel(self, record: TrainingRecord) -> None:
        """End a training that waits if the cancel of its request came before it."""
        found: list[RequestCancel] = []

        async def look() -> None:
            cancel = await self._store.find_request_cancel(record.row.request_id)
            found.extend([cancel] if cancel is not None else [])

        await self._patience.until_stored(look, what=f"training {record.training_id}")  # it is accepted already
        if not found:
            return
        (cancel,) = found
        # In one step: a start after a kill between two would take the order for one that came later.
        await record.try_move_to(TrainingState.CANCELLED, f"{cancel.reason}; the cancel came before the training")

    async def cancel_request(self, request_id: str, *, save_checkpoint: bool, reason: str) -> str | None:
        """Return the training that a request made; if it has not arrived, keep its cancel and return None.

        Raises:
            StorageError: The store takes no writes now.
        """
        row = await self._store.find_by_request(request_id)
        if row is not None:
            return row.training_id
        cancel = RequestCancel(
            request_id=request_id, save_checkpoint=save_checkpoint, reason=reason, create_time=utc_now()
        )
        if await self._store.keep_request_cancel(cancel):
            return None
        row = await self._store.find_by_request(request_id)  # it arrived between the two
        return row.training_id if row is not None else None

    async def sweep(self) -> None:
        """Forget cancels of requests that never came."""
        await self._store.forget_request_cancels(before=utc_now() - REQUEST_CANCELS_KEPT)

    async def save_session(self, session: SessionRow) -> None:
        """Store a changed attempt of a training, which may have ended."""
        record = self._active.get(session.training_id)
        if record is not None:
            await record.put_session(session)
        else:
            await self._patience.until_stored(
                lambda: self._store.save_session(session), what=f"session {session.session_id}"
            )

    async def load_fenced_sessions(self) -> list[SessionRow]:
        """Return the attempts that their trainers still have to end."""
        return await self._store.load_fenced_sessions()

    async def list_events(self, training_id: str, *, page_size: int, page_token: str) -> EventPage:
        """Return one page of the durable events of a training, oldest first.

        Raises:
            TrainingNotFoundError: There is no such training.
            InvalidInputError: A bad page size or token.
        """
        size = check_page_size(page_size, default=DEFAULT_EVENT_PAGE_SIZE)
        after = decode_page_token(page_token) if page_token else 0
        if training_id not in self._active:
            await self._require_row(training_id)
        found = await self._store.load_events(training_id, after_sequence=after, limit=size + 1)
        page = tuple(found[:size])
        return EventPage(events=page, next_page_token=encode_page_token(page[-1].sequence) if len(found) > size else "")

    async def with_checkpoints(self, training_ids: Sequence[str]) -> list[str]:
        """Return those of the trainings whose checkpoint is still of use: active ones and STOPPED ones."""
        wanted = []
        for training_id in training_ids:
            row = await self._store.find_training(training_id)
            if row is not None and (not row.state.is_terminal or row.state is TrainingState.STOPPED):
                wanted.append(training_id)
        return wanted

    def give_up_waiting(self) -> None:
        """Let changes that wait for the store fail: the service stops."""
        self._patience.give_up()

    def find_active(self, training_id: str) -> TrainingRecord | None:
        """Return a training that has not ended, or None."""
        return self._active.get(training_id)

    async def require_active(self, training_id: str) -> TrainingRecord:
        """Return a training that has not ended.

        Raises:
            TrainingNotFoundError: There is no such training.
            IllegalStateError: It has ended; the state is in the metadata.
        """
        record = self._active.get(training_id)
        if record is not None:
            return record
        row = await self._require_row(training_id)
        raise IllegalStateError(
            f"training {training_id} has already ended: {row.state}",
            metadata={"training_id": training_id, "state": str(row.state)},
        )

    async def snapshot(self, training_id: str) -> TrainingSnapshot:
        """Return a training as it is now.

        Raises:
            TrainingNotFoundError: There is no such training.
        """
        record = self._active.get(training_id)
        if record is not None:
            return record.snapshot()
        row = await self._require_row(training_id)
        return (await self._snapshots([row]))[0]

    async def open_log(self, training_id: str) -> EventLog:
        """Return the log of a training; one that has ended is replayed from the store.

        Raises:
            TrainingNotFoundError: There is no such training.
        """
        record = self._active.get(training_id)
        if record is not None:
            return record.log
        await self._require_row(training_id)
        # A thousand watchers of one ended training share one copy.
        loading = self._ended_logs.get(training_id)
        if loading is None or (loading.done() and (loading.cancelled() or loading.exception() is not None)):
            loading = self._ended_logs[training_id] = asyncio.create_task(self._load_log(training_id))
            while len(self._ended_logs) > MAX_ENDED_LOGS:
                self._ended_logs.popitem(last=False)
        self._ended_logs.move_to_end(training_id)
        return await asyncio.shield(loading)

    async def _load_log(self, training_id: str) -> EventLog:
        return EventLog(_refuse_event, await self._store.load_events(training_id))

    async def list_page(
        self, *, page_size: int, page_token: str, states: Sequence[TrainingState] = (), strategy_name: str = ""
    ) -> TrainingPage:
        """Return one page, newest first.

        Raises:
            InvalidInputError: A bad page size or token.
        """
        size = check_page_size(page_size)
        query = TrainingQuery(
            limit=size + 1,
            before_position=decode_page_token(page_token) if page_token else None,
            states=tuple(states),
            strategy_name=strategy_name,
        )
        found = await self._store.list_trainings(query)
        page = found[: min(size, num_that_fit([entry.row for entry in found]))]
        return TrainingPage(
            snapshots=tuple(await self._snapshots([entry.row for entry in page])),
            next_page_token=encode_page_token(page[-1].position) if len(found) > len(page) else "",
        )

    async def delete(self, training_id: str) -> None:
        """Delete the record of a training that has ended.

        Raises:
            TrainingNotFoundError: There is no such training.
            IllegalStateError: It has not ended.
        """
        record = self._active.get(training_id)
        if record is not None:
            raise IllegalStateError(
                f"training {training_id} is {record.state} and only ended ones can be deleted; cancel it first",
                metadata={"training_id": training_id, "state": str(record.state)},
            )
        sessions = (await self._store.load_sessions([training_id]))[training_id]
        pending = [session.trainer for session in sessions if session.fence is Fence.PENDING]
        if pending:
            raise IllegalStateError(
                f"trainer {pending[0]} has not yet said that its lost session of training {training_id} is gone; "
                "delete the training once the trainer is back",
                metadata={"training_id": training_id, "trainer": pending[0]},
            )
        await self._store.delete_training(training_id)
        self._ended_logs.pop(training_id, None)
        await self._on_delete(training_id)
        for session in sessions:  # kept until now where there is a checkpoint or a log to look at
            await asyncio.to_thread(shutil.rmtree, self._sessions_dir / session.session_id, ignore_errors=True)

    async def _require_row(self, training_id: str) -> TrainingRow:
        row = await self._store.find_training(training_id)
        if row is None:
            raise TrainingNotFoundError(
                f"there is no training {training_id!r}; list them with `ktrdr list`",
                metadata={"training_id": training_id},
            )
        return row

    async def _snapshots(self, rows: Sequence[TrainingRow]) -> list[TrainingSnapshot]:
        sessions = await self._store.load_sessions([row.training_id for row in rows])
        snapshots = []
        for row in rows:
            record = self._active.get(row.training_id)
            snapshots.append(
                record.snapshot()
                if record is not None
                else TrainingSnapshot(row=row, sessions=tuple(sessions[row.training_id]), summary=row.summary)
            )
        return snapshots

    def _forget(self, training_id: str) -> None:
        self._active.pop(training_id, None)


async def _refuse_event(event: ProgressEvent) -> None:
    raise InternalError("an event was added to the log of an ended training")
