"""The port between the operations store and one SQL database, and which database a URL means."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from ktrdr_core.errors import InvalidInputError, KtrdrError

BUSY_TIMEOUT_S = 10.0
NUM_READERS = 4


class Database(Protocol):
    """How to connect to a database, and what its errors mean.

    Attributes:
        name: What to call it in messages and logs; never has a password.
        mark: Stands for a parameter in the SQL of its driver.
        engine: Connections for readers, at most NUM_READERS at once, and for the schema.
    """

    name: str
    mark: str
    engine: Engine

    def connect(self) -> Any:
        """Return a connection of the driver's own for the one writer, without a transaction.

        Raises:
            IllegalStateError: Another writer has the database.
            StorageError: The same, or it had the database in between, after `claim`.
        """

    def claim(self, cursor: Any) -> None:
        """Write into the database that this writer has it; called once, when its tables are there."""

    def begin(self, cursor: Any) -> str | None:
        """Begin a transaction that writes; return what `was_committed` asks for, None where no commit is in doubt."""

    def was_committed(self, cursor: Any, transaction: str) -> bool:
        """Return whether a transaction was committed although the connection was lost before it said so."""

    def is_lost(self, connection: Any) -> bool:
        """Return whether a connection that failed is of no use any more."""

    def explain(self, error: BaseException) -> KtrdrError | None:
        """Return what to raise for an error of the driver that is the database's fault; None if it is the caller's."""


def open_database(url_or_path: str | Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
    """Return the database that a path (SQLite) or a URL means; nothing is connected yet.

    Args:
        url_or_path: A path, `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        busy_timeout_s: How long a statement waits for a lock of somebody else, or for its answer.

    Raises:
        InvalidInputError: It is no such URL.
        UnsupportedError: The driver of PostgreSQL is not installed.
    """
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return _sqlite(Path(url_or_path), busy_timeout_s)
    url = _parse(url_or_path)
    if url.drivername == "sqlite" and url.database and url.database != ":memory:":
        return _sqlite(Path(url.database), busy_timeout_s)
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        from backend_service.operations.postgres import PostgresDatabase  # its driver may not be installed

        return PostgresDatabase(url, busy_timeout_s=busy_timeout_s)
    raise _not_understood()


def _sqlite(path: Path, busy_timeout_s: float) -> Database:
    from backend_service.operations.sqlite import SqliteDatabase

    return SqliteDatabase(path, busy_timeout_s=busy_timeout_s)


def _parse(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        raise _not_understood() from None  # its message may have a piece of the password


def _not_understood() -> InvalidInputError:
    return InvalidInputError(
        "the database URL is not understood; give sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
        "with %-escapes in a password that has other characters than letters and digits",
        field="database_url",
    )
