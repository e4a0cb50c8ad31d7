"""Fuzzy sets: how much a value belongs to "oversold"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import FuzzySetConfig
from ktrdr_core.data.bars import FloatArray
from ktrdr_core.errors import InvalidStrategyError

MembershipFunction = Callable[[FloatArray, Sequence[float]], FloatArray]

# A column of a block is 128 KiB as float64, so that every step but the last stays in the cache, and a group of them
# 2 MiB as float32. Measured: 3.1 ns a value; half the rows, or all columns in one group, cost 1.5x.
BLOCK_ROWS = 16_384
GROUP_COLUMNS = 32
_PADDING = 16
_SMALLEST_NORMAL = float(np.finfo(np.float64).tiny)


def triangular(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return the triangular membership of each value.

    Args:
        x: Values, shape (T,), float64; NaN stays NaN.
        parameters: a <= b <= c, a < c: 0 up to a, rising to 1 at b, falling to 0 from c on. With a = b the
            membership is 1 at b and 0 below it; with b = c likewise above it.

    Returns:
        Memberships in [0, 1], shape (T,), float64.

    Source: L. A. Zadeh, Fuzzy Sets, Information and Control 8, 1965; the shape is Jang's (1993).
    """
    a, b, c = parameters
    return trapezoidal(x, (a, b, b, c))


