from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.alignment import resample
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.errors import InvalidIndicatorError, InvalidInputError
from ktrdr_core.features.engineer import (
    BLOCK_ROWS,
    FeatureColumn,
    FeatureMatrix,
    SymbolValues,
    build_features,
    build_memberships,
    leading_nan,
)
from ktrdr_core.features.layout import build_layout
from ktrdr_core.features.price_context import PRICE_CONTEXT_NAMES, price_context
from tests.kit.builders import bars_of_closes, make_bars, strategy

RSI_ONLY = {
    "indicators": [{"name": "rsi", "period": 14}],
    "fuzzy_sets": {
        "rsi_14": {
            "low": {"type": "left_shoulder", "parameters": [0, 1]},
            "high": {"type": "right_shoulder", "parameters": [0, 1]},
        }
    },
}
TWO_TIMEFRAMES = {"training_data.timeframes": {"mode": "multi_timeframe", "list": ["4h", "1h"]}}


def rsi_strategy(**overrides: Any) -> StrategyConfig:
    return strategy(**{**RSI_ONLY, "model.features.lookback_periods": 0, **overrides})


def features_of(values: SymbolValues, bars: SymbolBars, config: StrategyConfig) -> FeatureMatrix:
    return build_features(build_memberships(values, bars, config), values, bars)


def one_timeframe(rsi: list[float], **overrides: Any) -> tuple[FeatureMatrix, Bars]:
    bars = make_bars(len(rsi))
    return features_of({"1h": {"rsi_14": np.array(rsi)}}, SymbolBars(bars), rsi_strategy(**overrides)), bars


def test_row_has_current_memberships_then_those_of_the_bars_before() -> None:
    features, _ = one_timeframe([np.nan, 0.25, 0.5, 0.75, 1.0], **{"model.features.lookback_periods": 2})
    assert features.names == (
        "rsi_14.high",
        "rsi_14.low",
        "rsi_14.high.lag_1",
        "rsi_14.low.lag_1",
        "rsi_14.high.lag_2",
        "rsi_14.low.lag_2",
    )
    assert features.X[4].tolist() == [1.0, 0.0, 0.75, 0.25, 0.5, 0.5]
    assert features.warm_up_bars == 3
    assert np.isnan(features.X[:3]).any(axis=1).all()
    assert not np.isnan(features.X[3:]).any()
    assert features.X.dtype == np.float32
    assert features.X.flags.c_contiguous


def test_columns_say_where_they_come_from() -> None:
    config = rsi_strategy(
        **TWO_TIMEFRAMES,
        **{
            "model.features.lookback_periods": 1,
            "model.features.include_raw_indicators": True,
            "model.features.include_price_context": True,
            "model.symbol_embedding_dim": 2,
            "training_data.symbols": {"mode": "multi_symbol", "list": ["EURUSD", "GBPUSD"]},
        },
    )
    assert build_layout(config).columns == (
        FeatureColumn("rsi_14.high", "rsi_14", "1h"),
        FeatureColumn("rsi_14.low", "rsi_14", "1h"),
        FeatureColumn("rsi_14.high@4h", "rsi_14", "4h"),
        FeatureColumn("rsi_14.low@4h", "rsi_14", "4h"),
        FeatureColumn("rsi_14.high.lag_1", "rsi_14", "1h", 1),
        FeatureColumn("rsi_14.low.lag_1", "rsi_14", "1h", 1),
        FeatureColumn("rsi_14.high@4h.lag_1", "rsi_14", "4h", 1),
        FeatureColumn("rsi_14.low@4h.lag_1", "rsi_14", "4h", 1),
        FeatureColumn("rsi_14", "rsi_14", "1h"),
        FeatureColumn("rsi_14@4h", "rsi_14", "4h"),
        *(FeatureColumn(name, "price", "1h") for name in PRICE_CONTEXT_NAMES),
        FeatureColumn("symbol.EURUSD", "symbol", "1h"),
        FeatureColumn("symbol.GBPUSD", "symbol", "1h"),
    )


