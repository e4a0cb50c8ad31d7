"""From bars to features in one call: what training, prediction and the leakage check share."""

from __future__ import annotations

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.features.engineer import FeatureMatrix, build_features
from ktrdr_core.fuzzy.memberships import compute_memberships
from ktrdr_core.indicators.compute import compute_indicators, indicator_warm_up_bars


def compute_features(bars: Bars, strategy: StrategyConfig) -> FeatureMatrix:
    """Return the unscaled features of a series; row t depends on bars up to t only."""
    values = compute_indicators(bars, strategy.indicators)
    return build_features(compute_memberships(values, strategy.fuzzy_sets), bars, strategy.model.features)


def feature_warm_up_bars(strategy: StrategyConfig) -> int:
    """Return the leading bars without a complete row of features.

    Price context needs one bar before; every indicator with its lags needs at least two.
    """
    return indicator_warm_up_bars(strategy.indicators) + strategy.model.features.lookback_periods
