"""How many batches pass between two progress updates."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_STRIDE = 10
TOO_OFTEN_S = 0.150
TOO_SELDOM_S = 0.450


class BatchStride:
    """Adapts the number of batches between updates so that they come about 300 ms apart.

    Counting comes first and the clock is read only at an update, so a batch that reports nothing costs one comparison.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = clock()
        self._batches = 0
        self.stride = FIRST_STRIDE

    def count_batch(self) -> bool:
        """Count one batch; return whether an update is due."""
        self._batches += 1
        return self._batches >= self.stride

    def mark_update(self) -> float:
        """Adapt the stride to the time since the last update; return the mean seconds of a batch since then."""
        now_s = self._clock()
        elapsed_s, batches = now_s - self._last_s, max(self._batches, 1)
        if elapsed_s < TOO_OFTEN_S:
            self.stride *= 2
        elif elapsed_s > TOO_SELDOM_S:
            self.stride = max(1, self.stride // 2)
        self._last_s, self._batches = now_s, 0
        return elapsed_s / batches
