from __future__ import annotations

from ktrdr_core.config.strategy import FuzzySetConfig, IndicatorConfig
from ktrdr_core.fuzzy.timeframe_sets import timeframe_indicators, timeframe_sets

RSI = IndicatorConfig.model_validate({"name": "rsi", "period": 14})
MACD = IndicatorConfig.model_validate({"name": "macd", "timeframes": ["1h"]})


def triangle(peak: float) -> FuzzySetConfig:
    return FuzzySetConfig(type="triangular", parameters=(peak - 1, peak, peak + 1))


SETS = {
    "rsi_14@4h": {"b": triangle(4.0)},
    "rsi_14": {"low": triangle(1.0), "high": triangle(2.0)},
    "macd_12_26_9.hist": {"up": triangle(3.0)},
}


def test_key_with_a_timeframe_goes_before_the_general_one_there() -> None:
    assert [(own.key, own.name) for own in timeframe_sets([RSI], SETS, "4h")] == [("rsi_14@4h", "b")]
    assert [(own.key, own.name) for own in timeframe_sets([RSI], SETS, "1d")] == [
        ("rsi_14", "high"),
        ("rsi_14", "low"),
    ]


def test_indicator_counts_on_its_own_timeframes_only() -> None:
    assert [own.values for own in timeframe_sets([RSI, MACD], SETS, "1h")] == ["macd_12_26_9.hist", "rsi_14", "rsi_14"]
    assert [own.values for own in timeframe_sets([RSI, MACD], SETS, "1d")] == ["rsi_14", "rsi_14"]
    assert timeframe_indicators([RSI, MACD], SETS, "1d") == [RSI]
    assert timeframe_indicators([RSI, MACD], SETS, "1h") == [RSI, MACD]


def test_sets_do_not_depend_on_the_order_in_the_file() -> None:
    turned = {key: dict(reversed(sets.items())) for key, sets in reversed(SETS.items())}
    for timeframe in ("1h", "4h", "1d"):
        assert timeframe_sets([RSI, MACD], SETS, timeframe) == timeframe_sets([MACD, RSI], turned, timeframe)


def test_named_output_belongs_to_its_indicator() -> None:
    assert [own.indicator for own in timeframe_sets([RSI, MACD], SETS, "1h")] == ["macd_12_26_9", "rsi_14", "rsi_14"]


def test_indicator_without_sets_on_a_timeframe_is_not_computed_there() -> None:
    assert timeframe_indicators([RSI], {"rsi_14@4h": {"b": triangle(4.0)}}, "1h") == []
