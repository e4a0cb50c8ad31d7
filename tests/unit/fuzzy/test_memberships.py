from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import FuzzySetConfig
from ktrdr_core.errors import InvalidStrategyError, UnsupportedError
from ktrdr_core.fuzzy.memberships import compute_memberships, triangular

FINITE = st.floats(-1e9, 1e9, allow_subnormal=False)


def slow_triangular(x: float, a: float, b: float, c: float) -> float:
    if x == b:
        return 1.0
    if x <= a or x >= c:
        return 0.0
    return (x - a) / (b - a) if x < b else (c - x) / (c - b)


def fuzzy_set(*parameters: float, kind: str = "triangular") -> FuzzySetConfig:
    return FuzzySetConfig.model_validate({"type": kind, "parameters": list(parameters)})


@given(
    points=st.lists(FINITE, min_size=3, max_size=3).map(sorted).filter(lambda p: p[0] < p[2]),
    values=st.lists(FINITE, min_size=1, max_size=20),
)
def test_triangle_is_the_one_of_the_book_and_stays_between_0_and_1(points: list[float], values: list[float]) -> None:
    x = np.array(values + points)
    membership = triangular(x, points)
    assert ((membership >= 0) & (membership <= 1)).all()
    np.testing.assert_allclose(membership, [slow_triangular(value, *points) for value in x.tolist()], atol=1e-9)


@pytest.mark.parametrize(
    ("points", "x", "expected"),
    [
        ((0, 5, 10), [-1, 0, 2.5, 5, 7.5, 10, 11], [0, 0, 0.5, 1, 0.5, 0, 0]),
        ((0, 0, 10), [-1, 0, 5, 10], [0, 1, 0.5, 0]),
        ((0, 10, 10), [0, 5, 10, 11], [0, 0.5, 1, 0]),
    ],
)
def test_triangle_by_hand(points: tuple[float, ...], x: list[float], expected: list[float]) -> None:
    assert triangular(np.array(x, dtype=np.float64), points).tolist() == expected


def test_almost_vertical_ramp_is_a_step() -> None:
    membership = triangular(np.array([-1.0, 0.0, 1.0, 2.0]), [0.0, 1e-310, 2.0])
    np.testing.assert_array_equal(membership, [0.0, 0.0, 0.5, 0.0])


def test_warm_up_stays_nan() -> None:
    for points in ((0, 5, 10), (0, 0, 10), (0, 10, 10)):
        membership = triangular(np.array([np.nan, 5.0]), points)
        assert np.isnan(membership[0])
        assert not np.isnan(membership[1])


def test_columns_do_not_depend_on_the_order_in_the_file() -> None:
    values = {"rsi_14": np.array([10.0, 50.0]), "macd": np.array([0.0, 1.0])}
    sets = {"rsi_14": {"low": fuzzy_set(0, 10, 40), "high": fuzzy_set(60, 80, 100)}, "macd": {"up": fuzzy_set(0, 1, 2)}}
    turned = {key: dict(reversed(inner.items())) for key, inner in reversed(sets.items())}
    assert list(compute_memberships(values, sets)) == ["macd.up", "rsi_14.high", "rsi_14.low"]
    assert list(compute_memberships(values, turned)) == ["macd.up", "rsi_14.high", "rsi_14.low"]


def test_set_for_values_that_do_not_exist_is_refused() -> None:
    with pytest.raises(InvalidStrategyError, match=r"fuzzy_sets\.ema names no indicator; known: rsi"):
        compute_memberships({"rsi": np.ones(3)}, {"ema": {"low": fuzzy_set(0, 1, 2)}})


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("trapezoidal", (0, 1, 2, 3)), ("gaussian", (0, 1)), ("sigmoid", (0, 1)), ("bell", (1, 2, 3))],
)
def test_function_not_built_is_refused_by_name(kind: str, parameters: tuple[float, ...]) -> None:
    with pytest.raises(UnsupportedError, match=f"membership function '{kind}' is not built yet"):
        compute_memberships({"rsi": np.ones(3)}, {"rsi": {"low": fuzzy_set(*parameters, kind=kind)}})