def test_recurrent_model_has_no_lag_columns() -> None:
    config = rsi_strategy(**{"model.type": "lstm", "model.features.lookback_periods": 8})
    assert build_layout(config).columns == (
        FeatureColumn("rsi_14.high", "rsi_14", "1h"),
        FeatureColumn("rsi_14.low", "rsi_14", "1h"),
    )


def test_no_lookback_is_the_memberships_alone() -> None:
    features, _ = one_timeframe([0.25, 0.5])
    assert features.X.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert features.warm_up_bars == 0


def test_fewer_bars_than_lags_are_all_warm_up() -> None:
    features, _ = one_timeframe([0.25, 0.5], **{"model.features.lookback_periods": 5})
    assert features.X.shape == (2, 12)
    assert features.warm_up_bars == 2


@pytest.mark.parametrize("num_lags", [0, 1, 3])
def test_lags_over_many_blocks_are_the_rows_before(num_lags: int) -> None:
    rsi = np.random.default_rng(2).random(2 * BLOCK_ROWS + 11)
    features, _ = one_timeframe(rsi.tolist(), **{"model.features.lookback_periods": num_lags})
    expected = np.stack([rsi.astype(np.float32), (1 - rsi).astype(np.float32)], axis=1)
    for lag in range(num_lags + 1):
        own = features.X[:, 2 * lag : 2 * lag + 2]
        assert np.isnan(own[:lag]).all()
        np.testing.assert_allclose(own[lag:], expected[: len(rsi) - lag], rtol=1e-6)


def test_higher_timeframe_is_that_of_the_last_closed_bar_and_its_lags_are_base_bars() -> None:
    bars = make_bars(16)
    longer = resample(bars, "4h")  # the first bar is that of 20:00 to 24:00, of which two hours are there
    values = {"1h": {"rsi_14": np.linspace(0, 0.15, 16)}, "4h": {"rsi_14": np.arange(len(longer)) / 10}}
    config = rsi_strategy(**TWO_TIMEFRAMES, **{"model.features.lookback_periods": 1})
    features = features_of(values, SymbolBars(bars, (longer,)), config)
    column, lagged = (features.names.index(f"rsi_14.high@4h{suffix}") for suffix in ("", ".lag_1"))
    # Bars open at 22:00, 23:00, 00:00 ...; those that close at 00:00, 04:00, 08:00 are the first to see a bar.
    seen = [np.nan] + [0.0] * 4 + [0.1] * 4 + [0.2] * 4 + [0.3] * 3
    np.testing.assert_allclose(features.X[:, column], seen, rtol=1e-6)
    np.testing.assert_allclose(features.X[:, lagged], [np.nan, *seen[:-1]], rtol=1e-6)
    assert features.warm_up_bars == 2


def test_raw_indicators_are_the_values_themselves() -> None:
    bars = make_bars(12)
    longer = resample(bars, "4h")
    rsi = np.array([np.nan, np.nan, *np.linspace(30, 70, 10)])
    values = {"1h": {"rsi_14": rsi}, "4h": {"rsi_14": np.arange(len(longer), dtype=np.float64)}}
    config = rsi_strategy(
        **TWO_TIMEFRAMES, **{"model.features.include_raw_indicators": True, "model.features.lookback_periods": 1}
    )
    features = features_of(values, SymbolBars(bars, (longer,)), config)
    assert features.names[-2:] == ("rsi_14", "rsi_14@4h")
    np.testing.assert_array_equal(features.X[:, -2], rsi.astype(np.float32))
    assert features.X[2:, -1].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_price_context_by_hand() -> None:
    bars = make_bars(20)
    context = price_context(bars)
    t = 7
    assert context["price.return_1"][t] == pytest.approx(bars.close[t] / bars.close[t - 1] - 1)
    assert context["price.range"][t] == pytest.approx((bars.high[t] - bars.low[t]) / bars.close[t])
    assert context["price.body"][t] == pytest.approx((bars.close[t] - bars.open[t]) / bars.close[t])
    expected = (bars.close[t] - bars.low[t]) / (bars.high[t] - bars.low[t])
    assert context["price.close_position"][t] == pytest.approx(expected)
    assert np.isnan(context["price.return_1"][0])


