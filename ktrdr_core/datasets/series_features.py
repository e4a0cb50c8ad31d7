"""From bars to features: what training, prediction and the leakage check share.

`compute_features` is the whole way; the steps it is made of are public, for the pipeline goes them one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ktrdr_core.config.strategy import FuzzySetConfig, StrategyConfig
from ktrdr_core.data.alignment import last_closed
from ktrdr_core.data.bars import FloatArray, IntArray
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.features.engineer import (
    FeatureMatrix,
    Memberships,
    SymbolValues,
    build_features,
    build_memberships,
    leading_nan,
)
from ktrdr_core.features.layout import build_layout
from ktrdr_core.features.price_context import PRICE_CONTEXT_WARM_UP_BARS
from ktrdr_core.fuzzy.coverage import SetCoverage, measure_coverage
from ktrdr_core.fuzzy.quantiles import fit_quantile_set
from ktrdr_core.fuzzy.timeframe_sets import NamedSet, timeframe_indicators, timeframe_sets
from ktrdr_core.indicators.compute import compute_indicators, indicator_warm_up_bars


def compute_features(bars: SymbolBars, strategy: StrategyConfig) -> FeatureMatrix:
    """Return the unscaled features of a symbol.

    Args:
        bars: T base bars, and those of every higher timeframe of the strategy.
        strategy: Its `quantile` sets are fitted, see `fit_quantile_sets`.

    Returns:
        The matrix; row t depends on bars closed by the close of base bar t only.

    Raises:
        InvalidIndicatorError: An indicator is NaN or infinite after its warm-up.
        InvalidInputError: The model has symbol identities, and the symbol is none of them.
        InvalidStrategyError: A `quantile` set is not fitted.
    """
    values = compute_symbol_indicators(bars, strategy)
    return build_features(compute_symbol_memberships(values, bars, strategy), values, bars)


def compute_symbol_indicators(bars: SymbolBars, strategy: StrategyConfig) -> dict[str, dict[str, FloatArray]]:
    """Return the indicator values that have fuzzy sets.

    Returns:
        By timeframe and name, on the bars of that timeframe, not aligned; shape (T_timeframe,), float64, NaN in the
        warm-up only. Value t depends on bars of its timeframe up to t only.
    """
    values: dict[str, dict[str, FloatArray]] = {}
    for timeframe in (strategy.base_timeframe, *strategy.higher_timeframes):
        used = {named.values for named in timeframe_sets(strategy.indicators, strategy.fuzzy_sets, timeframe)}
        values[timeframe] = compute_indicators(bars.at(timeframe), strategy.indicators, wanted=used)
    return values


def compute_symbol_memberships(values: SymbolValues, bars: SymbolBars, strategy: StrategyConfig) -> Memberships:
    """Return the memberships of every fuzzy set, aligned to the base bars; see `build_memberships`."""
    return build_memberships(values, bars, strategy)


def has_quantile_sets(strategy: StrategyConfig) -> bool:
    """Return whether `fit_quantile_sets` has anything to fit."""
    return any(_has_quantiles(sets) for sets in strategy.fuzzy_sets.values())


def fit_quantile_sets(
    values: Mapping[str, SymbolValues],
    bars: Mapping[str, SymbolBars],
    fit_rows: Mapping[str, IntArray],
    strategy: StrategyConfig,
) -> StrategyConfig:
    """Return the strategy with each `quantile` set replaced by the set it is on the training part.

    Args:
        values: Indicator values by symbol, see `compute_symbol_indicators`.
        bars: Bars by symbol.
        fit_rows: Base bars of the training part by symbol: positions, increasing. Of a higher timeframe those bars
            count that these base bars see.
        strategy: As in the file.

    Returns:
        The strategy itself if it has no such set. Else one whose keys with a `quantile` set are written out per
        timeframe: `rsi_14` (base timeframe) and `rsi_14@4h`. Values of all symbols are pooled.

    Raises:
        InvalidStrategyError: The quantiles of a set do not differ on the training part, or there is no value.
    """
    if not has_quantile_sets(strategy):
        return strategy
    fitted = {key: dict(sets) for key, sets in strategy.fuzzy_sets.items() if not _has_quantiles(sets)}
    for timeframe, named_sets in _values_with_sets(strategy):
        source, name = named_sets[0].key, named_sets[0].values
        if not _has_quantiles(strategy.fuzzy_sets[source]):
            continue
        sample = _training_values(values, bars, fit_rows, timeframe, name)
        sample.sort()  # its own array; quantiles of sorted values are 4x quicker, and each value has several sets
        key = source if timeframe == strategy.base_timeframe else f"{name}@{timeframe}"
        fitted[key] = {
            named.name: fit_quantile_set(
                named.config, sample, field=f"fuzzy_sets.{source}.{named.name}", timeframe=timeframe
            )
            for named in named_sets
        }
    return strategy.model_copy(update={"fuzzy_sets": fitted})


def measure_set_coverage(
    values: Mapping[str, SymbolValues],
    bars: Mapping[str, SymbolBars],
    fit_rows: Mapping[str, IntArray],
    strategy: StrategyConfig,
) -> tuple[SetCoverage, ...]:
    """Return how the fuzzy sets of each timeframe and indicator lie on the training part, all symbols together.

    Args:
        values: Indicator values by symbol.
        bars: Bars by symbol.
        fit_rows: Base bars of the training part by symbol: positions, increasing.
        strategy: Its `quantile` sets are fitted.
    """
    return tuple(
        measure_coverage(_training_values(values, bars, fit_rows, timeframe, sets[0].values), sets, timeframe)
        for timeframe, sets in _values_with_sets(strategy)
    )


def feature_warm_up_bars(bars: SymbolBars, strategy: StrategyConfig) -> int:
    """Return the leading base bars without a complete row, from times and parameters alone; all if none is complete."""
    layout = build_layout(strategy)
    warm_up_bars = 0
    for timeframe, sets in layout.sets.items():
        if not sets:
            continue
        first = indicator_warm_up_bars(timeframe_indicators(strategy.indicators, strategy.fuzzy_sets, timeframe))
        own = bars.at(timeframe)
        if own is not bars.base:
            first = int(np.searchsorted(last_closed(bars.base, own), first))
        warm_up_bars = max(warm_up_bars, first)
    warm_up_bars += layout.num_lags
    if layout.has_price_context:
        warm_up_bars = max(warm_up_bars, PRICE_CONTEXT_WARM_UP_BARS)
    return min(warm_up_bars, len(bars))


def _has_quantiles(sets: Mapping[str, FuzzySetConfig]) -> bool:
    return any(config.type == "quantile" for config in sets.values())


def _values_with_sets(strategy: StrategyConfig) -> Iterator[tuple[str, tuple[NamedSet, ...]]]:
    """Yield each timeframe and, for each values there, its sets."""
    for timeframe in (strategy.base_timeframe, *strategy.higher_timeframes):
        sets = timeframe_sets(strategy.indicators, strategy.fuzzy_sets, timeframe)
        for name in dict.fromkeys(named.values for named in sets):
            yield timeframe, tuple(named for named in sets if named.values == name)


def _training_values(
    values: Mapping[str, SymbolValues],
    bars: Mapping[str, SymbolBars],
    fit_rows: Mapping[str, IntArray],
    timeframe: str,
    name: str,
) -> FloatArray:
    """Return the values that the training part shows, of all symbols, without the warm-up."""
    parts = []
    for symbol, own in bars.items():
        series, rows = own.at(timeframe), fit_rows[symbol]
        if series is not own.base:
            rows = np.unique(last_closed(own.base, series)[rows])
            rows = rows[rows >= 0]
        first = leading_nan(values[symbol][timeframe][name], name, series)
        parts.append(values[symbol][timeframe][name][rows[rows >= first]])
    return np.concatenate(parts) if parts else np.empty(0)
