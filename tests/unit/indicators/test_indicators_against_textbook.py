"""Every indicator against a slow version written from its published definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ktrdr_core.config.indicator_section import IndicatorConfig
from ktrdr_core.config.signatures import SIGNATURES
from ktrdr_core.data.bars import Bars, validate_bars
from ktrdr_core.indicators.registry import SOURCE, find_indicator
from tests.kit.builders import bars_of_closes, make_bars
from tests.unit.indicators import textbook
from tests.unit.indicators.textbook import Series


def restless_bars(n: int = 320, seed: int = 11) -> Bars:
    """A random walk that stalls, jumps and is silent for stretches longer than most periods."""
    rng = np.random.default_rng(seed)
    returns = rng.normal(0, 0.01, n)
    width_T = rng.uniform(0, 0.01, n)
    volume = rng.uniform(0, 1e6, n).round()
    is_still = np.zeros(n, dtype=bool)
    is_still[60:95] = is_still[150:153] = is_still[200:206] = True
    returns[is_still] = width_T[is_still] = 0
    volume[70:110] = volume[201:203] = 0
    returns[[120, 240]] = 0.2, -0.25
    close = 1.05 * np.exp(np.cumsum(returns))
    open_ = np.where(is_still, close, np.concatenate([[1.05], close[:-1]]))
    return validate_bars(
        symbol="EURUSD",
        timeframe="1h",
        times=make_bars(n).times,
        open=open_,
        high=np.maximum(open_, close) * (1 + width_T),
        low=np.minimum(open_, close) * (1 - width_T),
        close=close,
        volume=volume,
    )


SERIES = {
    "walk": make_bars(320),
    "restless": restless_bars(),
    "cheap": make_bars(320, seed=3),
    "brief": make_bars(40),
}
SERIES["cheap"] = validate_bars(
    symbol="SHIB",
    timeframe="1h",
    times=SERIES["cheap"].times,
    **{name: getattr(SERIES["cheap"], name) * 1e-7 for name in ("open", "high", "low", "close")},
    volume=SERIES["cheap"].volume * 1e9,
)

# Parameters beside the defaults.
OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "rsi": ({"period": 2}, {"period": 30}),
    "macd": ({"fast_period": 2, "slow_period": 3, "signal_period": 2}, {"fast_period": 5, "slow_period": 35}),
    "stoch": ({"k_period": 5, "k_smoothing": 1, "d_period": 1}, {"k_period": 1}),
    "stochrsi": ({"period": 5, "stoch_period": 9, "k_smoothing": 1, "d_period": 1},),
    "williams_r": ({"period": 1},),
    "bbands": ({"period": 5, "num_std": 2.5},),
    "ichimoku": ({"conversion_period": 5, "base_period": 9, "span_period": 20, "displacement": 3},),
    "parabolic_sar": ({"step": 0.05, "maximum": 0.5},),
    "supertrend": ({"period": 3, "multiplier": 0.7}, {"period": 2, "multiplier": 1.0}),
    "fisher": ({"period": 2}, {"period": 5}),
    "rvi": ({"period": 1},),
    "vwap": ({"period": 1}, {"period": 100}),
    "keltner": ({"period": 3, "atr_period": 20, "multiplier": 0.5},),
    "squeeze_intensity": ({"period": 7, "num_std": 1.0, "multiplier": 2.0},),
    "aroon": ({"period": 2},),
    "adx": ({"period": 2}, {"period": 20}),
    "kama": ({"period": 3},),
    "mfi": ({"period": 2},),
    "roc": ({"period": 1},),
}

CASES = [(name, given) for name in SIGNATURES for given in ({}, *OTHERS.get(name, ()))]


@pytest.mark.parametrize("kind", SERIES)
@pytest.mark.parametrize(("name", "given"), CASES, ids=lambda value: str(value) if isinstance(value, str) else None)
def test_indicator_is_the_textbook_one(name: str, given: dict[str, Any], kind: str) -> None:
    bars = SERIES[kind]
    config = IndicatorConfig.model_validate({"name": name, **given})
    indicator = find_indicator(name)
    inputs = tuple(bars.close if column == SOURCE else getattr(bars, column) for column in indicator.inputs)
    actual = indicator.compute(inputs, config.parameters)
    expected = _expected(name, bars, indicator.inputs == (SOURCE,), list(config.parameters.values()))
    assert len(actual) == len(expected)
    warm_up = indicator.signature.warm_up_bars(config.parameters)
    for output, actual_T, expected_T in zip(indicator.signature.all_outputs, actual, expected, strict=False):
        scale = max(1e-30, np.nanmax(np.abs(expected_T[warm_up:]), initial=0.0))
        np.testing.assert_allclose(
            actual_T[warm_up:], expected_T[warm_up:], rtol=1e-9, atol=1e-9 * scale, err_msg=output.name
        )
        assert not np.isnan(expected_T[warm_up:]).any()


def test_fisher_transform_of_many_bars_is_the_one_bar_by_bar() -> None:
    """It is computed in blocks side by side; the limit acts in a series that trends."""
    rng = np.random.default_rng(2)
    close = 100 * np.exp(np.cumsum(rng.choice([0.01, 0.011, -0.008], 5_000)))
    close[1_200:1_500] = np.geomspace(1, 3, 300)
    bars = bars_of_closes(close)
    actual = find_indicator("fisher").compute((bars.high, bars.low), {"period": 5})
    expected = _expected("fisher", bars, False, [5])
    assert max(np.nanmax(values) for values in expected) > 7
    for actual_T, expected_T in zip(actual, expected, strict=True):
        np.testing.assert_allclose(actual_T, expected_T, rtol=0, atol=1e-11)


def _expected(name: str, bars: Bars, is_of_one_price: bool, parameters: list[Any]) -> list[np.ndarray]:
    function: Callable[..., Any] = getattr(textbook, name)
    series = Series(*(getattr(bars, column).tolist() for column in ("open", "high", "low", "close", "volume")))
    outputs = function(series.close if is_of_one_price else series, *parameters)
    return [np.array(values) for values in (outputs if isinstance(outputs, tuple) else (outputs,))]


def test_relative_strength_index_is_the_published_one_on_the_published_closes() -> None:
    """The worked example of StockCharts' ChartSchool, 14 periods."""
    closes = """44.3389 44.0902 44.1497 43.6124 44.3278 44.8264 45.0955 45.4245 45.8433 46.0826 45.8931 46.0328 45.6140
        46.2820 46.2820 46.0028 46.0328 46.4116 46.2222 45.6439 46.2122 46.2521 45.7137 46.4515 45.7835 45.3548 44.0288
        44.1783 44.2181 44.5672 43.4205 42.6628 43.1314"""
    prices = np.array([float(close) for close in closes.split()])
    (index,) = find_indicator("rsi").compute((prices,), {"period": 14})
    published = "70.53 66.32 66.55 69.41 66.36 57.97 62.93 63.26 56.06 62.38 54.71 50.42 39.99 41.46 41.87 45.46"
    np.testing.assert_allclose(index[14:30], [float(value) for value in published.split()], atol=0.006)
