"""The operations store over SQLAlchemy Core and SQLite (WAL): one writer with group commit, readers beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    StaticPool,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from backend_service.operations import schema
from backend_service.operations.group_commit import GroupCommitWriter
from backend_service.operations.records import (
    Placement,
    SessionRow,
    StrategyHistory,
    TrainingRow,
    summary_from_json,
    summary_to_json,
)
from backend_service.operations.store import ListedTraining, TrainingQuery
from ktrdr_core.clock import from_iso, to_iso
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TERMINAL_STATES, TrainingState
from ktrdr_core.errors import (
    AlreadyExistsError,
    IllegalStateError,
    TrainingNotFoundError,
    WriteConflictError,
)

# Built once: building a statement costs more than running it.
_UPDATE_TRAINING = update(schema.trainings).where(schema.trainings.c.training_id == bindparam("key"))
_INSERT_EVENT = insert(schema.training_events)
_ENDED = [str(state) for state in TERMINAL_STATES]


class SqlOperationsStore:
    """An `OperationsStore` in one SQLite file. Make it with `await SqlOperationsStore.open(path)`."""

    def __init__(self, engine: AsyncEngine, writer: GroupCommitWriter) -> None:
        self._engine = engine
        self._writer = writer

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or create the database.

        Raises:
            IllegalStateError: The file was written by a newer version of this program.
        """
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=4, max_overflow=4)
        _configure(engine.sync_engine)
        write_engine = create_engine(
            f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        _configure(write_engine)
        writer = GroupCommitWriter(write_engine)
        try:
            await writer.submit(lambda connection: _create_schema(connection, path))
        except BaseException:
            await writer.close()
            await engine.dispose()
            raise
        return cls(engine, writer)

    async def close(self) -> None:
        """Commit what was handed in and close every connection."""
        await self._writer.close()
        await self._engine.dispose()

    async def insert_training(self, row: TrainingRow, event: ProgressEvent) -> None:
        values = _to_columns(row)

        def command(connection: Connection) -> None:
            try:
                connection.execute(insert(schema.trainings).values(values))
            except IntegrityError as error:
                raise AlreadyExistsError(
                    f"training {row.training_id} or request_id {row.request_id!r} exists already; "
                    "use another request_id",
                    metadata={"training_id": row.training_id},
                ) from error
            _insert_event(connection, row.training_id, event)

        await self._writer.submit(command)

    async def save_training(
        self, row: TrainingRow, *, event: ProgressEvent | None = None, session: SessionRow | None = None
    ) -> None:
        values = {"key": row.training_id, **_changing_columns(row)}

        def command(connection: Connection) -> None:
            changed = connection.execute(_UPDATE_TRAINING, values)
            if changed.rowcount == 0:
                raise _not_found(row.training_id)
            if event is not None:
                _insert_event(connection, row.training_id, event)
            if session is not None:
                _put_session(connection, session)

        await self._writer.submit(command)

    async def find_training(self, training_id: str) -> TrainingRow | None:
        return await self._find_one(schema.trainings.c.training_id == training_id)

    async def find_by_request(self, request_id: str) -> TrainingRow | None:
        return await self._find_one(schema.trainings.c.request_id == request_id)

    async def list_trainings(self, query: TrainingQuery) -> list[ListedTraining]:
        table = schema.trainings
        statement = select(table).order_by(table.c.position.desc()).limit(query.limit)
        if query.before_position is not None:
            statement = statement.where(table.c.position < query.before_position)
        if query.states:
            statement = statement.where(table.c.state.in_([str(state) for state in query.states]))
        if query.strategy_name:
            statement = statement.where(table.c.strategy_name == query.strategy_name)
        async with self._engine.connect() as connection:
            found = (await connection.execute(statement)).all()
        return [ListedTraining(position=row.position, row=_from_columns(row)) for row in found]

    async def load_active(self) -> list[TrainingRow]:
        table = schema.trainings
        statement = select(table).where(table.c.state.not_in(_ENDED)).order_by(table.c.position)
        async with self._engine.connect() as connection:
            return [_from_columns(row) for row in (await connection.execute(statement)).all()]

    async def load_events(self, training_id: str) -> list[ProgressEvent]:
        table = schema.training_events
        statement = select(table.c.event).where(table.c.training_id == training_id).order_by(table.c.sequence)
        async with self._engine.connect() as connection:
            return [ProgressEvent.from_json(text) for (text,) in (await connection.execute(statement)).all()]

    async def load_sessions(self, training_ids: Sequence[str]) -> dict[str, list[SessionRow]]:
        table = schema.sessions
        statement = select(table).where(table.c.training_id.in_(training_ids)).order_by(table.c.attempt)
        sessions: dict[str, list[SessionRow]] = {training_id: [] for training_id in training_ids}
        async with self._engine.connect() as connection:
            for row in (await connection.execute(statement)).all():
                sessions[row.training_id].append(SessionRow(**row._mapping))
        return sessions

    async def delete_training(self, training_id: str) -> None:
        def command(connection: Connection) -> None:
            deleted = connection.execute(delete(schema.trainings).where(schema.trainings.c.training_id == training_id))
            if deleted.rowcount == 0:
                raise _not_found(training_id)

        await self._writer.submit(command)

    async def load_strategy_history(self) -> dict[str, StrategyHistory]:
        table = schema.trainings
        newest = select(func.max(table.c.position)).group_by(table.c.strategy_name)
        last = select(table.c.strategy_name, table.c.state, table.c.create_time).where(table.c.position.in_(newest))
        active = select(table.c.strategy_name).where(table.c.state.not_in(_ENDED)).distinct()
        async with self._engine.connect() as connection:
            active_names = {name for (name,) in (await connection.execute(active)).all()}
            found = (await connection.execute(last)).all()
        return {
            row.strategy_name: StrategyHistory(
                last_state=TrainingState(row.state),
                last_create_time=from_iso(row.create_time),
                has_active=row.strategy_name in active_names,
            )
            for row in found
        }

    async def read_config(self, key: str) -> str | None:
        async with self._engine.connect() as connection:
            return await connection.run_sync(_read_config, key)

    async def write_config(self, key: str, value: str) -> str | None:
        def command(connection: Connection) -> str | None:
            previous = _read_config(connection, key)
            _put_config(connection, key, value)
            return previous

        return await self._writer.submit(command)

    async def _find_one(self, condition: Any) -> TrainingRow | None:
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(schema.trainings).where(condition))).one_or_none()
        return None if row is None else _from_columns(row)


