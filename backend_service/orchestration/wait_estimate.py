"""How long a waiting training has to wait, judged by how long the last ones ran."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from statistics import median

NUM_KEPT = 50
NUM_ENOUGH = 3


class WaitEstimate:
    """Durations of the last runs, and what they say of the next ones."""

    def __init__(self) -> None:
        self._runs: deque[tuple[Hashable, float]] = deque(maxlen=NUM_KEPT)
        self._medians: dict[Hashable, float | None] = {}

    def record(self, needs: Hashable, duration_s: float) -> None:
        """Take notice of a run that has ended."""
        self._runs.append((needs, duration_s))
        self._medians.clear()

    def wait_s(self, position: int, needs: Hashable, *, num_slots: int, num_busy: int) -> float | None:
        """Return the expected wait in seconds; None while fewer than NUM_ENOUGH runs are known, or without a slot.

        Runs are taken to last the median of those with equal needs, or of all if too few have, and those under way to
        be anywhere in their course: of N that end evenly spread over a duration, the k-th ends after k / (N + 1) of it.
        So each slot comes free once in every duration, and a round of them serves as many positions.

        Args:
            position: Place among those that compete for the slots, from 1.
            needs: What it needs of a place.
            num_slots: Slots it may get.
            num_busy: How many of them are taken.
        """
        duration_s = self._typical_s(needs)
        if duration_s is None or num_slots < 1:
            return None
        num_taken = min(num_busy, num_slots)
        num_free = num_slots - num_taken
        num_rounds, turn = divmod(position - 1, num_slots)
        share = 0.0 if turn < num_free else (turn - num_free + 1) / (num_taken + 1)
        return duration_s * (num_rounds + share)

    def _typical_s(self, needs: Hashable) -> float | None:
        if needs not in self._medians:
            equal = [duration_s for each, duration_s in self._runs if each == needs]
            durations = equal if len(equal) >= NUM_ENOUGH else [duration_s for _, duration_s in self._runs]
            self._medians[needs] = median(durations) if len(durations) >= NUM_ENOUGH else None
        return self._medians[needs]
