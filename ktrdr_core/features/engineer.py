"""Turns memberships and bars into the rows a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ktrdr_core.config.strategy import FeaturesConfig
from ktrdr_core.data.bars import Bars, FloatArray


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """Features of each bar, not scaled.

    Attributes:
        X: Shape (T, F), float64; NaN in the first `warm_up_bars` rows and nowhere else.
        names: Names of the columns.
        warm_up_bars: Rows at the start with at least one NaN.
    """

    X: FloatArray
    names: tuple[str, ...]
    warm_up_bars: int


def price_context(bars: Bars) -> dict[str, FloatArray]:
    """Return scale-free columns of the current bar, known at its close.

    Returns:
        `price.return_1`: close / close before - 1 (NaN at bar 0); `price.range`: (high - low) / close;
        `price.body`: (close - open) / close; `price.close_position`: where the close is between low (0) and
        high (1), 0.5 for a bar without a range. Shape (T,), float64. Value t depends on bars t - 1 and t only.
    """
    range_T = bars.high - bars.low
    return_T = np.full(len(bars), np.nan)
    return_T[1:] = bars.close[1:] / bars.close[:-1] - 1
    position_T = np.full(len(bars), 0.5)
    np.divide(bars.close - bars.low, range_T, out=position_T, where=range_T > 0)
    return {
        "price.return_1": return_T,
        "price.range": range_T / bars.close,
        "price.body": (bars.close - bars.open) / bars.close,
        "price.close_position": position_T,
    }


def build_features(memberships: Mapping[str, FloatArray], bars: Bars, config: FeaturesConfig) -> FeatureMatrix:
    """Return the feature matrix of a series.

    Args:
        memberships: Columns by name, shape (T,) each.
        bars: The T bars they were computed from.
        config: `lookback_periods` = L adds, after the current memberships, those of 1, 2, ..., L bars before as
            `name.lag_1`, ...; `include_price_context` adds the columns of `price_context`, current bar only.

    Returns:
        The matrix; row t depends on bars up to t only.
    """
    base_TM = np.column_stack(list(memberships.values()))
    context = price_context(bars) if config.include_price_context else {}
    num_bars, num_memberships = base_TM.shape
    names = list(memberships)
    for lag in range(1, config.lookback_periods + 1):
        names += [f"{name}.lag_{lag}" for name in memberships]
    names += list(context)

    X = np.full((num_bars, len(names)), np.nan)
    for lag in range(min(config.lookback_periods + 1, num_bars)):
        X[lag:, lag * num_memberships : (lag + 1) * num_memberships] = base_TM[: num_bars - lag]
    for column, values in enumerate(context.values(), start=len(names) - len(context)):
        X[:, column] = values
    is_complete_T = ~np.isnan(X).any(axis=1)
    warm_up_bars = int(np.argmax(is_complete_T)) if is_complete_T.any() else len(X)
    return FeatureMatrix(X, tuple(names), warm_up_bars)
