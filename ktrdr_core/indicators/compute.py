"""Computes the indicators of a strategy."""

from __future__ import annotations

from collections.abc import Sequence

from ktrdr_core.config.strategy import IndicatorConfig
from ktrdr_core.data.bars import Bars, FloatArray
from ktrdr_core.indicators.registry import find_indicator


def compute_indicators(bars: Bars, indicators: Sequence[IndicatorConfig]) -> dict[str, FloatArray]:
    """Return the values of each indicator.

    Args:
        bars: T bars.
        indicators: As in the strategy.

    Returns:
        `feature_id` to its primary output and `feature_id.output` to each named output; shape (T,), float64, NaN in
        the warm-up and nowhere else. Value t depends on bars up to t only.

    Raises:
        InvalidIndicatorError: The grammar has no such indicator.
        UnsupportedError: This version does not compute it.
    """
    values: dict[str, FloatArray] = {}
    for config in indicators:
        indicator = find_indicator(config.name)
        outputs = indicator.compute(getattr(bars, config.source), config.parameters)
        values.update(zip(config.outputs, outputs, strict=True))
    return values


def indicator_warm_up_bars(indicators: Sequence[IndicatorConfig]) -> int:
    """Return the leading bars at which at least one indicator is NaN."""
    return max(find_indicator(config.name).warm_up_bars(config.parameters) for config in indicators)