def _configure(engine: Engine) -> None:
    """Set every connection up: WAL, one fsync a checkpoint, explicit BEGIN so that savepoints work."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


def _create_schema(connection: Connection, path: Path) -> None:
    schema.metadata.create_all(connection)
    stored = _read_config(connection, schema.SCHEMA_VERSION_KEY)
    if stored is None:
        _put_config(connection, schema.SCHEMA_VERSION_KEY, str(schema.SCHEMA_VERSION))
    elif int(stored) != schema.SCHEMA_VERSION:
        raise IllegalStateError(
            f"{path} has schema version {stored}, this program knows {schema.SCHEMA_VERSION}; "
            "run the version that wrote it, or start with another --data-dir"
        )


def _insert_event(connection: Connection, training_id: str, event: ProgressEvent) -> None:
    values = {"training_id": training_id, "sequence": event.sequence, "event": event.to_json()}
    try:
        connection.execute(_INSERT_EVENT, values)
    except IntegrityError as error:
        raise WriteConflictError(
            f"training {training_id} already has an event {event.sequence}; a second writer is at work",
            metadata={"training_id": training_id},
        ) from error


def _put_session(connection: Connection, session: SessionRow) -> None:
    values = {name: getattr(session, name) for name in SessionRow.__dataclass_fields__}
    statement = upsert(schema.sessions).values(values)
    connection.execute(statement.on_conflict_do_update(index_elements=["session_id"], set_=values))


def _read_config(connection: Connection, key: str) -> str | None:
    found = connection.execute(select(schema.config.c.value).where(schema.config.c.key == key))
    value: str | None = found.scalar_one_or_none()
    return value


def _put_config(connection: Connection, key: str, value: str) -> None:
    statement = upsert(schema.config).values(key=key, value=value)
    connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"value": value}))


def _to_columns(row: TrainingRow) -> dict[str, Any]:
    return {
        "training_id": row.training_id,
        "request_id": row.request_id or None,  # NULLs are distinct: only real keys are unique
        "content_digest": row.content_digest,
        "strategy_name": row.strategy_name,
        "spec": row.spec.to_json(),
        "create_time": to_iso(row.create_time),
        **_changing_columns(row),
    }


def _changing_columns(row: TrainingRow) -> dict[str, Any]:
    """Return the columns a training changes while it lives; what was asked for never does."""
    return {
        "state": str(row.state),
        "start_time": to_iso(row.start_time) if row.start_time else None,
        "end_time": to_iso(row.end_time) if row.end_time else None,
        "placement": row.placement.to_json() if row.placement else None,
        "result": json.dumps(row.result) if row.result else None,
        "cancel_save_checkpoint": row.cancel_save_checkpoint,
        "summary": summary_to_json(row.summary),
    }


def _from_columns(row: Row[Any]) -> TrainingRow:
    result: TrainingResult | None = json.loads(row.result) if row.result else None
    save_checkpoint = row.cancel_save_checkpoint
    return TrainingRow(
        training_id=row.training_id,
        request_id=row.request_id or "",
        content_digest=row.content_digest,
        strategy_name=row.strategy_name,
        spec=TrainingSpec.from_json(row.spec),
        state=TrainingState(row.state),
        create_time=from_iso(row.create_time),
        start_time=from_iso(row.start_time) if row.start_time else None,
        end_time=from_iso(row.end_time) if row.end_time else None,
        placement=Placement.from_json(row.placement) if row.placement else None,
        result=result,
        cancel_save_checkpoint=None if save_checkpoint is None else bool(save_checkpoint),
        summary=summary_from_json(row.summary),
    )


def _not_found(training_id: str) -> TrainingNotFoundError:
    return TrainingNotFoundError(
        f"there is no training {training_id!r}; list them with `ktrdr list`", metadata={"training_id": training_id}
    )
