"""SQLite in WAL mode: one file, one fsync a checkpoint."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import QueuePool, create_engine, event

from backend_service.operations.database import NUM_READERS
from ktrdr_core.errors import CorruptDataError, KtrdrError, StorageError

_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LOCKED = "another program has locked it; end that program"
_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written; see whether it is full or failing",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; see who may open it, and whether the disk is full",
    sqlite3.SQLITE_READONLY: "it can only be read; see who may write to it",
    sqlite3.SQLITE_PERM: "it may not be opened; see who may write to it",
    sqlite3.SQLITE_NOMEM: "no memory is left; end other programs",
}


class SqliteDatabase:
    """A `Database` in one file."""

    mark = "?"

    def __init__(self, path: Path, *, busy_timeout_s: float) -> None:
        self.name = str(path)
        self._busy_timeout_s = busy_timeout_s
        self.engine = create_engine(
            "sqlite://", creator=self.connect, poolclass=QueuePool, pool_size=NUM_READERS, max_overflow=0
        )

        @event.listens_for(self.engine, "begin")
        def on_begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN")

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.name,
            timeout=self._busy_timeout_s,
            isolation_level=None,  # the driver must not begin transactions by itself
            check_same_thread=False,
        )
        try:
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:  # whatever it is, the connection is nobody's
            connection.close()
            raise
        return connection

    def claim(self, cursor: sqlite3.Cursor) -> None:
        """Do nothing: the lock of the data directory keeps a second backend out."""

    def begin(self, cursor: sqlite3.Cursor) -> None:
        cursor.execute("BEGIN IMMEDIATE")  # a lock is waited for here, not half-way

    def was_committed(self, cursor: sqlite3.Cursor, transaction: str) -> bool:
        return False

    def is_lost(self, connection: sqlite3.Connection) -> bool:
        return False

    def explain(self, error: BaseException) -> KtrdrError | None:
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the upper bits say where it happened
        if code in _CORRUPT:
            return CorruptDataError(f"{self.name} is damaged or no database ({error}); restore it from a copy")
        if code in _CAUSES:
            return StorageError(
                f"the operations database {self.name} takes no reads or writes now ({error}): {_CAUSES[code]}; "
                "nothing was changed, try again"
            )
        return None
