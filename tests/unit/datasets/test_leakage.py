from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_core.config.strategy import LabelsConfig, StrategyConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.datasets.leakage import check_truncation
from ktrdr_core.datasets.series_features import compute_features
from ktrdr_core.errors import LeakageError
from ktrdr_core.features.engineer import FeatureMatrix
from ktrdr_core.labels.registry import Labels, generate_labels
from tests.kit.builders import make_bars, strategy

BARS = make_bars(400)
CONFIG = strategy(**{"model.features.include_price_context": True})


def with_column(name: str, leak: object) -> object:
    """Return a feature builder whose first column is `leak(bars)`."""

    def build(bars: Bars, config: StrategyConfig) -> FeatureMatrix:
        features = compute_features(bars, config)
        X = features.X.copy()
        X[:, 0] = leak(bars)  # type: ignore[operator]
        return FeatureMatrix(X, (name, *features.names[1:]), features.warm_up_bars)

    return build


def test_features_of_this_version_do_not_see_the_future() -> None:
    report = check_truncation(BARS, CONFIG, seed=1)
    assert len(report.cut_bars) >= 5
    assert report.num_features == len(compute_features(BARS, CONFIG).names)
    assert report.horizon_bars == 10
    assert report.to_dict()["passed"] is True


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("next_close", lambda bars: np.append(bars.close[1:], bars.close[-1])),
        ("centred_mean", lambda bars: np.convolve(bars.close, np.ones(3) / 3, mode="same")),
        ("share_of_the_highest_close", lambda bars: bars.close / bars.close.max()),
        ("z_score_of_the_whole_series", lambda bars: (bars.close - bars.close.mean()) / bars.close.std()),
        ("reversed_sum", lambda bars: np.cumsum(bars.volume[::-1])[::-1]),
    ],
)
def test_feature_that_sees_the_future_is_named(name: str, leak: object) -> None:
    with pytest.raises(LeakageError, match=f"feature {name} of bar .* it sees the future") as caught:
        check_truncation(BARS, CONFIG, seed=1, build=with_column(name, leak))  # type: ignore[arg-type]
    assert caught.value.metadata["feature"] == name


def test_label_that_looks_further_than_it_declares_is_refused() -> None:
    def labeler(bars: Bars, config: LabelsConfig) -> Labels:
        return replace(generate_labels(bars, config), horizon_bars=config.label_lookahead - 3)

    with pytest.raises(LeakageError, match="looks further ahead than its horizon of 7 bars"):
        check_truncation(BARS, CONFIG, seed=1, labeler=labeler)


@settings(max_examples=10)
@given(kept=st.integers(60, 399), seed=st.integers(0, 2**32 - 1))
def test_features_are_unchanged_when_the_future_is_cut_off(kept: int, seed: int) -> None:
    full = compute_features(BARS, CONFIG).X[:kept]
    np.testing.assert_array_equal(full, compute_features(BARS.head(kept), CONFIG).X)
    check_truncation(BARS, CONFIG, seed=seed)


def test_series_of_a_few_bars_is_no_problem() -> None:
    for n in (1, 2, 3, 40):
        check_truncation(BARS.head(n), CONFIG, seed=1)
