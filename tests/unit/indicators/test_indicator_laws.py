"""What holds for every indicator on any bars."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.indicator_section import IndicatorConfig
from ktrdr_core.config.signatures import SIGNATURES, IndicatorSignature, PriceSource
from ktrdr_core.data.bars import BAR_COLUMNS, Bars, FloatArray, validate_bars
from ktrdr_core.indicators.compute import compute_indicators, indicator_warm_up_bars
from tests.kit.builders import bars_of_closes, make_bars

TIMES = make_bars(200).times


def _prices(bars: Bars, unit: float = 1.0) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    return bars.open * unit, bars.high * unit, bars.low * unit, bars.close * unit


@st.composite
def any_bars(draw: st.DrawFn, min_size: int = 1) -> Bars:
    """Bars in ticks: ties, flat stretches, bars without a range or a volume, gaps and jumps are common."""
    num_bars = draw(st.integers(min_size, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    still, silent, ranged, gapped = (draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])) for _ in range(4))
    tick = draw(st.sampled_from([1e-12, 1e-4, 0.1, 1e6]))
    drift = draw(st.sampled_from([0, 0, 2, -2]))
    moves = np.where(rng.random(num_bars) < still, 0, rng.choice([1, -1, 2, -3, 40, -40], num_bars) + drift)
    close = np.maximum(1_000 + np.cumsum(moves), 1.0)
    open_ = np.where(rng.random(num_bars) < gapped, close, np.concatenate([[1_000], close[:-1]]))
    above, below = np.where(rng.random((2, num_bars)) < ranged, 0, rng.choice([0, 1, 3, 25], (2, num_bars)))
    volume = np.where(rng.random(num_bars) < silent, 0, rng.choice([1.0, 7.5, 1e-3, 1e13], num_bars))
    if draw(st.booleans()):  # nothing happens any more
        stop = draw(st.integers(0, num_bars - 1))
        close[stop:] = open_[stop:] = close[stop]
        above[stop:] = below[stop:] = volume[stop:] = 0
    return validate_bars(
        symbol="X",
        timeframe="1h",
        times=TIMES[:num_bars],
        open=open_ * tick,
        high=(np.maximum(open_, close) + above) * tick,
        low=np.maximum(np.minimum(open_, close) - below, 0.5) * tick,
        close=close * tick,
        volume=volume,
    )


@st.composite
def any_configs(draw: st.DrawFn) -> list[IndicatorConfig]:
    """Every indicator, with short periods, so that most bars are beyond the warm-up; its feature_id is its name."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [_any_config(signature, rng) for signature in SIGNATURES.values()]


def _any_config(signature: IndicatorSignature, rng: np.random.Generator) -> IndicatorConfig:
    values: dict[str, Any] = {}
    for rule in signature.parameters:
        if rule.is_whole:
            values[rule.name] = int(rule.minimum) + int(rng.integers(12))
        else:
            values[rule.name] = float(rng.uniform(rule.minimum, min(rule.maximum, 4.0)))
    for lower, upper in itertools.pairwise(signature.increasing):
        values[upper] += values[lower]
    for lower, upper in signature.not_above:
        values[lower], values[upper] = sorted((values[lower], values[upper]))
    if signature.takes_source:
        values["source"] = rng.choice(get_args(PriceSource))
    return IndicatorConfig.model_validate({"name": signature.name, "feature_id": signature.name, **values})


@given(any_bars(), any_configs())
def test_values_are_missing_in_the_warm_up_and_nowhere_else(bars: Bars, configs: list[IndicatorConfig]) -> None:
    values = compute_indicators(bars, configs)
    assert list(values) == [name for config in configs for name in config.outputs]
    for config in configs:
        warm_up = indicator_warm_up_bars([config])
        for name in config.outputs:
            assert values[name].shape == (len(bars),), name
            assert values[name].dtype == np.float64, name
            assert np.isnan(values[name][:warm_up]).all(), name
            assert np.isfinite(values[name][warm_up:]).all(), name
    assert indicator_warm_up_bars(configs) == max(indicator_warm_up_bars([config]) for config in configs)


@given(any_bars(min_size=2), any_bars(), any_configs(), st.data())
def test_values_do_not_change_with_what_comes_after(
    bars: Bars, other: Bars, configs: list[IndicatorConfig], data: st.DataObject
) -> None:
    known = data.draw(st.integers(1, len(bars)))
    columns = (np.concatenate([getattr(bars, name)[:known], getattr(other, name)]) for name in BAR_COLUMNS)
    changed = Bars("X", "1h", TIMES[: known + len(other)], *columns)
    cut = compute_indicators(bars.head(known), configs)
    for later in (bars, changed):
        for name, values_T in compute_indicators(later, configs).items():
            np.testing.assert_array_equal(values_T[:known], cut[name], err_msg=name)


def test_cut_of_a_long_series_changes_nothing() -> None:
    """Long enough for blocks, chunks and threads."""
    bars = make_bars(18_000)
    configs = [IndicatorConfig.model_validate({"name": name}) for name in SIGNATURES]
    whole = compute_indicators(bars, configs)
    for known in (1_000, 16_500):
        for name, values_T in compute_indicators(bars.head(known), configs).items():
            np.testing.assert_array_equal(whole[name][:known], values_T, err_msg=name)


