"""The SQLite file behind the index of a model store: opened, shared, and given up for a new one when it is damaged."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ktrdr_core.errors import UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 60.0
_PAUSE_S = 0.01
_SCHEMA_VERSION = 1
_NUM_TRIES = 3
_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}

_SCHEMA = """
CREATE TABLE directories (name TEXT PRIMARY KEY, inode TEXT NOT NULL, mtime_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE models (
    id INTEGER PRIMARY KEY,
    directory TEXT NOT NULL, entry TEXT NOT NULL, inode TEXT NOT NULL,
    problem TEXT NOT NULL, signature TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    is_kept_aside INTEGER NOT NULL, name TEXT NOT NULL, set_name TEXT NOT NULL, version INTEGER NOT NULL,
    model_id TEXT NOT NULL, strategy_name TEXT NOT NULL, training_id TEXT NOT NULL, attempt INTEGER NOT NULL,
    create_time TEXT NOT NULL, accuracy REAL NOT NULL, f1 REAL NOT NULL, negative_loss REAL NOT NULL,
    UNIQUE (directory, entry)
);
CREATE INDEX models_by_problem ON models (directory) WHERE problem <> '';
CREATE INDEX models_by_id ON models (model_id);
CREATE INDEX models_by_training ON models (training_id, attempt);
CREATE INDEX models_by_strategy ON models (strategy_name, create_time);
CREATE INDEX models_by_time ON models (is_kept_aside, create_time, version, name) WHERE problem = '';
CREATE INDEX models_by_name ON models (is_kept_aside, strategy_name, set_name, version, name) WHERE problem = '';
CREATE INDEX models_by_accuracy ON models (is_kept_aside, accuracy, create_time, version, name) WHERE problem = '';
CREATE INDEX models_by_f1 ON models (is_kept_aside, f1, create_time, version, name) WHERE problem = '';
CREATE INDEX models_by_loss ON models (is_kept_aside, negative_loss, create_time, version, name) WHERE problem = '';
CREATE INDEX models_by_size ON models (is_kept_aside, size_bytes, create_time, version, name) WHERE problem = '';
CREATE TABLE summaries (
    model INTEGER PRIMARY KEY REFERENCES models ON DELETE CASCADE, content TEXT NOT NULL
);
CREATE TABLE facts (
    kind TEXT NOT NULL, value TEXT NOT NULL, model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
    PRIMARY KEY (kind, value, model)
) WITHOUT ROWID;
CREATE INDEX facts_by_model ON facts (model);
CREATE TABLE files (
    sha256 TEXT NOT NULL, model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE, name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, PRIMARY KEY (sha256, model, name)
) WITHOUT ROWID;
CREATE INDEX files_by_model ON files (model);
CREATE TABLE aliases (
    directory TEXT NOT NULL, link TEXT NOT NULL, alias TEXT NOT NULL, entry TEXT NOT NULL,
    PRIMARY KEY (directory, link)
) WITHOUT ROWID;
CREATE INDEX aliases_by_entry ON aliases (directory, entry);
"""


class IndexDatabase:
    """One connection for all threads of this process; other processes have theirs.

    Nothing in it is more than a copy: a file that is damaged, of another version or deleted is begun anew, and where
    none can be written the copy is in memory.

    Args:
        path: The file; its directory is there once something is asked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._close: Callable[[], object] = lambda: None
        self._inode: int | None = None
        self._is_in_memory = False
        self.generation = 0
        """Grows whenever another database took the place of one; what was known of its content is void."""

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `work` returns; it is called again if the database had to be begun anew.

        Raises:
            UnavailableError: Other threads or processes kept it busy for WAIT_S.
        """
        if not self._lock.acquire(timeout=WAIT_S):
            raise UnavailableError(f"the index of {self._path.parent} is being built; try again in a minute")
        deadline = time.monotonic() + WAIT_S
        num_failures = 0
        try:
            while True:
                try:
                    return work(self._open())
                except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
                    raise  # a defect of this program
                except sqlite3.DatabaseError as error:
                    if _code_of(error) in _BUSY_CODES:
                        if time.monotonic() >= deadline:
                            raise UnavailableError(f"the index {self._path} is busy; try again") from error
                        # Who creates the file, or changes its journal's kind, makes others fail without a wait.
                        time.sleep(_PAUSE_S)
                        continue
                    if self._is_in_memory:
                        raise
                    num_failures += 1
                    self._give_up(error)
                    self._is_in_memory = num_failures == _NUM_TRIES
        finally:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.rollback()
            self._lock.release()

    def close(self) -> None:
        """Close the connection; the next call opens it again."""
        with self._lock:
            self._disconnect()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            if self._is_in_memory or self._inode == self._inode_on_disk():
                return self._connection
            self._disconnect()
        if self._is_in_memory:
            return self._connect(":memory:")
        return self._connect(str(self._path))

    def _connect(self, database: str) -> sqlite3.Connection:
        self.generation += 1
        connection = sqlite3.connect(database, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            with transaction(connection):
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                elif version != _SCHEMA_VERSION:
                    raise sqlite3.DatabaseError(f"it has version {version} instead of {_SCHEMA_VERSION}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._close = weakref.finalize(self, connection.close)
        self._inode = self._inode_on_disk()
        return connection

    def _give_up(self, error: sqlite3.DatabaseError) -> None:
        """Leave the database for the next try to open a new one, without its files if they are damaged."""
        is_ours = self._connection is None or self._inode == self._inode_on_disk()
        self._disconnect()
        logger.warning("the index %s cannot be used (%s: %s)", self._path, type(error).__name__, error)
        if is_ours and _code_of(error) in _DAMAGE_CODES:
            try:
                self._remove_files()
            except OSError as problem:
                logger.warning("its files cannot be removed: %s", problem)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._close()
        self._connection = None

    def _inode_on_disk(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None

    def _remove_files(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _code_of(error: sqlite3.DatabaseError) -> int:
    """Return SQLite's primary error code; errors of our own are damage."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
