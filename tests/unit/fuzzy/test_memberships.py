from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import FuzzySetConfig
from ktrdr_core.errors import InvalidStrategyError
from ktrdr_core.fuzzy.memberships import (
    BLOCK_ROWS,
    GROUP_COLUMNS,
    MEMBERSHIP_FUNCTIONS,
    triangular,
    write_memberships,
)

FINITE = st.floats(-1e9, 1e9, allow_subnormal=False)
POSITIVE = st.floats(1e-6, 1e6, allow_subnormal=False)
VALUES = st.lists(FINITE, min_size=1, max_size=20)


def slow_triangular(x: float, a: float, b: float, c: float) -> float:
    if x == b:
        return 1.0
    if x <= a or x >= c:
        return 0.0
    return (x - a) / (b - a) if x < b else (c - x) / (c - b)


def slow_trapezoidal(x: float, a: float, b: float, c: float, d: float) -> float:
    if b <= x <= c:
        return 1.0
    if x <= a or x >= d:
        return 0.0
    return (x - a) / (b - a) if x < b else (d - x) / (d - c)


def slow_left_shoulder(x: float, a: float, b: float) -> float:
    if x <= a:
        return 1.0
    return 0.0 if x >= b else (b - x) / (b - a)


def slow_right_shoulder(x: float, a: float, b: float) -> float:
    return 1.0 - slow_left_shoulder(x, a, b)


def slow_gaussian(x: float, mean: float, sigma: float) -> float:
    return math.exp(-((x - mean) ** 2) / (2 * sigma**2))


def slow_generalised_bell(x: float, width: float, slope: float, centre: float) -> float:
    try:
        return float(1 / (1 + abs((x - centre) / width) ** (2 * slope)))
    except OverflowError:
        return 0.0


def slow_sigmoid(x: float, slope: float, centre: float) -> float:
    z = slope * (x - centre)
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def ordered(count: int) -> st.SearchStrategy[list[float]]:
    return st.lists(FINITE, min_size=count, max_size=count).map(sorted).filter(lambda points: points[0] < points[-1])


NON_ZERO = st.one_of(POSITIVE, POSITIVE.map(lambda value: -value))
PARAMETERS: dict[str, st.SearchStrategy[list[float]]] = {
    "triangular": ordered(3),
    "trapezoidal": ordered(4),
    "left_shoulder": ordered(2),
    "right_shoulder": ordered(2),
    "gaussian": st.tuples(FINITE, POSITIVE).map(list),
    "generalised_bell": st.tuples(POSITIVE, st.floats(0.1, 20), FINITE).map(list),
    "sigmoid": st.tuples(NON_ZERO, FINITE).map(list),
}
SLOW: dict[str, Callable[..., float]] = {
    "triangular": slow_triangular,
    "trapezoidal": slow_trapezoidal,
    "left_shoulder": slow_left_shoulder,
    "right_shoulder": slow_right_shoulder,
    "gaussian": slow_gaussian,
    "generalised_bell": slow_generalised_bell,
    "sigmoid": slow_sigmoid,
}
KINDS = sorted(MEMBERSHIP_FUNCTIONS)
EXAMPLES: dict[str, tuple[float, ...]] = {
    "triangular": (0, 5, 10),
    "trapezoidal": (0, 2, 8, 10),
    "left_shoulder": (0, 10),
    "right_shoulder": (0, 10),
    "gaussian": (5, 2),
    "generalised_bell": (2, 3, 5),
    "sigmoid": (-2, 5),
}


def fuzzy_set(*parameters: float, kind: str = "triangular", **others: object) -> FuzzySetConfig:
    return FuzzySetConfig.model_validate({"type": kind, "parameters": list(parameters), **others})


def test_every_function_has_a_slow_one_here() -> None:
    assert set(SLOW) == set(PARAMETERS) == set(MEMBERSHIP_FUNCTIONS)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), values=VALUES)
def test_membership_is_the_one_of_the_book_and_stays_between_0_and_1(
    kind: str, data: st.DataObject, values: list[float]
) -> None:
    parameters = data.draw(PARAMETERS[kind])
    x = np.array(values + parameters)
    membership = MEMBERSHIP_FUNCTIONS[kind](x, parameters)
    assert ((membership >= 0) & (membership <= 1)).all()
    expected = [SLOW[kind](value, *parameters) for value in x.tolist()]
    np.testing.assert_allclose(membership, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["triangular", "trapezoidal", "gaussian", "generalised_bell"])
@given(data=st.data(), left=FINITE, right=FINITE)
def test_membership_falls_with_the_distance_on_either_side(
    kind: str, data: st.DataObject, left: float, right: float
) -> None:
    parameters = data.draw(PARAMETERS[kind])
    peak = {"triangular": 1, "trapezoidal": 1, "gaussian": 0, "generalised_bell": 2}[kind]
    nearer, farther = sorted((parameters[peak] - abs(left), parameters[peak] - abs(right)), reverse=True)
    at_nearer, at_farther = MEMBERSHIP_FUNCTIONS[kind](np.array([nearer, farther]), parameters)
    assert at_farther <= at_nearer