RANGES = {
    "rsi": (0, 100),
    "stochrsi": (0, 100),
    "stochrsi.d": (0, 100),
    "cmo": (-100, 100),
    "stoch": (0, 100),
    "stoch.d": (0, 100),
    "williams_r": (-100, 0),
    "fisher": (-7.7, 7.7),
    "rvi": (-1, 1),
    "rvi.signal": (-1, 1),
    "adx": (0, 100),
    "adx.di_plus": (0, 100),
    "adx.di_minus": (0, 100),
    "aroon": (-100, 100),
    "aroon.up": (0, 100),
    "aroon.down": (0, 100),
    "ichimoku.cloud": (-1, 1),
    "supertrend.direction": (-1, 1),
    "atr": (0, np.inf),
    "natr": (0, np.inf),
    "bbands.width": (0, np.inf),
    "bollinger_band_width": (0, np.inf),
    "donchian.position": (0, 1),
    "donchian.width": (0, 2),
    "squeeze_intensity": (0, 1),
    "mfi": (0, 100),
    "volume_ratio": (0, 13),
    "cmf": (-1, 1),
}
ROUNDING = 1e-9


@given(any_bars(), any_configs())
def test_values_stay_in_their_range(bars: Bars, configs: list[IndicatorConfig]) -> None:
    values = compute_indicators(bars, configs)
    for config in configs:
        for name, output in zip(config.outputs, SIGNATURES[config.name].all_outputs, strict=True):
            low, high = (1e-300, 1_000) if output.is_overlay else RANGES.get(name, (-np.inf, np.inf))
            seen = values[name][~np.isnan(values[name])]
            assert (seen >= low - ROUNDING * (not output.is_overlay)).all(), name
            assert (seen <= high + ROUNDING).all(), name


# In price units; everything else does not depend on what a price is counted in.
IN_PRICE_UNITS = {"macd", "momentum", "atr"}


@given(any_bars(), any_configs())
def test_values_do_not_depend_on_the_unit_of_prices(bars: Bars, configs: list[IndicatorConfig]) -> None:
    unit = 2.0**-40  # exact, so that only a rule with an absolute threshold could differ
    scaled = Bars("X", "1h", bars.times, *_prices(bars, unit), bars.volume)
    actual = compute_indicators(scaled, configs)
    for name, values_T in compute_indicators(bars, configs).items():
        indicator, _, output = name.partition(".")
        factor = unit if indicator in IN_PRICE_UNITS or output == "level" else 1.0
        np.testing.assert_array_equal(actual[name], factor * values_T, err_msg=name)


FLAT = {
    "rsi": 50,
    "stochrsi": 50,
    "stochrsi.d": 50,
    "stoch": 50,
    "stoch.d": 50,
    "williams_r": -50,
    "mfi": 50,
    "aroon.up": 50,
    "aroon.down": 50,
    "bbands.percent_b": 0.5,
    "keltner.position": 0.5,
    "donchian.position": 0.5,
    "supertrend.direction": 1,
    "volume_ratio": 1,
    "obv": 1,  # the first bar's volume
}


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=list(SIGNATURES))
@pytest.mark.parametrize("price", [1e-9, 1.05, 3e5])
def test_flat_prices_have_the_value_that_is_documented(signature: IndicatorSignature, price: float) -> None:
    config = IndicatorConfig.model_validate({"name": signature.name, "feature_id": signature.name})
    bars = bars_of_closes(np.full(150, price))
    warm_up = indicator_warm_up_bars([config])
    values = compute_indicators(bars, [config])
    for name, output in zip(config.outputs, signature.all_outputs, strict=True):
        usual = price if output.name == "level" else 1.0 if output.is_overlay else 0.0
        expected = FLAT.get(name, usual)
        np.testing.assert_allclose(values[name][warm_up:], expected, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("name", "expected"), [("mfi", 50), ("cmf", 0), ("volume_ratio", 1), ("vwap", None), ("obv", 0), ("ad_line", 0)]
)
def test_bars_without_volume_have_the_value_that_is_documented(name: str, expected: float | None) -> None:
    walk = make_bars(120)
    bars = Bars("X", "1h", walk.times, *_prices(walk), np.zeros(120))
    config = IndicatorConfig.model_validate({"name": name, "feature_id": "x"})
    values_T = compute_indicators(bars, [config])["x"][indicator_warm_up_bars([config]) :]
    if expected is None:
        typical = (bars.high + bars.low + bars.close) / 3
        plain = np.lib.stride_tricks.sliding_window_view(typical, 20).mean(axis=1)
        np.testing.assert_allclose(values_T, bars.close[19:] / plain, rtol=1e-12)
    else:
        assert (values_T == expected).all()


def test_one_huge_volume_is_forgotten_once_it_has_left_the_window() -> None:
    walk = make_bars(200)
    volume = walk.volume.copy()
    volume[20] = 1e18
    huge = Bars("X", "1h", walk.times, *_prices(walk), volume)
    configs = [IndicatorConfig.model_validate({"name": name}) for name in ("mfi", "vwap", "cmf", "volume_ratio")]
    usual, after = compute_indicators(walk, configs), compute_indicators(huge, configs)
    for name, values_T in usual.items():
        np.testing.assert_array_equal(after[name][60:], values_T[60:], err_msg=name)
