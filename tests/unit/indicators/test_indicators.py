"""What `compute_indicators` promises beside the values."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from ktrdr_core.config.indicator_section import IndicatorConfig
from ktrdr_core.config.signatures import SIGNATURES
from ktrdr_core.data.bars import Bars, FloatArray, validate_bars
from ktrdr_core.errors import InvalidBarsError, InvalidIndicatorError
from ktrdr_core.indicators.compute import compute_indicators, indicator_warm_up_bars
from ktrdr_core.indicators.momentum import relative_strength_index
from ktrdr_core.indicators.moving_averages import simple_moving_average
from ktrdr_core.indicators.registry import INDICATORS, find_indicator
from tests.kit.builders import bars_of_closes, make_bars


def indicator(name: str, **fields: Any) -> IndicatorConfig:
    return IndicatorConfig.model_validate({"name": name, **fields})


def test_prices_that_only_fall_or_rise_are_the_ends_of_rsi() -> None:
    assert relative_strength_index(np.linspace(2.0, 1.0, 60))[14:] == pytest.approx(0)
    assert relative_strength_index(np.linspace(1.0, 2.0, 60))[14:] == pytest.approx(100)


def test_rsi_of_a_market_that_stopped_long_ago_is_neither_oversold_nor_overbought() -> None:
    close = np.array([2.0 - 0.01 * bar for bar in range(60)] + [1.41] * 600)
    rsi = relative_strength_index(close)
    assert rsi[60] < 1
    assert rsi[-1] == 50


def test_series_shorter_than_the_warm_up_is_all_warm_up() -> None:
    every = [indicator(name) for name in SIGNATURES if name not in ("obv", "ad_line")]
    for values in compute_indicators(bars_of_closes([1.0]), every).values():
        assert len(values) == 1
        assert np.isnan(values).all()


def test_every_output_has_its_name_and_its_source() -> None:
    bars = make_bars(100)
    values = compute_indicators(bars, [indicator("rsi"), indicator("macd"), indicator("rsi", period=21, source="open")])
    assert list(values) == ["rsi_14", "macd_12_26_9", "macd_12_26_9.signal", "macd_12_26_9.hist", "rsi_21_open"]
    np.testing.assert_array_equal(values["rsi_21_open"], relative_strength_index(bars.open, 21))


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("high", ["high"]),
        ("low", ["low"]),
        ("hl2", ["high", "low"]),
        ("hlc3", ["high", "low", "close"]),
        ("ohlc4", ["open", "high", "low", "close"]),
    ],
)
def test_source_is_the_price_it_names(source: str, columns: list[str]) -> None:
    bars = make_bars(60)
    prices = sum(getattr(bars, column) for column in columns) / len(columns)
    values = compute_indicators(bars, [indicator("sma", period=5, source=source)])
    np.testing.assert_allclose(values[f"sma_5_{source}.level"], simple_moving_average(prices, 5), rtol=1e-14)


def test_price_overlay_enters_as_close_over_it_and_level_is_the_price() -> None:
    bars = make_bars(100)
    average = simple_moving_average(bars.close, 20)
    values = compute_indicators(bars, [indicator("sma"), indicator("bbands")])
    np.testing.assert_allclose(values["sma_20"], bars.close / average, rtol=1e-14)
    np.testing.assert_allclose(values["sma_20.level"], average, rtol=1e-14)
    np.testing.assert_array_equal(values["bbands_20"], values["sma_20"])
    assert np.nanmax(np.abs(values["bbands_20.upper"] - 1)) < 0.1
    is_above_T = values["bbands_20.percent_b"][19:] > 1
    np.testing.assert_array_equal(is_above_T, values["bbands_20.upper"][19:] > 1)


def test_overlay_below_zero_counts_as_the_largest_ratio() -> None:
    close = np.array([1.0] * 19 + [1000.0, 1.0])
    values = compute_indicators(bars_of_closes(close), [indicator("bbands", num_std=4)])
    assert values["bbands_20_4.lower"][20] == 1_000


def test_what_is_not_wanted_is_not_returned() -> None:
    every = [indicator("sma"), indicator("bbands"), indicator("rsi")]
    bars = make_bars(60)
    full = compute_indicators(bars, every)
    wanted = {"sma_20.level", "bbands_20.percent_b", "bbands_20"}
    some = compute_indicators(bars, every, wanted=wanted)
    assert set(some) == wanted
    for name, values in some.items():
        np.testing.assert_array_equal(values, full[name])


def test_bars_are_not_changed() -> None:
    bars = make_bars(120)
    before = bars.digest()
    compute_indicators(bars, [indicator(name) for name in SIGNATURES])
    assert bars.digest() == before


def test_threads_change_no_bit() -> None:
    bars = make_bars(16_000)  # times the number of indicators: enough for threads
    every = [indicator(name) for name in SIGNATURES]
    together = compute_indicators(bars, every)
    for config in every:
        for name, values in compute_indicators(bars, [config]).items():
            np.testing.assert_array_equal(together[name], values, err_msg=name)


def test_second_rsi_is_not_dropped() -> None:
    values = compute_indicators(make_bars(100), [indicator("rsi", period=7), indicator("rsi", period=21)])
    assert set(values) == {"rsi_7", "rsi_21"}
    assert not np.allclose(values["rsi_7"][21:], values["rsi_21"][21:])


def test_indicator_that_fails_is_an_error_and_never_left_out() -> None:
    class Unreadable:
        open = make_bars(100).open

        def __len__(self) -> int:
            return 100

        @property
        def close(self) -> FloatArray:
            raise OSError("the disk is gone")

    healthy, failing = indicator("rsi", source="open"), indicator("macd")
    with pytest.raises(OSError, match="the disk is gone"):
        compute_indicators(cast(Bars, Unreadable()), [healthy, failing])


def test_value_that_is_no_finite_number_is_refused_with_its_bar() -> None:
    walk = make_bars(60)
    extreme = validate_bars(
        symbol="X",
        timeframe="1h",
        times=walk.times,
        open=walk.open,
        high=walk.high,
        low=walk.low,
        close=walk.close,
        volume=np.where(np.arange(60) >= 40, 1e308, 1.0),
    )
    with pytest.raises(InvalidBarsError, match=r"obv of X 1h is no finite number at bar 4\d .*too extreme"):
        compute_indicators(extreme, [indicator("obv")])


def test_price_overlay_that_is_infinite_is_refused() -> None:
    close = np.full(40, 1.7e308)
    with pytest.raises(InvalidBarsError, match="sma_20 of EURUSD 1h is no finite number at bar 20"):
        compute_indicators(bars_of_closes(close), [indicator("sma")])


def test_no_indicator_has_no_warm_up_and_no_values() -> None:
    assert indicator_warm_up_bars([]) == 0
    assert compute_indicators(make_bars(5), []) == {}


def test_warm_up_of_several_is_the_longest() -> None:
    assert indicator_warm_up_bars([indicator("rsi"), indicator("macd"), indicator("sma", period=3)]) == 33


def test_ichimoku_cloud_is_the_one_computed_a_displacement_before() -> None:
    """A rise in the last bars moves the lines at once, and the cloud not before `displacement` bars."""
    close = np.full(120, 1.0)
    close[100:] = 2.0
    values = compute_indicators(bars_of_closes(close), [indicator("ichimoku", feature_id="x")])
    assert values["x.level"][100] == 1.5
    assert values["x.span_b"][119] == 2.0  # close 2 over a cloud still at 1
    assert values["x.cloud"][100:].tolist() == [1.0] * 20


def test_vwap_knows_no_sessions() -> None:
    bars = make_bars(72)
    cut = bars.rows(slice(13, 72))
    vwap = indicator("vwap", period=10)
    whole, part = compute_indicators(bars, [vwap])["vwap_10"], compute_indicators(cut, [vwap])["vwap_10"]
    np.testing.assert_allclose(part[9:], whole[22:], rtol=1e-13)


def test_registry_computes_exactly_what_the_grammar_has() -> None:
    assert list(INDICATORS) == list(SIGNATURES)
    assert len(INDICATORS) >= 30
    bars = make_bars(100)
    for name, entry in INDICATORS.items():
        assert entry.signature is SIGNATURES[name]
        assert entry.signature.takes_source == ("source" in entry.inputs)
        assert entry.signature.needs_volume == ("volume" in entry.inputs)
        inputs = tuple(bars.close if column == "source" else getattr(bars, column) for column in entry.inputs)
        outputs = entry.compute(inputs, entry.signature.check({}))
        assert len(outputs) == len([o for o in entry.signature.all_outputs if o.name != "level"])


def test_unknown_indicator_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidIndicatorError, match="unknown indicator 'mcad'; did you mean 'macd'"):
        find_indicator("mcad")


def test_alias_is_the_same_indicator() -> None:
    assert find_indicator("Relative_Strength_Index") is find_indicator("rsi")