@given(points=ordered(2), values=VALUES)
def test_shoulders_are_mirror_images_that_add_to_1(points: list[float], values: list[float]) -> None:
    x = np.array(values)
    both = MEMBERSHIP_FUNCTIONS["left_shoulder"](x, points) + MEMBERSHIP_FUNCTIONS["right_shoulder"](x, points)
    np.testing.assert_allclose(both, 1.0, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "points", "x", "expected"),
    [
        ("triangular", (0, 5, 10), [-1, 0, 2.5, 5, 7.5, 10, 11], [0, 0, 0.5, 1, 0.5, 0, 0]),
        ("triangular", (0, 0, 10), [-1, 0, 5, 10], [0, 1, 0.5, 0]),
        ("triangular", (0, 10, 10), [0, 5, 10, 11], [0, 0.5, 1, 0]),
        ("trapezoidal", (0, 2, 6, 10), [-1, 1, 2, 4, 6, 8, 10], [0, 0.5, 1, 1, 1, 0.5, 0]),
        ("trapezoidal", (0, 0, 4, 4), [-1, 0, 2, 4, 5], [0, 1, 1, 1, 0]),
        ("left_shoulder", (2, 4), [-100, 2, 3, 4, 100], [1, 1, 0.5, 0, 0]),
        ("right_shoulder", (2, 4), [-100, 2, 3, 4, 100], [0, 0, 0.5, 1, 1]),
        ("generalised_bell", (2, 3, 5), [3, 5, 7], [0.5, 1, 0.5]),
        ("sigmoid", (2, 5), [-1e6, 5, 1e6], [0, 0.5, 1]),
        ("sigmoid", (-2, 5), [-1e6, 5, 1e6], [1, 0.5, 0]),
        ("gaussian", (5, 2), [5, 1e9], [1, 0]),
    ],
)
def test_membership_by_hand(kind: str, points: tuple[float, ...], x: list[float], expected: list[float]) -> None:
    assert MEMBERSHIP_FUNCTIONS[kind](np.array(x, dtype=np.float64), points).tolist() == expected


def test_gaussian_is_what_one_and_two_sigma_are() -> None:
    membership = MEMBERSHIP_FUNCTIONS["gaussian"](np.array([3.0, 7.0, 9.0]), (5, 2))
    np.testing.assert_allclose(membership, [math.exp(-0.5), math.exp(-0.5), math.exp(-2)])


@pytest.mark.parametrize("width", [1e-310, 1e-306, 1e-100])
def test_almost_vertical_ramp_is_a_step(width: float) -> None:
    membership = triangular(np.array([-1000.0, 0.0, 1.0, 2.0]), [0.0, width, 2.0])
    np.testing.assert_array_equal(membership, [0.0, 0.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        *EXAMPLES.items(),
        ("triangular", (0, 0, 10)),
        ("triangular", (0, 10, 10)),
        ("trapezoidal", (0, 0, 10, 10)),
    ],
)
def test_warm_up_stays_nan(kind: str, parameters: tuple[float, ...]) -> None:
    membership = MEMBERSHIP_FUNCTIONS[kind](np.array([np.nan, 5.0]), parameters)
    assert np.isnan(membership[0])
    assert not np.isnan(membership[1])


def test_columns_of_many_blocks_and_groups_are_those_of_the_functions() -> None:
    rng = np.random.default_rng(5)
    num_rows, kinds = 2 * BLOCK_ROWS + 17, (KINDS * GROUP_COLUMNS)[: GROUP_COLUMNS + 3]
    values = [rng.normal(5, 4, num_rows) for _ in kinds]
    values[0][:40] = np.nan
    wide = np.full((num_rows, len(kinds) + 2), -1, dtype=np.float32)
    sets = [fuzzy_set(*EXAMPLES[kind], kind=kind) for kind in kinds]
    write_memberships(list(zip(values, sets, strict=True)), wide[:, 1:-1])
    for column, kind in enumerate(kinds):
        expected = MEMBERSHIP_FUNCTIONS[kind](values[column], EXAMPLES[kind]).astype(np.float32)
        np.testing.assert_array_equal(wide[:, column + 1], expected)
    assert (wide[:, [0, -1]] == -1).all()


def test_quantile_set_that_is_not_fitted_is_refused() -> None:
    config = fuzzy_set(0.1, 0.5, 0.9, kind="quantile")
    with pytest.raises(InvalidStrategyError, match="quantile set has no values before it is fitted"):
        write_memberships([(np.ones(3), config)], np.empty((3, 1), dtype=np.float32))
