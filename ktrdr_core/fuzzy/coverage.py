"""Do the fuzzy sets of an indicator cover the values it takes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ktrdr_core.data.bars import FloatArray
from ktrdr_core.fuzzy.memberships import BLOCK_ROWS, find_membership_function
from ktrdr_core.fuzzy.timeframe_sets import NamedSet

# A value lies in a set from this membership on; the bells and sigmoids are never quite 0.
MIN_MEMBERSHIP = 0.01
# A model sees nothing of an indicator on rows that lie in none of its sets; beyond this share people are told.
MAX_UNCOVERED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class SetCoverage:
    """How the sets of an indicator's values lie on the training part.

    Attributes:
        values: Name of the values: `rsi_14`.
        timeframe: Bar length they are of.
        num_values: Values of the training part.
        num_uncovered: Of them, those whose membership is below MIN_MEMBERSHIP in every set.
        example: The first of these; None if there is none.
        inactive_sets: Names of the sets that no value of the training part lies in.
    """

    values: str
    timeframe: str
    num_values: int
    num_uncovered: int
    example: float | None
    inactive_sets: tuple[str, ...]

    @property
    def uncovered_share(self) -> float:
        return self.num_uncovered / self.num_values if self.num_values else 0.0

    def warnings(self) -> tuple[str, ...]:
        """Return what a person should know, as sentences; none if the sets fit the data."""
        place = f"{self.values} ({self.timeframe})"
        found = []
        if self.uncovered_share > MAX_UNCOVERED_SHARE:
            found.append(
                f"{place}: {100 * self.uncovered_share:.1f} % of the training part lies in none of its fuzzy sets, for "
                f"example {self.example:.6g}; the model cannot tell these values apart, so widen or add sets"
            )
        found += [
            f"{place}: no value of the training part lies in its fuzzy set {name}; move or remove it"
            for name in self.inactive_sets
        ]
        return tuple(found)


def measure_coverage(sample: FloatArray, sets: Sequence[NamedSet], timeframe: str) -> SetCoverage:
    """Return how sets lie on a sample.

    Args:
        sample: Values of the training part, shape (N,), float64, no NaN.
        sets: Every set of these values; at least one, fitted if it is of quantiles.
        timeframe: Bar length of the values.
    """
    functions = [(find_membership_function(own.config), own.config.parameters) for own in sets]
    is_active = [False] * len(sets)
    num_uncovered, example = 0, None
    for start in range(0, len(sample), BLOCK_ROWS):
        block = sample[start : start + BLOCK_ROWS]
        is_covered = np.zeros(len(block), dtype=np.bool_)
        for index, (membership, parameters) in enumerate(functions):
            is_inside = membership(block, parameters) >= MIN_MEMBERSHIP
            is_active[index] |= bool(is_inside.any())
            is_covered |= is_inside
        missed = len(block) - int(np.count_nonzero(is_covered))
        if missed and example is None:
            example = float(block[np.argmin(is_covered)])
        num_uncovered += missed
    inactive = tuple(own.name for own, active in zip(sets, is_active, strict=True) if not active)
    return SetCoverage(sets[0].values, timeframe, len(sample), num_uncovered, example, inactive if len(sample) else ())
