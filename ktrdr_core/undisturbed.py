"""What is finished although who asked for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from ktrdr_core.logging import get_logger

P = ParamSpec("P")
T = TypeVar("T")
_log = get_logger(__name__)


def undisturbed(change: Coroutine[Any, Any, T], owner: set[asyncio.Task[Any]]) -> asyncio.Future[T]:
    """Start `change` and return its outcome as a future; cancelling that does not disturb the change.

    A failure that nobody waits for any more is logged: asyncio.shield alone would leave it to the garbage collector.

    Args:
        change: What is to be finished.
        owner: Holds the task until it has ended.
    """
    task = asyncio.get_running_loop().create_task(change)
    owner.add(task)
    waiting = asyncio.shield(task)

    def note_end(ended: asyncio.Task[T]) -> None:
        owner.discard(ended)
        if not ended.cancelled() and (error := ended.exception()) is not None and waiting.cancelled():
            _log.info("A change whose caller has gone ended with %s: %s", type(error).__name__, error)

    task.add_done_callback(note_end)
    return waiting


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `asyncio.to_thread`, but a caller that is cancelled waits for the thread: what it does next touches the same
    file."""
    future = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.gather(future, return_exceptions=True)
        raise
