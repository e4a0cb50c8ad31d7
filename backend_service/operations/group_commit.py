"""One writer thread over one connection: commands that arrive together are committed together.

Measured: a driver that hops between threads for every statement writes a tenth of what one hop for a group does.
"""

from __future__ import annotations

import asyncio
import copy
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from backend_service.operations.database import Database
from ktrdr_core.errors import KtrdrError, UnavailableError

CommandT = TypeVar("CommandT", contravariant=True)
T = TypeVar("T")
Outcome = tuple[Any, Exception | None]
_Pending = tuple[Any, asyncio.Future[Any]]

DOUBT_S = 5.0
"""How long a commit that was never answered is asked after."""
_DOUBT_PAUSE_S = 0.1


class Runner(Protocol[CommandT]):
    """Does the SQL of commands. It may be asked twice for the same one, so it does nothing else."""

    def run(self, cursor: Any, commands: Sequence[CommandT]) -> list[Any]:
        """Run commands in order and return their answers; raise what the first that fails raises."""

    def forget(self) -> None:
        """Whatever was run may have been rolled back."""


class GroupCommitWriter(Generic[CommandT]):
    """Runs commands in order of arrival; each caller returns once its command is committed.

    A command that fails, fails alone. While the database takes no writes every caller gets a StorageError; the
    connection is made anew for the next command.

    Args:
        database: Its one connection that writes is opened, used and closed on the writer's thread.
        runner: Does the SQL.
        max_pending: Commands that may wait; further callers wait to hand theirs in.
        max_group: Commands in one transaction.
    """

    def __init__(
        self, database: Database, runner: Runner[CommandT], *, max_pending: int = 10_000, max_group: int = 512
    ) -> None:
        self._connection = _WriterConnection(database, runner)
        self._loop = asyncio.get_running_loop()
        self._max_pending = max_pending
        self._max_group = max_group
        self._pending: deque[_Pending] = deque()
        self._is_busy = False
        self._is_closed = False
        self._changed = asyncio.Event()  # set when the group in hand is done
        self._groups: queue.SimpleQueue[list[_Pending] | None] = queue.SimpleQueue()
        # A daemon: a program that forgets to close the store still ends, and a torn transaction is rolled back.
        self._thread = threading.Thread(target=self._serve, name="operations-writer", daemon=True)
        self._thread.start()

    async def submit(self, command: CommandT) -> Any:
        """Run `command` in the next group and return its answer, or raise its error, once the group is committed."""
        while len(self._pending) >= self._max_pending and not self._is_closed:
            await self._group_done()
        if self._is_closed:
            raise UnavailableError("the operations database is closed; the service is stopping, try again later")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending.append((command, future))
        if not self._is_busy:
            self._hand_over()
        return await future

    async def close(self) -> None:
        """Commit what was handed in, then end the thread and close the connection."""
        self._is_closed = True
        while self._is_busy:
            await self._group_done()
        self._groups.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _group_done(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _hand_over(self) -> None:
        group = [self._pending.popleft() for _ in range(min(len(self._pending), self._max_group))]
        self._is_busy = bool(group)
        if group:
            self._groups.put(group)

    def _settle(self, group: list[_Pending], outcomes: list[Outcome] | KtrdrError) -> None:
        if isinstance(outcomes, KtrdrError):
            # Who waited behind this group would wait as long again, for the same answer.
            group = [*group, *self._pending]
            self._pending.clear()
            outcomes = [(None, _copy_of(outcomes)) for _ in group]
        self._hand_over()
        for (_, future), (answer, failure) in zip(group, outcomes, strict=True):
            if future.done():  # the caller was cancelled; its command is committed all the same
                continue
            if failure is None:
                future.set_result(answer)
            else:
                future.set_exception(failure)
        self._changed.set()

    def _serve(self) -> None:
        """Write groups until None comes; runs on the writer's thread."""
        while (group := self._groups.get()) is not None:
            outcomes = self._connection.write([command for command, _ in group])
            try:
                self._loop.call_soon_threadsafe(self._settle, group, outcomes)
            except RuntimeError:  # the loop is closed: nobody waits for an answer any more
                break
        self._connection.close()


class _DatabaseError(Exception):
    """The database is at fault, not a command: the whole group failed, and nothing of it was changed."""

    def __init__(self, error: KtrdrError) -> None:
        super().__init__(str(error))
        self.error = error


class _WriterConnection(Generic[CommandT]):
    """The connection that writes: made when it is needed, and made anew after the database failed."""

    def __init__(self, database: Database, runner: Runner[CommandT]) -> None:
        self._database = database
        self._runner = runner
        self._connection: Any = None
        self._cursor: Any = None

    def write(self, commands: list[CommandT]) -> list[Outcome] | KtrdrError:
        """Commit the group at once; if one command fails, run all again with a savepoint around each.

        Returns:
            The answer or the error of each command; one error if the database is at fault.
        """
        try:
            try:
                return [(answer, None) for answer in self._transact(lambda cursor: self._runner.run(cursor, commands))]
            except _DatabaseError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever one command raised belongs to its caller only
                if len(commands) == 1:
                    return [(None, error)]
            return self._transact(lambda cursor: self._run_one_by_one(cursor, commands))
        except _DatabaseError as failure:
            return failure.error
        except Exception as error:  # noqa: BLE001 - a failed commit is every caller's failure; the writer lives on
            return [(None, error)] * len(commands)

    def close(self) -> None:
        """Close the connection, which rolls back what it has not committed."""
        connection, self._connection, self._cursor = self._connection, None, None
        self._runner.forget()
        if connection is not None:
            connection.close()

    def _transact(self, work: Callable[[Any], T]) -> T:
        """Run `work` in a transaction of its own.

        Raises:
            _DatabaseError: The database is at fault.
            Exception: What `work` raised; nothing was changed.
        """
        transaction = self._begin()
        answer: T
        is_done = False
        try:
            answer = work(self._cursor)
            is_done = True
            self._cursor.execute("COMMIT")
        except Exception as error:  # each driver has a tree of its own: `explain` tells whose fault it is
            failure = self._database.explain(error)
            if failure is None:
                self._roll_back()
                raise
            self.close()
            if is_done and transaction is not None and self._was_committed(transaction):
                return answer
            raise _DatabaseError(failure) from error
        return answer

    def _begin(self) -> str | None:
        is_new = self._connection is None
        try:
            if is_new:
                self._connection = self._database.connect()
                self._cursor = self._connection.cursor()
            return self._database.begin(self._cursor)
        except Exception as error:  # as in `_transact`: explained, or raised
            was_lost = not is_new and self._database.is_lost(self._connection)
            self.close()
            if was_lost:  # since the last group, perhaps hours ago: the server may be long back
                return self._begin()
            failure = error if isinstance(error, KtrdrError) else self._database.explain(error)
            if failure is None:
                raise
            raise _DatabaseError(failure) from error

    def _roll_back(self) -> None:
        self._runner.forget()
        try:
            self._cursor.execute("ROLLBACK")
        except Exception as error:  # a lost connection has rolled back by itself; anything else is raised
            self.close()
            if self._database.explain(error) is None:
                raise

    def _was_committed(self, transaction: str) -> bool:
        """Return whether a commit that was never answered took place: a caller must not be told that it did not."""
        deadline = time.monotonic() + DOUBT_S
        while True:
            try:
                self._connection = self._database.connect()
                self._cursor = self._connection.cursor()
                return self._database.was_committed(self._cursor, transaction)
            except Exception as error:  # the server is not back yet; anything else is raised
                self.close()
                if not isinstance(error, KtrdrError) and self._database.explain(error) is None:
                    raise
            if time.monotonic() > deadline:
                return False
            time.sleep(_DOUBT_PAUSE_S)

    def _run_one_by_one(self, cursor: Any, commands: list[CommandT]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for command in commands:
            cursor.execute("SAVEPOINT command")
            try:
                (answer,) = self._runner.run(cursor, [command])
            except Exception as error:  # what one command raised belongs to its caller; the database's fault to all
                if self._database.explain(error) is not None:
                    raise
                self._runner.forget()
                cursor.execute("ROLLBACK TO SAVEPOINT command")
                outcomes.append((None, error))  # handed to the caller it belongs to
            else:
                outcomes.append((answer, None))
            cursor.execute("RELEASE SAVEPOINT command")
        return outcomes


def _copy_of(error: KtrdrError) -> KtrdrError:
    """Return an error of its own for one of many callers: who raises one adds to its traceback."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    return copied
