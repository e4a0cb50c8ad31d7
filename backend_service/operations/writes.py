"""The write commands of the operations store, as SQL that the drivers prepare once.

Measured: handing the driver ready text and tuples costs a tenth of executing SQLAlchemy objects, and a column that is
set anew has its index written anew even if the value is the same; so what did not change is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from backend_service.operations.columns import (
    REQUEST_COLUMNS,
    SESSION_COLUMNS,
    STORY_COLUMNS,
    attempt_of,
    request_values,
    session_values,
    story_of,
    story_values,
    summary_value,
)
from backend_service.operations.records import RequestCancel, SessionRow, TrainingRow
from ktrdr_core.clock import to_iso
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.errors import AlreadyExistsError, TrainingNotFoundError, WriteConflictError

MAX_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class InsertTraining:
    row: TrainingRow
    event: ProgressEvent


@dataclass(frozen=True, slots=True)
class SaveTraining:
    row: TrainingRow
    event: ProgressEvent | None
    session: SessionRow | None


@dataclass(frozen=True, slots=True)
class SaveSession:
    session: SessionRow


@dataclass(frozen=True, slots=True)
class KeepRequestCancel:
    cancel: RequestCancel


@dataclass(frozen=True, slots=True)
class ForgetRequestCancels:
    before: datetime


@dataclass(frozen=True, slots=True)
class DeleteTraining:
    training_id: str


@dataclass(frozen=True, slots=True)
class WriteConfig:
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Execute:
    """Something else to do on the writer's connection, in order with the others."""

    work: Callable[[Any], None]


Command = (
    InsertTraining
    | SaveTraining
    | SaveSession
    | KeepRequestCancel
    | ForgetRequestCancels
    | DeleteTraining
    | WriteConfig
    | Execute
)


class WriteRunner:
    """Runs commands on a cursor of the driver; see `Runner`.

    Args:
        mark: What stands for a parameter in the SQL of the driver.
    """

    def __init__(self, mark: str) -> None:
        self._sql = _Statements(mark)
        # What the rows look like that this program wrote, the only one that writes: see `_save_stories`.
        self._stories: dict[str, tuple[Any, ...]] = {}
        self._attempts: dict[str, tuple[Any, ...]] = {}

    def run(self, cursor: Any, commands: Sequence[Command]) -> list[Any]:
        """Run commands in order and return their answers; raise what the first that fails raises.

        Saves of trainings that follow each other go to the driver together.
        """
        answers: list[Any] = []
        saves: list[SaveTraining] = []
        for command in commands:
            if type(command) is SaveTraining:
                saves.append(command)
                answers.append(None)
                continue
            if saves:
                self._save(cursor, saves)
                saves = []
            answers.append(self._run_other(cursor, command))
        if saves:
            self._save(cursor, saves)
        return answers

    def forget(self) -> None:
        """Forget what the rows look like: they may have been rolled back."""
        self._stories.clear()
        self._attempts.clear()

    def _run_other(self, cursor: Any, command: Command) -> Any:
        match command:
            case InsertTraining(row=row, event=event):
                return self._insert(cursor, row, event)
            case SaveSession(session=session):
                cursor.execute(self._sql.has_training, (session.training_id,))
                return self._save_sessions(cursor, [session]) if cursor.fetchone() else None
            case KeepRequestCancel(cancel=cancel):
                return self._keep_cancel(cursor, cancel)
            case ForgetRequestCancels(before=before):
                cursor.execute(self._sql.forget_cancels, (to_iso(before),))
                return cursor.rowcount
            case DeleteTraining(training_id=training_id):
                return self._delete(cursor, training_id)
            case WriteConfig(key=key, value=value):
                cursor.execute(self._sql.find_config, (key,))
                previous = cursor.fetchone()
                cursor.execute(self._sql.put_config, (key, value))
                return previous[0] if previous else None
            case Execute(work=work):
                return work(cursor)
            case SaveTraining():
                return self._save(cursor, [command])

    def _insert(self, cursor: Any, row: TrainingRow, event: ProgressEvent) -> None:
        values = (*request_values(row), *story_values(row), summary_value(row))
        cursor.execute(self._sql.insert_training, values)
        if cursor.rowcount == 0 and not self._has_event(cursor, row.training_id, event.sequence, event.to_json()):
            raise AlreadyExistsError(
                f"training {row.training_id} or request_id {row.request_id!r} exists already; use another request_id",
                metadata={"training_id": row.training_id},
            )
        self._insert_events(cursor, [(row.training_id, event)])

    def _save(self, cursor: Any, saves: list[SaveTraining]) -> None:
        """Store what several saves lead to: of each training and session the last row, and every event."""
        self._save_rows(cursor, list({save.row.training_id: save.row for save in saves}.values()))
        events = [(save.row.training_id, save.event) for save in saves if save.event is not None]
        if events:
            self._insert_events(cursor, events)
        sessions = {save.session.session_id: save.session for save in saves if save.session is not None}
        if sessions:
            self._save_sessions(cursor, list(sessions.values()))

    def _save_rows(self, cursor: Any, rows: list[TrainingRow]) -> None:
        changed, unchanged = [], []
        for row in rows:
            story = story_of(row)
            if self._stories.get(row.training_id) == story:
                unchanged.append((summary_value(row), row.training_id))
            else:
                changed.append((*story_values(row), summary_value(row), row.training_id))
                self._remember(self._stories, row.training_id, story)
        for statement, values in ((self._sql.save_training, changed), (self._sql.save_summary, unchanged)):
            if not values:
                continue
            cursor.executemany(statement, values)
            if cursor.rowcount != len(values):  # of one row alone it is this one; of several they are run one by one
                raise not_found(rows[0].training_id)

    def _insert_events(self, cursor: Any, events: list[tuple[str, ProgressEvent]]) -> None:
        values = [(training_id, event.sequence, event.to_json()) for training_id, event in events]
        cursor.executemany(self._sql.insert_event, values)
        if cursor.rowcount == len(values):
            return
        for training_id, sequence, text in values:
            if not self._has_event(cursor, training_id, sequence, text):
                raise WriteConflictError(
                    f"training {training_id} already has an event {sequence}; a second writer is at work",
                    metadata={"training_id": training_id},
                )

    def _has_event(self, cursor: Any, training_id: str, sequence: int, text: str) -> bool:
        """Return whether just this event is stored: the same call again, after a connection that could not answer."""
        cursor.execute(self._sql.find_event, (training_id, sequence))
        found = cursor.fetchone()
        return found is not None and found[0] == text

    def _save_sessions(self, cursor: Any, sessions: list[SessionRow]) -> None:
        changed, unchanged = [], []
        for session in sessions:
            attempt = attempt_of(session)
            if self._attempts.get(session.session_id) == attempt:
                unchanged.append((session.last_sequence, session.session_id))
            else:
                changed.append(session_values(session))
                self._remember(self._attempts, session.session_id, attempt)
        if changed:
            cursor.executemany(self._sql.put_session, changed)
        if unchanged:
            cursor.executemany(self._sql.advance_session, unchanged)

    def _keep_cancel(self, cursor: Any, cancel: RequestCancel) -> bool:
        cursor.execute(self._sql.has_request, (cancel.request_id,))
        if cursor.fetchone():
            return False
        values = (cancel.request_id, int(cancel.save_checkpoint), cancel.reason, to_iso(cancel.create_time))
        cursor.execute(self._sql.keep_cancel, values)
        return True

    def _delete(self, cursor: Any, training_id: str) -> None:
        cursor.execute(self._sql.delete_training, (training_id,))
        if cursor.rowcount == 0:
            raise not_found(training_id)
        self.forget()

    @staticmethod
    def _remember(known: dict[str, tuple[Any, ...]], key: str, value: tuple[Any, ...]) -> None:
        if len(known) >= MAX_KNOWN:
            known.clear()
        known[key] = value