def test_bar_without_a_range_closes_in_its_middle() -> None:
    assert price_context(bars_of_closes([1, 2]))["price.close_position"].tolist() == [0.5, 0.5]


def test_price_context_is_added_once_and_not_lagged() -> None:
    features, bars = one_timeframe(
        np.linspace(0, 1, 20).tolist(),
        **{"model.features.lookback_periods": 1, "model.features.include_price_context": True},
    )
    assert features.names[-5:] == ("rsi_14.low.lag_1", *PRICE_CONTEXT_NAMES)
    assert features.warm_up_bars == 1
    for column, values in enumerate(price_context(bars).values(), start=4):
        np.testing.assert_array_equal(features.X[:, column], values.astype(np.float32))


def test_price_context_alone_needs_one_bar_before() -> None:
    features, _ = one_timeframe([0.1, 0.2, 0.3], **{"model.features.include_price_context": True})
    assert features.warm_up_bars == 1


def identity_strategy() -> StrategyConfig:
    return rsi_strategy(
        **{
            "model.symbol_embedding_dim": 2,
            "training_data.symbols": {"mode": "multi_symbol", "list": ["GBPUSD", "EURUSD"]},
        }
    )


def test_symbol_is_one_hot_in_the_order_of_the_strategy() -> None:
    for symbol, expected in (("GBPUSD", [1, 0]), ("EURUSD", [0, 1])):
        bars = make_bars(3, symbol=symbol)
        features = features_of({"1h": {"rsi_14": np.full(3, 0.5)}}, SymbolBars(bars), identity_strategy())
        assert features.names[-2:] == ("symbol.GBPUSD", "symbol.EURUSD")
        assert features.X[:, -2:].tolist() == [expected] * 3


def test_symbol_the_model_does_not_know_is_refused() -> None:
    bars = make_bars(3, symbol="USDJPY")
    with pytest.raises(InvalidInputError, match=r"symbol USDJPY is none of those .* \(GBPUSD, EURUSD\); use one of"):
        features_of({"1h": {"rsi_14": np.full(3, 0.5)}}, SymbolBars(bars), identity_strategy())


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e300])
def test_value_that_is_none_after_the_warm_up_is_refused_with_bar_and_name(broken: float) -> None:
    bars = make_bars(6)
    with pytest.raises(InvalidIndicatorError, match=r"rsi_14 of EURUSD 1h is \S+ at bar 4 \(2017-01-02T02:00:00Z\)"):
        leading_nan(np.array([np.nan, 1, 2, 3, broken, 5]), "rsi_14", bars)


@pytest.mark.parametrize("later", [np.nan, 1.0, 1e300])
@pytest.mark.parametrize(("broken", "shown"), [(np.inf, "inf"), (-1e300, r"-1e\+300")])
def test_value_no_float32_can_hold_is_no_warm_up(broken: float, shown: str, later: float) -> None:
    with pytest.raises(InvalidIndicatorError, match=f"is {shown} at bar 0 .* after its warm-up of 0 bars"):
        leading_nan(np.array([broken, np.nan, later]), "rsi_14", make_bars(3))


def test_warm_up_is_counted() -> None:
    bars = make_bars(4)
    assert leading_nan(np.array([np.nan, np.nan, 1, 2]), "rsi_14", bars) == 2
    assert leading_nan(np.array([1.0, 2, 3, 4]), "rsi_14", bars) == 0
    assert leading_nan(np.full(4, np.nan), "rsi_14", bars) == 4
    assert leading_nan(np.empty(0), "rsi_14", bars.head(0)) == 0


def test_values_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="rsi_14 has 3 values for 4 bars"):
        leading_nan(np.ones(3), "rsi_14", make_bars(4))
