"""Every indicator this version computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ktrdr_core.config.signatures import SIGNATURES, IndicatorSignature, ParameterValue, indicator_signature
from ktrdr_core.data.bars import FloatArray

Parameters = Mapping[str, ParameterValue]


@dataclass(frozen=True)
class Indicator:
    """An indicator: its signature, its computation and its warm-up.

    Attributes:
        signature: Name, parameters, outputs.
        compute: Maps prices, shape (T,), and checked parameters to the primary output and then each named one.
        warm_up_bars: Leading values that are NaN, for checked parameters.
    """

    signature: IndicatorSignature
    compute: Callable[[FloatArray, Parameters], tuple[FloatArray, ...]]
    warm_up_bars: Callable[[Parameters], int]


def _rsi(prices_T: FloatArray, parameters: Parameters) -> tuple[FloatArray, ...]:
    # Imported here: TA-Lib brings pandas (0.5 s), and a service that only checks a strategy computes nothing.
    from ktrdr_core.indicators.momentum import relative_strength_index

    return (relative_strength_index(prices_T, int(parameters["period"])),)


def _macd(prices_T: FloatArray, parameters: Parameters) -> tuple[FloatArray, ...]:
    from ktrdr_core.indicators.momentum import moving_average_convergence_divergence

    return moving_average_convergence_divergence(
        prices_T,
        int(parameters["fast_period"]),
        int(parameters["slow_period"]),
        int(parameters["signal_period"]),
    )


INDICATORS: Mapping[str, Indicator] = {
    indicator.signature.name: indicator
    for indicator in (
        Indicator(SIGNATURES["rsi"], _rsi, lambda p: int(p["period"])),
        Indicator(SIGNATURES["macd"], _macd, lambda p: int(p["slow_period"] + p["signal_period"]) - 2),
    )
}


def find_indicator(name: str) -> Indicator:
    """Return the indicator of a name or alias.

    Raises:
        InvalidIndicatorError: The grammar has no such indicator; the nearest one is named.
        UnsupportedError: The grammar has it, this version does not compute it.
    """
    return INDICATORS[indicator_signature(name).name]
