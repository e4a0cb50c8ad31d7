"""RSI and MACD against slow textbook versions written here from the books, one bar at a time."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pytest

from ktrdr_core.config.signatures import NOT_BUILT_INDICATORS, SIGNATURES
from ktrdr_core.config.strategy import IndicatorConfig
from ktrdr_core.data.bars import Bars, FloatArray
from ktrdr_core.errors import InvalidIndicatorError, UnsupportedError
from ktrdr_core.indicators.compute import compute_indicators, indicator_warm_up_bars
from ktrdr_core.indicators.momentum import moving_average_convergence_divergence, relative_strength_index
from ktrdr_core.indicators.registry import INDICATORS, find_indicator
from tests.kit.builders import bars_of_closes, make_bars


def indicator(name: str, **fields: Any) -> IndicatorConfig:
    return IndicatorConfig.model_validate({"name": name, **fields})


def textbook_rsi(close: list[float], period: int) -> list[float]:
    """Wilder 1978: first averages are plain means of the first `period` changes, then (before x (n - 1) + new) / n."""
    changes = [after - before for before, after in itertools.pairwise(close)]
    gain = sum(max(change, 0) for change in changes[:period]) / period
    loss = sum(max(-change, 0) for change in changes[:period]) / period
    result = [float("nan")] * period
    for index in range(period - 1, len(changes)):
        if index >= period:
            gain = (gain * (period - 1) + max(changes[index], 0)) / period
            loss = (loss * (period - 1) + max(-changes[index], 0)) / period
        result.append(50.0 if gain + loss == 0 else 100 * gain / (gain + loss))
    return result


def textbook_ema(values: list[float], period: int) -> list[float]:
    """Exponential average that begins with the mean of the first `period` values."""
    average = sum(values[:period]) / period
    result = [float("nan")] * (period - 1) + [average]
    for value in values[period:]:
        average += 2 / (period + 1) * (value - average)
        result.append(average)
    return result


def textbook_macd(close: list[float], fast: int, slow: int, signal: int) -> np.ndarray:
    """Both averages begin at bar slow - 1, each with the mean of its own last bars up to there, as TA-Lib does."""
    fast_average = [float("nan")] * (slow - fast) + textbook_ema(close[slow - fast :], fast)
    line = [f - s for f, s in zip(fast_average, textbook_ema(close, slow), strict=True)]
    signal_line = [float("nan")] * (slow - 1) + textbook_ema(line[slow - 1 :], signal)
    is_warm = np.isnan(signal_line)
    table = np.array([line, signal_line, np.subtract(line, signal_line)])
    table[:, is_warm] = np.nan
    return table


@pytest.mark.parametrize("period", [2, 14, 30])
def test_rsi_is_the_textbook_one(period: int) -> None:
    close = make_bars(400).close
    np.testing.assert_allclose(
        relative_strength_index(close, period), textbook_rsi(close.tolist(), period), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("periods", [(12, 26, 9), (2, 3, 2), (5, 35, 5)])
def test_macd_is_the_textbook_one(periods: tuple[int, int, int]) -> None:
    close = make_bars(400).close
    actual = np.array(moving_average_convergence_divergence(close, *periods))
    np.testing.assert_allclose(actual, textbook_macd(close.tolist(), *periods), rtol=0, atol=1e-12)


def test_flat_prices_are_neither_oversold_nor_overbought() -> None:
    rsi = relative_strength_index(np.full(60, 1.05), 14)
    assert np.isnan(rsi[:14]).all()
    assert (rsi[14:] == 50).all()


def test_flat_start_then_a_move_is_the_textbook_one() -> None:
    close = np.array([1.05] * 30 + [1.04, 1.03] + [1.03] * 5 + [1.06])
    np.testing.assert_allclose(relative_strength_index(close), textbook_rsi(close.tolist(), 14), atol=1e-9)


def test_prices_that_only_fall_stay_at_zero() -> None:
    rsi = relative_strength_index(np.linspace(2.0, 1.0, 60), 14)
    assert rsi[14:] == pytest.approx(0)


def test_series_shorter_than_the_period_is_all_warm_up() -> None:
    assert np.isnan(relative_strength_index(np.array([1.0, 2.0]), 14)).all()
    values = compute_indicators(bars_of_closes([1.0, 2.0]), [indicator("rsi"), indicator("macd")])
    assert all(np.isnan(array).all() and len(array) == 2 for array in values.values())


def test_every_output_has_its_name() -> None:
    bars = make_bars(100)
    values = compute_indicators(bars, [indicator("rsi"), indicator("macd"), indicator("rsi", period=21, source="open")])
    assert list(values) == ["rsi_14", "macd_12_26_9", "macd_12_26_9.signal", "macd_12_26_9.hist", "rsi_21_open"]
    np.testing.assert_array_equal(values["rsi_21_open"], relative_strength_index(bars.open, 21))


def test_second_rsi_is_not_dropped() -> None:
    values = compute_indicators(make_bars(100), [indicator("rsi", period=7), indicator("rsi", period=21)])
    assert set(values) == {"rsi_7", "rsi_21"}
    assert not np.allclose(values["rsi_7"][21:], values["rsi_21"][21:])


def test_indicator_that_fails_is_an_error_and_never_left_out() -> None:
    class Unreadable:
        open = make_bars(100).open

        @property
        def close(self) -> FloatArray:
            raise OSError("the disk is gone")

    healthy, failing = indicator("rsi", source="open"), indicator("macd")
    with pytest.raises(OSError, match="the disk is gone"):
        compute_indicators(cast(Bars, Unreadable()), [healthy, failing])


@pytest.mark.parametrize(
    "config", [indicator("rsi"), indicator("rsi", period=2), indicator("macd"), indicator("macd", signal_period=30)]
)
def test_warm_up_is_nan_and_as_long_as_declared(config: IndicatorConfig) -> None:
    warm_up = indicator_warm_up_bars([config])
    for values in compute_indicators(make_bars(200), [config]).values():
        assert np.isnan(values[:warm_up]).all()
        assert not np.isnan(values[warm_up:]).any()


@pytest.mark.parametrize("config", [indicator("rsi"), indicator("macd")])
@pytest.mark.parametrize("kept", [40, 77, 199])
def test_values_do_not_change_when_the_future_is_cut_off(config: IndicatorConfig, kept: int) -> None:
    bars = make_bars(200)
    cut = compute_indicators(bars.head(kept), [config])
    for name, values in compute_indicators(bars, [config]).items():
        np.testing.assert_array_equal(values[:kept], cut[name])


def test_registry_computes_exactly_what_the_grammar_calls_built() -> None:
    assert set(INDICATORS) == set(SIGNATURES)
    assert not set(SIGNATURES) & NOT_BUILT_INDICATORS
    for name, entry in INDICATORS.items():
        assert entry.signature is SIGNATURES[name]
        outputs = entry.compute(make_bars(100).close, entry.signature.check({}))
        assert len(outputs) == 1 + len(entry.signature.outputs)


def test_unknown_indicator_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidIndicatorError, match="unknown indicator 'mcad'; did you mean 'macd'"):
        find_indicator("mcad")


def test_indicator_not_built_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="indicator 'atr' is not built yet; this version computes rsi, macd"):
        compute_indicators(make_bars(50), [indicator("atr", period=14)])


def test_alias_is_the_same_indicator() -> None:
    assert find_indicator("Relative_Strength_Index") is find_indicator("rsi")


@pytest.mark.parametrize("periods", [(26, 12, 9), (12, 12, 9), (1, 26, 9), (12, 26, 1)])
def test_macd_periods_out_of_range_are_refused(periods: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidIndicatorError):
        moving_average_convergence_divergence(np.ones(100), *periods)


def test_rsi_period_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidIndicatorError, match="period must be at least 2, was 1"):
        relative_strength_index(np.ones(100), 1)
