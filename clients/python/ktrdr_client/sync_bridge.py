"""Async code on an event loop of its own thread: the one bridge between the two worlds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
AnyAsyncClient = TypeVar("AnyAsyncClient", bound="_Closable")


class _Closable(Protocol):
    async def close(self) -> None: ...


class Bridge(Generic[AnyAsyncClient]):
    """An async client on the event loop of a thread of its own; safe to use from several threads.

    Args:
        build: Makes the client; called on that loop.
    """

    def __init__(self, build: Callable[[], AnyAsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ktrdr-client", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._is_closed = False

        async def build_on_loop() -> AnyAsyncClient:
            return build()

        try:
            self.client: AnyAsyncClient = self.run(build_on_loop())
        except BaseException:
            self._end_loop()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine of the client returns; interrupted, it is cancelled.

        Raises:
            RuntimeError: The client is closed.
        """
        if self._is_closed:
            work.close()
            raise RuntimeError("the client is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an async iterator of the client yields; it is closed when the caller stops."""

        async def take() -> list[T]:
            # A list, because StopAsyncIteration cannot leave a coroutine.
            return [item] if (item := await anext(items, _END)) is not _END else []

        async def end() -> None:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

        try:
            while taken := self.run(take()):
                yield taken[0]
        finally:
            if not self._is_closed:
                self.run(end())

    def close(self) -> None:
        """Close the client and end the thread; a second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            try:
                self.run(self.client.close())
            finally:
                self._is_closed = True
                self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_END: Any = object()
