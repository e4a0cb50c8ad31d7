"""Fuzzy sets: how much a value belongs to "oversold"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ktrdr_core.config.strategy import FuzzySetConfig
from ktrdr_core.data.bars import FloatArray
from ktrdr_core.errors import InvalidStrategyError, UnsupportedError

MembershipFunction = Callable[[FloatArray, Sequence[float]], FloatArray]


def triangular(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return the triangular membership of each value.

    Args:
        x: Values, shape (T,); NaN stays NaN.
        parameters: a <= b <= c, a < c: 0 up to a, rising to 1 at b, falling to 0 from c on. With a = b the
            membership is 1 at b and 0 below it; with b = c likewise above it.

    Returns:
        Memberships in [0, 1], shape (T,), float64.

    Source: L. A. Zadeh, Fuzzy Sets, Information and Control 8, 1965.
    """
    a, b, c = parameters
    with np.errstate(over="ignore"):  # beside an almost vertical ramp the quotient is infinite, and is clipped to 1
        rising = (x - a) / (b - a) if b > a else np.where(x >= b, np.inf, 0.0)
        # At least one of the two is a ramp, and carries a NaN on.
        falling = (c - x) / (c - b) if c > b else np.where(x <= b, np.inf, 0.0)
    membership: FloatArray = np.clip(np.minimum(rising, falling), 0.0, 1.0)
    return membership


MEMBERSHIP_FUNCTIONS: Mapping[str, MembershipFunction] = {"triangular": triangular}


def find_membership_function(name: str) -> MembershipFunction:
    """Return the membership function of a type of fuzzy set.

    Raises:
        UnsupportedError: This version does not compute it.
    """
    if name not in MEMBERSHIP_FUNCTIONS:
        raise UnsupportedError(
            f"membership function {name!r} is not built yet; this version computes {', '.join(MEMBERSHIP_FUNCTIONS)}",
            field="type",
        )
    return MEMBERSHIP_FUNCTIONS[name]


def compute_memberships(
    values: Mapping[str, FloatArray], fuzzy_sets: Mapping[str, Mapping[str, FuzzySetConfig]]
) -> dict[str, FloatArray]:
    """Return the memberships of every value in each of its fuzzy sets.

    Args:
        values: Indicator values by name, shape (T,) each.
        fuzzy_sets: Fuzzy sets by the name of the values, then by their own name.

    Returns:
        `values.set` to memberships in [0, 1], shape (T,), float64, NaN where the value is. In alphabetical order,
        so that the columns of a model do not depend on the order of keys in a file.

    Raises:
        InvalidStrategyError: Fuzzy sets name values that do not exist.
        UnsupportedError: A membership function is not built yet.
    """
    memberships: dict[str, FloatArray] = {}
    for name in sorted(fuzzy_sets):
        if name not in values:
            raise InvalidStrategyError(
                f"fuzzy_sets.{name} names no indicator; known: {', '.join(values)}", field=f"fuzzy_sets.{name}"
            )
        for set_name, config in sorted(fuzzy_sets[name].items()):
            memberships[f"{name}.{set_name}"] = find_membership_function(config.type)(values[name], config.parameters)
    return memberships
