"""Changes that are finished although who asked for them goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ktrdr_core.logging import get_logger

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
