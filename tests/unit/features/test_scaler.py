from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.features.scaler import BLOCK_VALUES, SCALER_KINDS, Scaler, ScalerKind

X = np.random.default_rng(3).normal(5, 2, size=(200, 3)).astype(np.float32)
FITTED_KINDS: tuple[ScalerKind, ...] = ("standard", "robust", "min_max")


def slow_quantile(values: list[float], level: float) -> float:
    ordered = sorted(values)
    position = (len(ordered) - 1) * level
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def slow_fit(values: list[float], kind: ScalerKind) -> tuple[float, float]:
    if kind == "standard":
        return statistics.fmean(values), statistics.pstdev(values)
    if kind == "robust":
        return statistics.median(values), slow_quantile(values, 0.75) - slow_quantile(values, 0.25)
    return min(values), max(values) - min(values)


@pytest.mark.parametrize("kind", FITTED_KINDS)
@pytest.mark.parametrize("rows", [None, np.array([3, 4, 5, 9, 77, 140])])
def test_fitted_values_are_those_of_the_definition(kind: ScalerKind, rows: NDArray[np.int64] | None) -> None:
    scaler = Scaler.fit(X, kind, rows=rows)
    used = X if rows is None else X[rows]
    for column in range(3):
        centre, scale = slow_fit(used[:, column].astype(float).tolist(), kind)
        assert scaler.centre[column] == pytest.approx(centre, rel=1e-12)
        assert scaler.scale[column] == pytest.approx(scale, rel=1e-12)
    expected = (X.astype(np.float64) - scaler.centre) / scaler.scale
    np.testing.assert_array_equal(scaler.transform(X), expected.astype(np.float32))


def test_fitted_rows_have_zero_mean_and_unit_variance() -> None:
    scaled = Scaler.fit(X).transform(X)
    assert scaled.dtype == np.float32
    assert scaled.flags.c_contiguous
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-6)


def test_min_max_puts_the_fitted_rows_between_0_and_1() -> None:
    scaled = Scaler.fit(X, "min_max").transform(X)
    assert scaled.min(axis=0).tolist() == [0, 0, 0]
    assert scaled.max(axis=0).tolist() == [1, 1, 1]


def test_outlier_moves_the_standard_scaler_and_not_the_robust_one() -> None:
    with_outlier = X.copy()
    with_outlier[0] = 1e6
    assert (Scaler.fit(with_outlier).scale > 1e4).all()
    np.testing.assert_allclose(Scaler.fit(with_outlier, "robust").scale, Scaler.fit(X, "robust").scale, rtol=0.05)


def test_many_blocks_are_fitted_and_scaled_as_one() -> None:
    large = np.random.default_rng(4).normal(1e4, 1, size=(BLOCK_VALUES + 5, 2)).astype(np.float32)
    scaler = Scaler.fit(large)
    np.testing.assert_allclose(scaler.centre, large.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.scale, large.astype(np.float64).std(axis=0), rtol=1e-9)
    scaled = scaler.transform(large)
    np.testing.assert_array_equal(scaled[-7:], scaler.transform(large[-7:]))


@pytest.mark.parametrize("kind", SCALER_KINDS)
def test_result_may_take_the_place_of_the_rows(kind: ScalerKind) -> None:
    scaler, own = Scaler.fit(X, kind), X.copy()
    assert scaler.transform(own, out=own) is own
    np.testing.assert_array_equal(own, scaler.transform(X))


@pytest.mark.parametrize("kind", FITTED_KINDS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-12])
def test_constant_feature_becomes_zero_not_nan(kind: ScalerKind, value: float) -> None:
    constant = np.full((50, 1), value, dtype=np.float32)
    scaler = Scaler.fit(constant, kind)
    assert scaler.scale.tolist() == [1.0]
    assert np.abs(scaler.transform(constant)).max() == 0


def test_small_feature_is_not_taken_for_a_constant() -> None:
    small = (1e-7 * X).astype(np.float32)
    np.testing.assert_allclose(Scaler.fit(small).transform(small), Scaler.fit(X).transform(X), atol=1e-4)


def test_set_that_is_rarely_active_keeps_its_scale_under_robust() -> None:
    rare = np.zeros((100, 1), dtype=np.float32)
    rare[:10] = 0.8
    scaler = Scaler.fit(rare, "robust")
    assert (scaler.centre.tolist(), scaler.scale.tolist()) == ([0.0], [1.0])


@pytest.mark.parametrize("kind", FITTED_KINDS)
def test_identity_columns_are_left_as_they_are(kind: ScalerKind) -> None:
    one_hot = np.concatenate([X, np.eye(2, dtype=np.float32)[np.arange(200) % 2]], axis=1)
    scaled = Scaler.fit(one_hot, kind, identity=[3, 4]).transform(one_hot)
    np.testing.assert_array_equal(scaled[:, 3:], one_hot[:, 3:])
    np.testing.assert_array_equal(scaled[:, :3], Scaler.fit(X, kind).transform(X))


def test_none_changes_nothing() -> None:
    np.testing.assert_array_equal(Scaler.fit(X, "none").transform(X), X)


def test_warm_up_stays_nan() -> None:
    with_warm_up = X.copy()
    with_warm_up[:2] = np.nan
    scaler = Scaler.fit(with_warm_up, rows=np.arange(2, 200))
    scaled = scaler.transform(with_warm_up)
    assert np.isnan(scaled[:2]).all()
    assert not np.isnan(scaled[2:]).any()


@pytest.mark.parametrize("kind", SCALER_KINDS)
@given(
    rows=st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-(2.0**-20), 2.0**-20, width=32)), min_size=1, max_size=20
    )
)
def test_reads_back_equal_through_json(kind: ScalerKind, rows: list[tuple[float, float]]) -> None:
    matrix = np.array(rows, dtype=np.float32)
    scaler = Scaler.fit(matrix, kind)
    again = Scaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    assert again == scaler
    assert again.centre.tobytes() == scaler.centre.tobytes()
    assert again.scale.tobytes() == scaler.scale.tobytes()
    scaled = scaler.transform(matrix)
    assert np.isfinite(scaled).all()
    np.testing.assert_array_equal(again.transform(matrix), scaled)


def test_other_number_of_features_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="X must have 3 features"):
        Scaler.fit(X).transform(X[:, :2])


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "unheard_of", "centre": [0], "scale": [1]},
        {"kind": "standard", "centre": [0, 1], "scale": [1]},
        {"kind": "standard", "centre": [0], "scale": [0]},
        {"kind": "standard", "centre": [0], "scale": [float("inf")]},
        {"kind": "standard", "centre": [float("nan")], "scale": [1]},
        {"kind": "standard", "centre": "zero", "scale": [1]},
        {"kind": "standard", "scale": [1]},
        {},
    ],
)
def test_stored_scaler_that_is_wrong_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Scaler.from_dict(raw)
