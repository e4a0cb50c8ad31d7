from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import FuzzySetConfig
from ktrdr_core.data.bars import FloatArray
from ktrdr_core.errors import InvalidStrategyError
from ktrdr_core.fuzzy.quantiles import fit_quantile_set


def quantile_set(*levels: float, **others: Any) -> FuzzySetConfig:
    return FuzzySetConfig.model_validate({"type": "quantile", "parameters": list(levels), **others})


def fit(config: FuzzySetConfig, sample: FloatArray) -> FuzzySetConfig:
    return fit_quantile_set(config, sample, field="fuzzy_sets.rsi_14.low", timeframe="1h")


def slow_quantile(sample: list[float], level: float) -> float:
    """Type 7 of Hyndman and Fan: position (n - 1) p, counted from 0."""
    ordered = sorted(sample)
    position = (len(ordered) - 1) * level
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (quantile_set(0.1, 0.3, shoulder="left"), "left_shoulder"),
        (quantile_set(0.7, 0.9, shoulder="right"), "right_shoulder"),
        (quantile_set(0.0, 0.5, 1.0), "triangular"),
        (quantile_set(0.05, 0.25, 0.75, 0.95), "trapezoidal"),
    ],
)
def test_levels_become_the_quantiles_of_the_sample(config: FuzzySetConfig, kind: str) -> None:
    sample = np.random.default_rng(1).normal(50, 12, 501)
    fitted = fit(config, sample)
    assert fitted.type == kind
    expected = [slow_quantile(sample.tolist(), level) for level in config.parameters]
    np.testing.assert_allclose(fitted.parameters, expected, rtol=1e-12)


def test_set_with_points_is_left_alone() -> None:
    config = FuzzySetConfig(type="triangular", parameters=(0.0, 1.0, 2.0))
    assert fit(config, np.array([5.0])) is config


@pytest.mark.parametrize("sample", [[3.0], [1.0, 3.0, 3.0, 3.0, 3.0, 9.0], [3.0] * 50])
def test_quantiles_that_are_one_value_are_refused_with_the_way_out(sample: list[float]) -> None:
    with pytest.raises(
        InvalidStrategyError,
        match=r"fuzzy_sets\.rsi_14\.low: quantiles 0\.3, 0\.6 of the 1h training part are all 3, .* further apart",
    ) as caught:
        fit(quantile_set(0.3, 0.6, shoulder="left"), np.array(sample))
    assert caught.value.violations[0].field == "fuzzy_sets.rsi_14.low"


def test_empty_training_part_is_refused() -> None:
    with pytest.raises(InvalidStrategyError, match=r"has no 1h values in the training part to take quantiles 0\.1"):
        fit(quantile_set(0.1, 0.5, 0.9), np.empty(0))


@given(
    sample=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=40),
    levels=st.lists(st.floats(0, 1), min_size=3, max_size=4).map(sorted).filter(lambda levels: levels[0] < levels[-1]),
)
def test_quantiles_that_differ_make_a_valid_set(sample: list[float], levels: list[float]) -> None:
    points = [slow_quantile(sample, level) for level in (levels[0], levels[-1])]
    if points[1] - points[0] <= 1e-9 * max(abs(point) for point in sample):
        with contextlib.suppress(InvalidStrategyError):  # they are one value, but for rounding
            fit(quantile_set(*levels), np.array(sample))
        return
    fitted = fit(quantile_set(*levels), np.array(sample))
    assert list(fitted.parameters) == sorted(fitted.parameters)
    assert min(sample) <= fitted.parameters[0] < fitted.parameters[-1] <= max(sample)
