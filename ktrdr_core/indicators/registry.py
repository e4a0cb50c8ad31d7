"""How each indicator of the grammar is computed: the function, and what of the bars it takes.

Nothing here imports TA-Lib, which brings pandas (0.5 s): a service that only checks a strategy computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from ktrdr_core.config.signatures import SIGNATURES, IndicatorSignature, Parameters, indicator_signature
from ktrdr_core.data.bars import FloatArray

SOURCE = "source"  # the price that the strategy's `source` chooses

# Name: module of this package, function, inputs in the function's order.
_FUNCTIONS: Mapping[str, tuple[str, str, str]] = {
    "sma": ("moving_averages", "simple_moving_average", SOURCE),
    "ema": ("moving_averages", "exponential_moving_average", SOURCE),
    "wma": ("moving_averages", "weighted_moving_average", SOURCE),
    "dema": ("moving_averages", "double_exponential_moving_average", SOURCE),
    "tema": ("moving_averages", "triple_exponential_moving_average", SOURCE),
    "kama": ("moving_averages", "kaufman_adaptive_moving_average", SOURCE),
    "distance_from_ma": ("moving_averages", "distance_from_moving_average", SOURCE),
    "rsi": ("momentum", "relative_strength_index", SOURCE),
    "stochrsi": ("momentum", "stochastic_rsi", SOURCE),
    "macd": ("momentum", "moving_average_convergence_divergence", SOURCE),
    "ppo": ("momentum", "percentage_price_oscillator", SOURCE),
    "trix": ("momentum", "triple_smoothed_rate_of_change", SOURCE),
    "roc": ("momentum", "rate_of_change", SOURCE),
    "momentum": ("momentum", "momentum", SOURCE),
    "cmo": ("momentum", "chande_momentum_oscillator", SOURCE),
    "stoch": ("oscillators", "stochastic_oscillator", "high low close"),
    "williams_r": ("oscillators", "williams_percent_r", "high low close"),
    "cci": ("oscillators", "commodity_channel_index", "high low close"),
    "fisher": ("oscillators", "fisher_transform", "high low"),
    "rvi": ("oscillators", "relative_vigor_index", "open high low close"),
    "adx": ("trend", "average_directional_index", "high low close"),
    "aroon": ("trend", "aroon", "high low"),
    "ichimoku": ("trend", "ichimoku_cloud", "high low close"),
    "parabolic_sar": ("trend", "parabolic_stop_and_reverse", "high low"),
    "supertrend": ("trend", "supertrend", "high low close"),
    "atr": ("volatility", "average_true_range", "high low close"),
    "natr": ("volatility", "normalised_average_true_range", "high low close"),
    "bbands": ("volatility", "bollinger_bands", SOURCE),
    "bollinger_band_width": ("volatility", "bollinger_band_width", SOURCE),
    "keltner": ("volatility", "keltner_channels", "high low close"),
    "donchian": ("volatility", "donchian_channels", "high low close"),
    "squeeze_intensity": ("volatility", "squeeze_intensity", "high low close"),
    "mfi": ("volume", "money_flow_index", "high low close volume"),
    "obv": ("volume", "on_balance_volume", "close volume"),
    "vwap": ("volume", "volume_weighted_average_price", "high low close volume"),
    "volume_ratio": ("volume", "volume_ratio", "volume"),
    "ad_line": ("volume", "accumulation_distribution_line", "high low close volume"),
    "cmf": ("volume", "chaikin_money_flow", "high low close volume"),
}


@dataclass(frozen=True)
class Indicator:
    """An indicator with its computation.

    Attributes:
        signature: Name, parameters, outputs, warm-up.
        module: Module of this package that computes it.
        function: Function of the module; it takes the inputs and then the parameters by name, and returns the outputs
            of the signature but `level`.
        inputs: Columns of the bars, or "source".
    """

    signature: IndicatorSignature
    module: str
    function: str
    inputs: tuple[str, ...]

    def compute(self, inputs: tuple[FloatArray, ...], parameters: Parameters) -> tuple[FloatArray, ...]:
        """Return the primary output and then each named one but `level`, as its function says."""
        function: Callable[..., FloatArray | tuple[FloatArray, ...]] = getattr(
            import_module(f"ktrdr_core.indicators.{self.module}"), self.function
        )
        outputs = function(*inputs, **parameters)
        return outputs if isinstance(outputs, tuple) else (outputs,)


INDICATORS: Mapping[str, Indicator] = {
    name: Indicator(SIGNATURES[name], module, function, tuple(inputs.split()))
    for name, (module, function, inputs) in _FUNCTIONS.items()
}


def find_indicator(name: str) -> Indicator:
    """Return the indicator of a name or alias.

    Raises:
        InvalidIndicatorError: The grammar has no such indicator (the nearest one is named), or it repaints.
    """
    return INDICATORS[indicator_signature(name).name]
