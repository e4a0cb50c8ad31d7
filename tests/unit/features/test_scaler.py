from __future__ import annotations

import json

import numpy as np
import pytest

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.features.scaler import Scaler

X = np.random.default_rng(3).normal(5, 2, size=(200, 3))


def test_fitted_rows_have_zero_mean_and_unit_variance() -> None:
    scaled = Scaler.fit(X).transform(X)
    assert scaled.dtype == np.float32
    assert scaled.flags.c_contiguous
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-6)


def test_constant_feature_becomes_zero_not_nan() -> None:
    constant = np.full((50, 1), 0.1)
    assert np.abs(Scaler.fit(constant).transform(constant)).max() < 1e-12


def test_none_changes_nothing() -> None:
    np.testing.assert_array_equal(Scaler.fit(X, "none").transform(X), X.astype(np.float32))


def test_reads_back_equal_through_json() -> None:
    scaler = Scaler.fit(X)
    again = Scaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    assert again == scaler
    np.testing.assert_array_equal(again.transform(X), scaler.transform(X))


def test_other_number_of_features_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="X must have 3 features"):
        Scaler.fit(X).transform(X[:, :2])


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "robust", "mean": [0], "scale": [1]},
        {"kind": "standard", "mean": [0, 1], "scale": [1]},
        {"kind": "standard", "mean": [0], "scale": [0]},
    ],
)
def test_stored_scaler_that_is_wrong_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        Scaler.from_dict(raw)
