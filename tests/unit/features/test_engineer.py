from __future__ import annotations

import numpy as np
import pytest

from ktrdr_core.config.strategy import FeaturesConfig
from ktrdr_core.features.engineer import build_features, price_context
from tests.kit.builders import bars_of_closes, make_bars


def test_row_has_current_memberships_then_those_of_the_bars_before() -> None:
    bars = bars_of_closes([1, 2, 3, 4, 5])
    memberships = {"a": np.array([np.nan, 0.1, 0.2, 0.3, 0.4]), "b": np.array([0.5, 0.6, 0.7, 0.8, 0.9])}
    features = build_features(memberships, bars, FeaturesConfig(lookback_periods=2))
    assert features.names == ("a", "b", "a.lag_1", "b.lag_1", "a.lag_2", "b.lag_2")
    assert features.X[4].tolist() == [0.4, 0.9, 0.3, 0.8, 0.2, 0.7]
    assert features.warm_up_bars == 3
    assert np.isnan(features.X[2]).any()
    assert not np.isnan(features.X[3:]).any()


def test_no_lookback_is_the_memberships_alone() -> None:
    features = build_features({"a": np.array([0.1, 0.2])}, bars_of_closes([1, 2]), FeaturesConfig())
    assert features.X.tolist() == [[0.1], [0.2]]
    assert features.warm_up_bars == 0


def test_fewer_bars_than_lags_are_all_warm_up() -> None:
    features = build_features({"a": np.array([0.1, 0.2])}, bars_of_closes([1, 2]), FeaturesConfig(lookback_periods=5))
    assert features.X.shape == (2, 6)
    assert features.warm_up_bars == 2


def test_price_context_by_hand() -> None:
    bars = make_bars(20)
    context = price_context(bars)
    t = 7
    assert context["price.return_1"][t] == pytest.approx(bars.close[t] / bars.close[t - 1] - 1)
    assert context["price.range"][t] == pytest.approx((bars.high[t] - bars.low[t]) / bars.close[t])
    assert context["price.body"][t] == pytest.approx((bars.close[t] - bars.open[t]) / bars.close[t])
    expected = (bars.close[t] - bars.low[t]) / (bars.high[t] - bars.low[t])
    assert context["price.close_position"][t] == pytest.approx(expected)
    assert np.isnan(context["price.return_1"][0])


def test_bar_without_a_range_closes_in_its_middle() -> None:
    assert price_context(bars_of_closes([1, 2]))["price.close_position"].tolist() == [0.5, 0.5]


def test_price_context_is_added_once_and_not_lagged() -> None:
    bars = make_bars(20)
    config = FeaturesConfig(lookback_periods=1, include_price_context=True)
    features = build_features({"a": np.linspace(0, 1, 20)}, bars, config)
    assert features.names == ("a", "a.lag_1", *price_context(bars))
    assert features.warm_up_bars == 1