def trapezoidal(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return the trapezoidal membership of each value.

    Args:
        x: Values, shape (T,), float64; NaN stays NaN.
        parameters: a <= b <= c <= d, a < d: 0 up to a, rising to 1 at b, 1 up to c, falling to 0 from d on. With
            a = b the membership is 1 at a and 0 below it; with c = d it is 1 at d and 0 above it.

    Returns:
        Memberships in [0, 1], shape (T,), float64.

    Source: L. A. Zadeh, Fuzzy Sets, Information and Control 8, 1965; J.-S. R. Jang, C.-T. Sun and E. Mizutani,
        Neuro-Fuzzy and Soft Computing, 1997, section 2.4.
    """
    a, b, c, d = parameters
    membership = _rising(x, a, b)
    np.minimum(membership, _falling(x, c, d), out=membership)
    return np.clip(membership, 0.0, 1.0, out=membership)


def left_shoulder(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return the membership of each value in a set open to the left.

    Args:
        x: Values, shape (T,), float64; NaN stays NaN.
        parameters: a < b: 1 up to a, falling to 0 from b on.

    Returns:
        Memberships in [0, 1], shape (T,), float64.

    Source: L. A. Zadeh, The Concept of a Linguistic Variable, Information Sciences 8, 1975 (the L-function).
    """
    membership = _falling(x, *parameters)
    return np.clip(membership, 0.0, 1.0, out=membership)


def right_shoulder(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return the membership of each value in a set open to the right.

    Args:
        x: Values, shape (T,), float64; NaN stays NaN.
        parameters: a < b: 0 up to a, rising to 1 from b on.

    Returns:
        Memberships in [0, 1], shape (T,), float64.

    Source: L. A. Zadeh, The Concept of a Linguistic Variable, Information Sciences 8, 1975 (the Gamma-function).
    """
    membership = _rising(x, *parameters)
    return np.clip(membership, 0.0, 1.0, out=membership)


def gaussian(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return exp(-((x - mean) / sigma)^2 / 2) of each value.

    Args:
        x: Values, shape (T,), float64; NaN stays NaN.
        parameters: mean and sigma > 0.

    Returns:
        Memberships in [0, 1], shape (T,), float64; 1 at the mean, never quite 0 but for rounding.

    Source: J.-S. R. Jang, ANFIS: Adaptive-Network-Based Fuzzy Inference System, IEEE Trans. SMC 23, 1993.
    """
    mean, sigma = parameters
    with np.errstate(over="ignore"):  # far from the mean the square is infinite, and the membership 0
        distance = (x - mean) / sigma
        membership: FloatArray = np.exp(-0.5 * distance * distance)
    return membership


def generalised_bell(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return 1 / (1 + |(x - centre) / width|^(2 slope)) of each value.

    Args:
        x: Values, shape (T,), float64; NaN stays NaN.
        parameters: width > 0, slope > 0, centre.

    Returns:
        Memberships in [0, 1], shape (T,), float64; 1 at the centre, 1/2 at centre - width and centre + width.

    Source: J.-S. R. Jang, ANFIS: Adaptive-Network-Based Fuzzy Inference System, IEEE Trans. SMC 23, 1993.
    """
    width, slope, centre = parameters
    with np.errstate(over="ignore"):  # far from the centre the power is infinite, and the membership 0
        membership: FloatArray = 1.0 / (1.0 + np.abs((x - centre) / width) ** (2.0 * slope))
    return membership


def sigmoid(x: FloatArray, parameters: Sequence[float]) -> FloatArray:
    """Return 1 / (1 + exp(-slope (x - centre))) of each value.

    Args:
        x: Values, shape (T,), float64; NaN stays NaN.
        parameters: slope, not 0, falling where it is negative; centre.

    Returns:
        Memberships in [0, 1], shape (T,), float64; 1/2 at the centre.

    Source: J.-S. R. Jang, C.-T. Sun and E. Mizutani, Neuro-Fuzzy and Soft Computing, 1997, section 2.4.
    """
    slope, centre = parameters
    with np.errstate(over="ignore"):  # far on the low side the exponential is infinite, and the membership 0
        membership: FloatArray = 1.0 / (1.0 + np.exp(-slope * (x - centre)))
    return membership


def _rising(x: FloatArray, low: float, high: float) -> FloatArray:
    """Return a line through 0 at `low` and 1 at `high`, a step at `high` if they are one; not clipped."""
    if high == low:
        return _step(x, x >= high)
    return _ramp(x - low, high - low)


def _falling(x: FloatArray, high: float, low: float) -> FloatArray:
    """Return a line through 1 at `high` and 0 at `low`, a step at `high` if they are one; not clipped."""
    if high == low:
        return _step(x, x <= high)
    return _ramp(low - x, low - high)


def _ramp(distance: FloatArray, width: float) -> FloatArray:
    """Return distance / width, in the place of `distance`."""
    with np.errstate(over="ignore"):  # beside an almost vertical ramp the quotient is infinite, and clipped to 1
        if width > _SMALLEST_NORMAL:
            distance *= 1.0 / width  # a third quicker than to divide; the last bit may differ
        else:
            distance /= width
    return distance


def _step(x: FloatArray, is_inside: NDArray[np.bool_]) -> FloatArray:
    return np.where(np.isnan(x), np.nan, is_inside)


MEMBERSHIP_FUNCTIONS: Mapping[str, MembershipFunction] = {
    "triangular": triangular,
    "trapezoidal": trapezoidal,
    "left_shoulder": left_shoulder,
    "right_shoulder": right_shoulder,
    "gaussian": gaussian,
    "generalised_bell": generalised_bell,
    "sigmoid": sigmoid,
}


def find_membership_function(config: FuzzySetConfig) -> MembershipFunction:
    """Return the membership function of a fuzzy set.

    Raises:
        InvalidStrategyError: It is a `quantile` set, which has none before it is fitted.
    """
    if config.type not in MEMBERSHIP_FUNCTIONS:
        raise InvalidStrategyError(
            f"a {config.type} set has no values before it is fitted on a training part; fit it first, or give points",
            field="type",
        )
    return MEMBERSHIP_FUNCTIONS[config.type]


def write_memberships(sets: Sequence[tuple[FloatArray, FuzzySetConfig]], out: NDArray[np.float32]) -> None:
    """Write memberships side by side, block of rows by block of rows, computed in float64.

    Args:
        sets: Values, shape (T,), and the set of each column.
        out: Where they go, shape (T, len(sets)), float32; may be columns of a wider matrix.

    Raises:
        InvalidStrategyError: A `quantile` set is not fitted.
    """
    columns = [(values, find_membership_function(config), config.parameters) for values, config in sets]
    num_rows = len(out)
    # One row a column, so that only the last step, a transposition within the cache, walks across the matrix. The rows
    # are longer than a power of two, or one column of it would fall into the same few sets of the cache: 4x slower.
    block_GR = np.empty((min(len(columns), GROUP_COLUMNS), BLOCK_ROWS + _PADDING), dtype=np.float32)
    for start in range(0, num_rows, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, num_rows))
        size = rows.stop - rows.start
        for first in range(0, len(columns), GROUP_COLUMNS):
            group = columns[first : first + GROUP_COLUMNS]
            for index, (values, membership, parameters) in enumerate(group):
                block_GR[index, :size] = membership(values[rows], parameters)
            out[rows, first : first + len(group)] = block_GR[: len(group), :size].T
