"""One cancel that reaches both the synchronous and the asynchronous world."""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol, runtime_checkable

from ktrdr_core.errors import CancellationError


@runtime_checkable
class CancellationToken(Protocol):
    """What a training loop asks whether it should go on."""

    def is_cancelled(self) -> bool:
        """Return whether to end; takes well under 1 ms."""

    def cancel(self, reason: str = "Operation cancelled") -> None:
        """Ask for the end; later calls keep the first reason."""

    async def wait_for_cancellation(self) -> None:
        """Return once cancelled."""

    @property
    def is_cancelled_requested(self) -> bool:
        """Same as `is_cancelled()`."""


class LocalCancellationToken:
    """A token for one process: threads check it, coroutines await it."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._lock = threading.Lock()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.reason: str | None = None

    def is_cancelled(self) -> bool:
        return self._flag.is_set()

    def cancel(self, reason: str = "Operation cancelled") -> None:
        with self._lock:
            if self._flag.is_set():
                return
            self.reason = reason
            self._flag.set()
            waiters = list(self._waiters)
        for loop, event in waiters:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    async def wait_for_cancellation(self) -> None:
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if self._flag.is_set():
                return
            self._waiters.append(entry)
        try:
            await entry[1].wait()
        finally:
            with self._lock:
                self._waiters.remove(entry)

    @property
    def is_cancelled_requested(self) -> bool:
        return self.is_cancelled()


def raise_if_cancelled(token: CancellationToken | None) -> None:
    """Raise CancellationError if `token` is cancelled; None is never cancelled."""
    if token is not None and token.is_cancelled():
        raise CancellationError(getattr(token, "reason", None) or "Operation cancelled")
