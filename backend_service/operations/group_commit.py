"""One writer thread over one connection: commands that arrive together are committed together.

Measured: a driver that hops between threads for every statement writes a tenth of what one hop for a group does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from ktrdr_core.errors import UnavailableError

T = TypeVar("T")
Command = Callable[[Connection], T]
_Pending = tuple[Command[Any], asyncio.Future[Any]]
_Outcome = tuple[Any, Exception | None]


class GroupCommitWriter:
    """Runs write commands in order of arrival; each caller returns once its command is committed.

    Commands may run twice (see `_commit`), so they must do nothing but SQL on the connection they are given.

    Args:
        engine: Its one connection that writes is opened, used and closed on the writer's thread.
        max_pending: Commands that may wait; further callers wait to hand theirs in.
        max_group: Commands in one transaction.
    """

    def __init__(self, engine: Engine, *, max_pending: int = 10_000, max_group: int = 512) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="operations-writer")
        self._max_group = max_group
        self._queue: asyncio.Queue[_Pending | None] = asyncio.Queue(max_pending)
        self._is_closed = False
        self._task = asyncio.create_task(self._run(), name="operations-writer")

    async def submit(self, command: Command[T]) -> T:
        """Run `command` in the next group and return its answer, or raise its error, once the group is committed."""
        if self._is_closed:
            raise UnavailableError("the operations database is closed; the service is stopping, try again later")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._queue.put((command, future))
        return await future

    async def close(self) -> None:
        """Commit what was handed in, then end the thread and close the connection."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._queue.put(None)
        await self._task
        self._thread.shutdown()
        self._engine.dispose()

    async def _run(self) -> None:
        is_open = True
        while is_open:
            group: list[_Pending] = []
            entry = await self._queue.get()
            while True:
                if entry is None:
                    is_open = False
                    break
                group.append(entry)
                if self._queue.empty() or len(group) == self._max_group:
                    break
                entry = self._queue.get_nowait()
            if group:
                await self._commit(group)

    async def _commit(self, group: list[_Pending]) -> None:
        commands = [command for command, _ in group]
        outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._write, commands)
        for (_, future), (answer, failure) in zip(group, outcomes, strict=True):
            if future.done():  # the caller was cancelled; its command is committed all the same
                continue
            if failure is None:
                future.set_result(answer)
            else:
                future.set_exception(failure)

    def _write(self, commands: list[Command[Any]]) -> list[_Outcome]:
        """Commit the group at once; if one command fails, run all again with a savepoint around each."""
        try:
            with self._engine.begin() as connection:
                return [(command(connection), None) for command in commands]
        except Exception:  # noqa: BLE001 - whatever one command raised belongs to its caller only
            try:
                return self._write_one_by_one(commands)
            except Exception as error:  # noqa: BLE001 - a failed commit is every caller's failure; the writer lives on
                return [(None, error)] * len(commands)

    def _write_one_by_one(self, commands: list[Command[Any]]) -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        with self._engine.begin() as connection:
            for command in commands:
                try:
                    with connection.begin_nested():
                        outcomes.append((command(connection), None))
                except Exception as error:  # noqa: BLE001 - handed to the caller it belongs to
                    outcomes.append((None, error))
        return outcomes
