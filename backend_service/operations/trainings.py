"""All trainings: those that have not ended are held in memory, the others are read from the store."""

from __future__ import annotations

import asyncio
import base64
import binascii
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from backend_service.operations.records import TrainingRow, fold
from backend_service.operations.store import OperationsStore, TrainingQuery
from backend_service.operations.training_record import TrainingRecord, TrainingSnapshot
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import ProgressEvent, ProgressSummary, StateDetail
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    AlreadyExistsError,
    IllegalStateError,
    InternalError,
    InvalidInputError,
    NoSlotError,
    TrainingNotFoundError,
)
from ktrdr_core.rpc.event_log import EventLog

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 << 20  # gRPC refuses messages above 4 MiB; the sizes below are generous guesses
ROW_BYTES = 2_000
FEATURE_BYTES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPage:
    """One page of trainings and the token of the next; "" on the last page."""

    snapshots: tuple[TrainingSnapshot, ...]
    next_page_token: str


class Trainings:
    """Finds, accepts, lists and deletes trainings.

    Args:
        store: Where they are kept.
        max_queued: Trainings that may wait; a further one is refused.
        sessions_dir: Where sessions on this machine have their directories; a deleted training's go with it.
    """

    def __init__(self, store: OperationsStore, *, max_queued: int, sessions_dir: Path) -> None:
        self._store = store
        self._sessions_dir = sessions_dir
        self._max_queued = max_queued
        self._active: dict[str, TrainingRecord] = {}
        self._accepting: set[str] = set()

    @property
    def active(self) -> tuple[TrainingRecord, ...]:
        """Every training that has not ended, oldest first."""
        return tuple(self._active.values())

    async def load_active(self) -> tuple[TrainingRecord, ...]:
        """Bring every training that had not ended back into memory, with its sessions and its log."""
        rows = await self._store.load_active()
        sessions = await self._store.load_sessions([row.training_id for row in rows])
        for row in rows:
            self._active[row.training_id] = TrainingRecord(
                self._store,
                row,
                sessions=sessions[row.training_id],
                events=await self._store.load_events(row.training_id),
                on_end=self._forget,
            )
        return self.active

    async def find_duplicate(self, request_id: str, spec: TrainingSpec) -> TrainingSnapshot | None:
        """Return the training this request has already made, or None.

        Raises:
            AlreadyExistsError: The request_id was used with other content.
        """
        if not request_id:
            return None
        row = await self._store.find_by_request(request_id)
        if row is None:
            return None
        if row.content_digest != spec.digest():
            raise AlreadyExistsError(
                f"request_id {request_id!r} was used for training {row.training_id} with other content; "
                "use another request_id",
                metadata={"training_id": row.training_id},
            )
        return await self.snapshot(row.training_id)

    def check_room(self) -> None:
        """Raise if as many trainings as may wait are waiting.

        Raises:
            NoSlotError: See above.
        """
        num_queued = sum(record.state is TrainingState.QUEUED for record in self._active.values())
        if num_queued + len(self._accepting) >= self._max_queued:
            raise NoSlotError(
                f"{num_queued} trainings are queued and the limit is {self._max_queued}; "
                "wait until some have ended, or cancel some",
                retry_after_s=5.0,
            )

    async def accept(self, spec: TrainingSpec, *, strategy_name: str, request_id: str) -> TrainingRecord:
        """Store a new training as QUEUED.

        Raises:
            NoSlotError: The queue is full.
            AlreadyExistsError: A concurrent call with the same request_id came first; look for it again.
        """
        self.check_room()
        now = utc_now()
        queued = ProgressEvent(
            sequence=1, create_time=now, detail=StateDetail(state=TrainingState.QUEUED, message="Waits for a place")
        )
        row = TrainingRow(
            training_id=str(uuid4()),
            request_id=request_id,
            content_digest=spec.digest(),
            strategy_name=strategy_name,
            spec=spec,
            create_time=now,
            summary=fold(ProgressSummary(), queued),
        )
        self._accepting.add(row.training_id)
        try:
            await self._store.insert_training(row, queued)
        finally:
            self._accepting.discard(row.training_id)
        record = TrainingRecord(self._store, row, events=[queued], on_end=self._forget)
        self._active[row.training_id] = record
        return record

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
        page = found[: min(size, _num_that_fit([entry.row for entry in found]))]
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
        await self._store.delete_training(training_id)
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


def _num_that_fit(rows: Sequence[TrainingRow]) -> int:
    """Return how many trainings a page may have to stay below the limit of a message; at least one."""
    size = 0
    for number, row in enumerate(rows):
        features = len(row.result["feature_names"]) if row.result else 0
        size += len(row.spec.strategy_yaml.encode()) + features * FEATURE_BYTES + ROW_BYTES
        if size > MAX_PAGE_BYTES:
            return max(number, 1)
    return len(rows)


def check_page_size(page_size: int) -> int:
    """Return the page size to use; 0 means the default.

    Raises:
        InvalidInputError: It is not in 0 to MAX_PAGE_SIZE.
    """
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        raise InvalidInputError(f"page_size must be 1 to {MAX_PAGE_SIZE}, was {page_size}", field="page_size")
    return page_size or DEFAULT_PAGE_SIZE


def encode_page_token(position: int) -> str:
    """Return an opaque token for "after this position"."""
    return base64.urlsafe_b64encode(f"p{position}".encode()).decode()


def decode_page_token(token: str) -> int:
    """Return the position in a token.

    Raises:
        InvalidInputError: This program did not make the token.
    """
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        if text[:1] != "p" or not text[1:].isdecimal():
            raise ValueError(text)
        return int(text[1:])
    except (binascii.Error, ValueError):
        raise InvalidInputError(
            f"page_token {token[:80]!r} was not made by this service; take it from the page before", field="page_token"
        ) from None


async def _refuse_event(event: ProgressEvent) -> None:
    raise InternalError("an event was added to the log of an ended training")
