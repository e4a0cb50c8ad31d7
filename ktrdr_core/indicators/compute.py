"""Computes the indicators of a strategy as its fuzzy sets see them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ktrdr_core.config.indicator_section import IndicatorConfig
from ktrdr_core.config.signatures import LEVEL_OUTPUT
from ktrdr_core.data.bars import Bars, FloatArray, time_text
from ktrdr_core.errors import InvalidBarsError
from ktrdr_core.indicators.registry import SOURCE, find_indicator

# Largest close / overlay: an overlay may be 0 or below it, as a band of wild prices.
LARGEST_RATIO = 1_000.0
# Below this many values threads cost more than they gain.
_VALUES_WORTH_THREADS = 500_000
_MAX_THREADS = 4


def compute_indicators(
    bars: Bars, indicators: Sequence[IndicatorConfig], *, wanted: Collection[str] | None = None
) -> dict[str, FloatArray]:
    """Return the values of each indicator as the fuzzy sets see them.

    An output that is a price overlay is given as close / value (at most 1,000); `feature_id.level` is the price itself.
    TA-Lib releases the interpreter lock, so on many bars the indicators are spread over threads; the values do not
    depend on it.

    Args:
        bars: T bars.
        indicators: As in the strategy.
        wanted: Names of the outputs to return; None returns all. What is not wanted is not kept in memory.

    Returns:
        Each output's name (`feature_id`, `feature_id.output`) to its values, in the order of the indicators; shape
        (T,), float64, NaN in the first `warm_up_bars` of its indicator's signature and nowhere else, never infinite.
        Value t depends on bars up to t only.

    Raises:
        InvalidIndicatorError: The grammar has no such indicator.
        InvalidBarsError: Prices or volumes are so extreme that a value is no finite number.
    """
    jobs = [config for config in indicators if wanted is None or any(name in wanted for name in config.outputs)]
    prices = {source: _prices(bars, source) for source in {config.source for config in jobs}}

    def compute(config: IndicatorConfig) -> dict[str, FloatArray]:
        return _compute(bars, config, prices[config.source], wanted)

    num_threads = min(len(jobs), _num_cores(), _MAX_THREADS)
    values: dict[str, FloatArray] = {}
    if num_threads < 2 or len(bars) * len(jobs) < _VALUES_WORTH_THREADS:
        for config in jobs:
            values.update(compute(config))
        return values
    with ThreadPoolExecutor(num_threads, thread_name_prefix="indicators") as pool:
        for outputs in pool.map(compute, jobs):
            values.update(outputs)
    return values


def indicator_warm_up_bars(indicators: Sequence[IndicatorConfig]) -> int:
    """Return the leading bars at which at least one indicator is NaN, 0 without any; needs no TA-Lib."""
    return max(
        (find_indicator(config.name).signature.warm_up_bars(config.parameters) for config in indicators), default=0
    )


def _compute(
    bars: Bars, config: IndicatorConfig, source_T: FloatArray, wanted: Collection[str] | None
) -> dict[str, FloatArray]:
    indicator = find_indicator(config.name)
    warm_up = indicator.signature.warm_up_bars(config.parameters)
    names = [name for name in config.outputs if wanted is None or name in wanted]
    if len(bars) <= warm_up:
        return {name: np.full(len(bars), np.nan) for name in names}
    inputs = tuple(source_T if name == SOURCE else getattr(bars, name) for name in indicator.inputs)
    with np.errstate(all="ignore"):  # what is not finite is refused by name
        raw = indicator.compute(inputs, config.parameters)
        level_T = raw[0].copy() if f"{config.feature_id}.{LEVEL_OUTPUT}" in names else None
        for values_T, output in zip(raw, indicator.signature.all_outputs, strict=False):
            if output.is_overlay:
                _divide_close(bars.close[warm_up:], values_T[warm_up:])
        outputs = raw if level_T is None else (*raw, level_T)
        values = {name: array for name, array in zip(config.outputs, outputs, strict=False) if name in names}
        for name, values_T in values.items():
            values_T[:warm_up] = np.nan
            _check_finite(values_T, warm_up, name, bars)
    return values


def _divide_close(close_T: FloatArray, overlay_T: FloatArray) -> None:
    """Turn a price overlay into close / overlay, in place; LARGEST_RATIO is the most, also at or below 0."""
    np.divide(close_T, overlay_T, out=overlay_T)
    if not (overlay_T.min() > 0 and overlay_T.max() <= LARGEST_RATIO):
        overlay_T[overlay_T == 0] = np.nan  # the overlay was infinite: refused below
        overlay_T[(overlay_T < 0) | (overlay_T > LARGEST_RATIO)] = LARGEST_RATIO


def _check_finite(values_T: FloatArray, warm_up: int, name: str, bars: Bars) -> None:
    if np.isfinite(values_T[warm_up:].sum()):
        return
    is_finite_T = np.isfinite(values_T[warm_up:])
    if not is_finite_T.all():
        index = warm_up + int(np.argmin(is_finite_T))
        raise InvalidBarsError(
            f"{name} of {bars.symbol} {bars.timeframe} is no finite number at bar {index + 1} "
            f"({time_text(int(bars.times[index]))}); the prices or volumes up to there are too extreme, check the bars",
            field=name,
        )


def _prices(bars: Bars, source: str) -> FloatArray:
    if source == "hl2":
        return (bars.high + bars.low) / 2
    if source == "hlc3":
        return (bars.high + bars.low + bars.close) / 3
    if source == "ohlc4":
        return (bars.open + bars.high + bars.low + bars.close) / 4
    prices_T: FloatArray = getattr(bars, source)
    return prices_T


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