class _Statements:
    """The SQL of every write; the same for both databases but for the mark of a parameter."""

    def __init__(self, mark: str) -> None:
        def marked(text: str) -> str:
            return text.replace("?", mark)

        def insert(table: str, columns: Sequence[str], conflict: str) -> str:
            marks = ", ".join(["?"] * len(columns))
            names = ", ".join(columns)
            return marked(f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT {conflict}")  # noqa: S608

        story = (*STORY_COLUMNS, "summary")
        settings = ", ".join(f"{column} = ?" for column in story)
        keys = ("session_id", "training_id")
        attempt = ", ".join(f"{name} = excluded.{name}" for name in SESSION_COLUMNS if name not in keys)
        cancel = ("request_id", "save_checkpoint", "reason", "create_time")

        self.insert_training = insert("trainings", (*REQUEST_COLUMNS, *story), "DO NOTHING")
        self.save_training = marked(f"UPDATE trainings SET {settings} WHERE training_id = ?")  # noqa: S608
        self.save_summary = marked("UPDATE trainings SET summary = ? WHERE training_id = ?")
        self.delete_training = marked("DELETE FROM trainings WHERE training_id = ?")
        self.has_training = marked("SELECT 1 FROM trainings WHERE training_id = ?")
        self.has_request = marked("SELECT 1 FROM trainings WHERE request_id = ?")
        self.insert_event = insert("training_events", ("training_id", "sequence", "event"), "DO NOTHING")
        self.find_event = marked("SELECT event FROM training_events WHERE training_id = ? AND sequence = ?")
        self.put_session = insert("sessions", SESSION_COLUMNS, f"(session_id) DO UPDATE SET {attempt}")
        self.advance_session = marked("UPDATE sessions SET last_sequence = ? WHERE session_id = ?")
        self.keep_cancel = insert("request_cancels", cancel, "DO NOTHING")
        self.forget_cancels = marked("DELETE FROM request_cancels WHERE create_time < ?")
        self.find_config = marked("SELECT value FROM config WHERE key = ?")
        self.put_config = insert("config", ("key", "value"), "(key) DO UPDATE SET value = excluded.value")


def not_found(training_id: str) -> TrainingNotFoundError:
    return TrainingNotFoundError(
        f"there is no training {training_id!r}; list them with `ktrdr list`", metadata={"training_id": training_id}
    )
