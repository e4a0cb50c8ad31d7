"""When an upload that broke is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ktrdr_core.errors import KtrdrError, WriteConflictError

SOON_S = 0.25
LINGER_S = 60.0


class UploadRetries:
    """Waits longer after each try in a row that got nowhere.

    Over a network that drops every few seconds each try gets on, which is no failure in a row. And the next try may
    meet our own broken stream, which holds the upload on the other side until its keepalive ends it.

    Args:
        delays_s: Waits; the last one repeats.
        is_resumed: A stream of an earlier process may still be open on the other side.
        clock: Seconds that never go back.

    Attributes:
        failures: Tries in a row that got nowhere.
    """

    def __init__(
        self, delays_s: Sequence[float], *, is_resumed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._delays_s = delays_s
        self._clock = clock
        self._broken_at = clock() if is_resumed else None
        self.failures = 0

    def is_own_stream(self, error: KtrdrError) -> bool:
        """Return whether a refusal may come from our own broken stream, so that waiting helps."""
        is_recent = self._broken_at is not None and self._clock() - self._broken_at <= LINGER_S
        return isinstance(error, WriteConflictError) and is_recent

    def delay_after(self, error: KtrdrError, *, has_moved: bool) -> float:
        """Note a try that broke and return how long to wait.

        Args:
            error: What it broke by.
            has_moved: It found more on the other side than any try before.
        """
        if self.is_own_stream(error):
            return min(SOON_S, self._delays_s[0])
        self._broken_at = self._clock()
        if has_moved:
            self.failures = 1
            return min(SOON_S, self._delays_s[0])
        self.failures += 1
        return self._delays_s[min(self.failures, len(self._delays_s)) - 1]
