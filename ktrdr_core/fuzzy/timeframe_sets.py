"""Which fuzzy sets count on which timeframe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ktrdr_core.config.strategy import FuzzySetConfig, IndicatorConfig

FuzzySetsByKey = Mapping[str, Mapping[str, FuzzySetConfig]]


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A fuzzy set on one timeframe.

    Attributes:
        key: Key of `fuzzy_sets` it stands under: `rsi_14` or `rsi_14@4h`.
        values: Name of the values it applies to: `rsi_14`, `macd_12_26_9.hist`.
        indicator: feature_id of the indicator they are of.
        name: Its own name.
        config: The set.
    """

    key: str
    values: str
    indicator: str
    name: str
    config: FuzzySetConfig


def timeframe_indicators(
    indicators: Sequence[IndicatorConfig], fuzzy_sets: FuzzySetsByKey, timeframe: str
) -> list[IndicatorConfig]:
    """Return the indicators that are computed on a timeframe and have a fuzzy set there, in the strategy's order."""
    used = {own.indicator for own in timeframe_sets(indicators, fuzzy_sets, timeframe)}
    return [indicator for indicator in indicators if indicator.feature_id in used]


def timeframe_sets(
    indicators: Sequence[IndicatorConfig], fuzzy_sets: FuzzySetsByKey, timeframe: str
) -> tuple[NamedSet, ...]:
    """Return the fuzzy sets of a timeframe.

    A key `values` counts on every timeframe its indicator is computed on; `values@timeframe` on that one, and there
    instead of `values`.

    Returns:
        In alphabetical order of values, then of names, so that the columns of a model do not depend on the order of
        keys in a file.
    """
    owner = {
        values: indicator.feature_id
        for indicator in indicators
        if indicator.timeframes is None or timeframe in indicator.timeframes
        for values in indicator.outputs
    }
    keys: dict[str, str] = {}
    for key in fuzzy_sets:
        values, _, own_timeframe = key.partition("@")
        if values in owner and own_timeframe in ("", timeframe) and (own_timeframe or values not in keys):
            keys[values] = key
    return tuple(
        NamedSet(keys[values], values, owner[values], name, config)
        for values in sorted(keys)
        for name, config in sorted(fuzzy_sets[keys[values]].items())
    )
