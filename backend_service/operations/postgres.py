"""PostgreSQL: an advisory lock on the writer's own connection keeps a second backend out."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import URL, create_engine

from backend_service.operations.database import NUM_READERS
from ktrdr_core.errors import IllegalStateError, KtrdrError, StorageError, UnsupportedError

LOCK_KEY = 0x6B74726472  # "ktrdr"; such locks are per database
LOCK_PATIENCE_S = 2  # the server needs a moment to see that a killed backend is gone
CONNECT_TIMEOUT_S = 5
WRITER_KEY = "store.writer"
_KEEPALIVES = {"idle": 5, "interval": 2, "count": 3}  # a vanished peer is noticed in some ten seconds, not two hours


class PostgresDatabase:
    """A `Database` on a server.

    The session that writes is the session that holds the lock. So nothing can be written after the lock was lost, and
    who gets it back can see, in `config`, whether another backend wrote in between.
    """

    mark = "%s"

    def __init__(self, url: URL, *, busy_timeout_s: float) -> None:
        try:
            import psycopg
        except ImportError:
            raise UnsupportedError(
                "PostgreSQL needs its driver, which is not installed; pip install ktrdr[postgres]"
            ) from None
        self._psycopg = psycopg
        self._token: str | None = None
        self.name = URL.create("postgresql", url.username, None, url.host, url.port, url.database).render_as_string()
        url = url.set(drivername="postgresql+psycopg")
        _, given = url.get_dialect()().create_connect_args(url)
        timeout_ms = max(1, round(busy_timeout_s * 1000))
        settings = {"statement_timeout": timeout_ms, "lock_timeout": timeout_ms}
        settings |= {f"tcp_keepalives_{name}": value for name, value in _KEEPALIVES.items()}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._arguments: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "ktrdr",
            "tcp_user_timeout": timeout_ms,
            **{f"keepalives_{name}": value for name, value in _KEEPALIVES.items()},
            **given,
            "options": f"{options} {given.get('options', '')}".strip(),
        }
        self.engine = create_engine(
            url, creator=self._connect, pool_size=NUM_READERS, max_overflow=0, pool_timeout=busy_timeout_s
        )

    def connect(self) -> Any:
        connection = self._connect()
        try:
            connection.autocommit = True
            self._lock(connection)
        except BaseException:  # whatever it is, the connection is nobody's
            connection.close()
            raise
        return connection

    def claim(self, cursor: Any) -> None:
        token = str(uuid4())
        cursor.execute(
            "INSERT INTO config (key, value) VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (WRITER_KEY, token),
        )
        self._token = token

    def begin(self, cursor: Any) -> str | None:
        # Both at once: one trip to the server. As such it cannot be a prepared statement.
        cursor.execute("BEGIN; SELECT pg_current_xact_id()::text", prepare=False)
        cursor.nextset()
        transaction: str = cursor.fetchone()[0]
        return transaction

    def was_committed(self, cursor: Any, transaction: str) -> bool:
        # The lock is ours again, so the session that had it, and its transaction, have ended.
        cursor.execute("SELECT pg_xact_status(%s::xid8)", (transaction,))
        return bool(cursor.fetchone()[0] == "committed")

    def is_lost(self, connection: Any) -> bool:
        return bool(connection.closed)

    def explain(self, error: BaseException) -> KtrdrError | None:
        if not isinstance(error, (self._psycopg.OperationalError, self._psycopg.InterfaceError)):
            return None
        cause = str(error).strip().partition("\n")[0]
        return StorageError(
            f"the operations database {self.name} takes no reads or writes now ({cause}); "
            "see whether its server runs and has space, then try again"
        )

    def _connect(self) -> Any:
        return self._psycopg.connect(**self._arguments)

    def _lock(self, connection: Any) -> None:
        """Take the lock, and make sure that nobody had it since it was ours."""
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE_S}s'")
                connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        except self._psycopg.errors.LockNotAvailable:
            refusal = IllegalStateError if self._token is None else StorageError
            raise refusal(
                f"another backend uses the operations database {self.name}; stop it, or give this one its own database"
            ) from None
        if self._token is None:
            return
        found = connection.execute("SELECT value FROM config WHERE key = %s", (WRITER_KEY,)).fetchone()
        if found is None or found[0] != self._token:
            raise StorageError(
                f"another backend has written to the operations database {self.name} while this one was cut off from "
                "it; restart this one"
            )
