"""The operations store over SQLite or PostgreSQL: one writer with group commit, readers on threads beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Select, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from backend_service.operations import migrations, schema
from backend_service.operations.columns import request_cancel_from, session_from, training_from
from backend_service.operations.database import BUSY_TIMEOUT_S, NUM_READERS, Database, open_database
from backend_service.operations.group_commit import GroupCommitWriter
from backend_service.operations.records import RequestCancel, SessionRow, StrategyHistory, TrainingRow
from backend_service.operations.store import ListedTraining, TrainingQuery
from backend_service.operations.writes import (
    Command,
    DeleteTraining,
    Execute,
    ForgetRequestCancels,
    InsertTraining,
    KeepRequestCancel,
    SaveSession,
    SaveTraining,
    WriteConfig,
    WriteRunner,
)
from ktrdr_core.clock import from_iso
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.states import TERMINAL_STATES, TrainingState
from ktrdr_core.errors import StorageError

T = TypeVar("T")

MAX_WAITING_READS = 1_000
_ENDED = [str(state) for state in TERMINAL_STATES]


class SqlOperationsStore:
    """An `OperationsStore` in a SQL database. Make it with `await SqlOperationsStore.open(url_or_path)`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writer: GroupCommitWriter[Command] = GroupCommitWriter(database, WriteRunner(database.mark))
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="operations-reader")
        self._num_reads = 0

    @classmethod
    async def open(cls, url_or_path: str | Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """Open, create or upgrade a database.

        Args:
            url_or_path: A path, `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
            busy_timeout_s: How long a statement waits for a lock of somebody else, or for its answer.

        Raises:
            IllegalStateError: A newer version of this program wrote it, or (PostgreSQL) another backend uses it.
            InvalidInputError: It is no such URL.
            UnsupportedError: The driver of PostgreSQL is not installed.
            StorageError: It cannot be read or written now.
            CorruptDataError: The file is damaged or no database.
        """
        store = cls(open_database(url_or_path, busy_timeout_s=busy_timeout_s))
        try:
            await store._prepare()
        except BaseException:  # whatever it is, nobody else can close them
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Commit what was handed in and close every connection."""
        await self._writer.close()
        await asyncio.to_thread(self._readers.shutdown)
        self._database.engine.dispose()

    async def insert_training(self, row: TrainingRow, event: ProgressEvent) -> None:
        await self._writer.submit(InsertTraining(row, event))

    async def save_training(
        self, row: TrainingRow, *, event: ProgressEvent | None = None, session: SessionRow | None = None
    ) -> None:
        await self._writer.submit(SaveTraining(row, event, session))

    async def find_training(self, training_id: str) -> TrainingRow | None:
        return await self._find_one(select(schema.trainings).where(schema.trainings.c.training_id == training_id))

    async def find_by_request(self, request_id: str) -> TrainingRow | None:
        return await self._find_one(select(schema.trainings).where(schema.trainings.c.request_id == request_id))

    async def list_trainings(self, query: TrainingQuery) -> list[ListedTraining]:
        table = schema.trainings
        statement = select(table).order_by(table.c.position.desc()).limit(query.limit)
        if query.before_position is not None:
            statement = statement.where(table.c.position < query.before_position)
        if query.states:
            statement = statement.where(table.c.state.in_([str(state) for state in query.states]))
        if query.strategy_name:
            statement = statement.where(table.c.strategy_name == query.strategy_name)
        return await self._find(
            statement, lambda found: ListedTraining(position=found.position, row=training_from(found))
        )

    async def load_active(self) -> list[TrainingRow]:
        table = schema.trainings
        statement = select(table).where(table.c.state.not_in(_ENDED)).order_by(table.c.position)
        return await self._find(statement, training_from)

    async def load_events(
        self, training_id: str, *, after_sequence: int = 0, limit: int | None = None
    ) -> list[ProgressEvent]:
        table = schema.training_events
        statement = (
            select(table.c.event)
            .where(table.c.training_id == training_id, table.c.sequence > after_sequence)
            .order_by(table.c.sequence)
            .limit(limit)
        )
        return await self._find(statement, lambda found: ProgressEvent.from_json(found.event))

    async def load_sessions(self, training_ids: Sequence[str]) -> dict[str, list[SessionRow]]:
        table = schema.sessions
        statement = select(table).where(table.c.training_id.in_(training_ids))
        sessions: dict[str, list[SessionRow]] = {training_id: [] for training_id in training_ids}
        for session in await self._find(statement.order_by(table.c.attempt, table.c.session_id), session_from):
            sessions[session.training_id].append(session)
        return sessions

    async def load_fenced_sessions(self) -> list[SessionRow]:
        table = schema.sessions
        statement = select(table).where(schema.IS_TO_END).order_by(table.c.training_id, table.c.attempt)
        return await self._find(statement, session_from)

    async def save_session(self, session: SessionRow) -> None:
        await self._writer.submit(SaveSession(session))

    async def keep_request_cancel(self, cancel: RequestCancel) -> bool:
        is_kept: bool = await self._writer.submit(KeepRequestCancel(cancel))
        return is_kept

    async def find_request_cancel(self, request_id: str) -> RequestCancel | None:
        table = schema.request_cancels
        found = await self._find(select(table).where(table.c.request_id == request_id), request_cancel_from)
        return found[0] if found else None

    async def forget_request_cancels(self, *, before: datetime) -> int:
        num_forgotten: int = await self._writer.submit(ForgetRequestCancels(before))
        return num_forgotten

    async def delete_training(self, training_id: str) -> None:
        await self._writer.submit(DeleteTraining(training_id))

    async def load_strategy_history(self) -> dict[str, StrategyHistory]:
        return await self._read(_load_strategy_history)

    async def read_config(self, key: str) -> str | None:
        found = await self._find(
            select(schema.config.c.value).where(schema.config.c.key == key), lambda found: str(found.value)
        )
        return found[0] if found else None

    async def write_config(self, key: str, value: str) -> str | None:
        previous: str | None = await self._writer.submit(WriteConfig(key, value))
        return previous

    async def _prepare(self) -> None:
        # The writer connects first: it is the one that keeps a second backend out.
        await self._writer.submit(Execute(lambda cursor: None))
        await self._read(self._bring_up_to_date)
        await self._writer.submit(Execute(self._database.claim))

    def _bring_up_to_date(self, connection: Connection) -> None:
        migrations.bring_up_to_date(connection, self._database.name)
        connection.commit()

    async def _find_one(self, statement: Select[Any]) -> TrainingRow | None:
        found = await self._find(statement, training_from)
        return found[0] if found else None

    async def _find(self, statement: Select[Any], build: Callable[[Any], T]) -> list[T]:
        return await self._read(lambda connection: [build(found) for found in connection.execute(statement)])

    async def _read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on a thread, with its rows turned into objects there."""
        if self._num_reads >= MAX_WAITING_READS:
            raise StorageError(f"{MAX_WAITING_READS} reads wait for the operations database; try again later")
        self._num_reads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._run_query, query)
        finally:
            self._num_reads -= 1

    def _run_query(self, query: Callable[[Connection], T]) -> T:
        try:
            return self._run_once(query)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise self._explained(error) from error
        except PoolTimeoutError as error:
            raise StorageError("every connection to the operations database is in use; try again later") from error
        try:
            return self._run_once(query)  # a connection of the pool was lost since its last use, all are made anew
        except DBAPIError as error:
            raise self._explained(error) from error

    def _run_once(self, query: Callable[[Connection], T]) -> T:
        with self._database.engine.connect() as connection:
            return query(connection)

    def _explained(self, error: DBAPIError) -> Exception:
        failure = self._database.explain(error.orig) if error.orig is not None else None
        return failure or error


def _load_strategy_history(connection: Connection) -> dict[str, StrategyHistory]:
    table = schema.trainings
    newest = select(func.max(table.c.position)).group_by(table.c.strategy_name)
    last = select(table.c.strategy_name, table.c.state, table.c.create_time).where(table.c.position.in_(newest))
    active = select(table.c.strategy_name).where(table.c.state.not_in(_ENDED)).distinct()
    active_names = set(connection.execute(active).scalars())
    return {
        found.strategy_name: StrategyHistory(
            last_state=TrainingState(found.state),
            last_create_time=from_iso(found.create_time),
            has_active=found.strategy_name in active_names,
        )
        for found in connection.execute(last)
    }
