"""What becomes of changes while the operations store takes no writes: they wait, and none is lost or shown early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ktrdr_core.errors import StorageError
from ktrdr_core.logging import get_logger

RETRY_S = 0.25
_log = get_logger(__name__)


class Patience:
    """Repeats writes that the store refuses with StorageError until it takes them, or the service stops."""

    def __init__(self) -> None:
        self._is_over = asyncio.Event()

    async def until_stored(self, write: Callable[[], Awaitable[None]], *, what: str) -> None:
        """Run `write` until it succeeds.

        Args:
            write: Must change nothing when it raises StorageError.
            what: What is changed, for the log.

        Raises:
            StorageError: The service stops; the change is not stored, and the next start goes on from what is.
        """
        num_refusals = 0
        while True:
            try:
                await write()
            except StorageError as error:
                if self._is_over.is_set():
                    raise
                if not num_refusals:
                    _log.error("A change of %s waits until it can be stored: %s", what, error.message)
                num_refusals += 1
            else:
                if num_refusals:
                    _log.info("The change of %s is stored, after %d refusals", what, num_refusals)
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await self._is_over.wait()

    def give_up(self) -> None:
        """Let waiting changes fail after one more try: the service stops."""
        self._is_over.set()
