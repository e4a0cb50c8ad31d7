from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ktrdr_core.config.loader import load_strategy, strategy_from_dict
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.alignment import resample
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.series_features import (
    compute_features,
    compute_symbol_indicators,
    compute_symbol_memberships,
    feature_warm_up_bars,
    fit_quantile_sets,
    has_quantile_sets,
    measure_set_coverage,
)
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidStrategyError
from ktrdr_core.features.engineer import build_features
from ktrdr_core.fuzzy.memberships import MEMBERSHIP_FUNCTIONS
from ktrdr_core.indicators.compute import compute_indicators
from tests.kit.builders import REPOSITORY, bars_of_closes, make_bars, strategy

MULTI: dict[str, Any] = {
    "training_data.timeframes": {"mode": "multi_timeframe", "list": ["1h", "4h", "1d"]},
    "indicators.1.timeframes": ["1h", "4h"],
    "fuzzy_sets.rsi@4h": {"mid": {"type": "gaussian", "parameters": [50, 10]}},
    "indicators.0.period": 5,
    "model.features.lookback_periods": 3,
    "model.features.include_raw_indicators": True,
    "model.features.include_price_context": True,
}


def symbol_bars(n: int = 900, *, symbol: str = "EURUSD", seed: int = 7) -> SymbolBars:
    bars = make_bars(n, seed, symbol=symbol)
    return SymbolBars(bars, (resample(bars, "4h"), resample(bars, "1d")))


def slow_aligned(base: Bars, higher: Bars, values: Any) -> Any:
    """Go through the base bars one by one and remember the last longer bar that has closed."""
    base_ns = Timeframe.parse(base.timeframe).duration_ns
    higher_ns = Timeframe.parse(higher.timeframe).duration_ns
    aligned, pointer = [], -1
    for time in base.times.tolist():
        while pointer + 1 < len(higher) and higher.times[pointer + 1] + higher_ns <= time + base_ns:
            pointer += 1
        aligned.append(values[pointer] if pointer >= 0 else np.nan)
    return np.array(aligned)


def slow_columns(bars: SymbolBars, config: StrategyConfig) -> dict[str, Any]:
    """Compute each column by itself, from its name."""
    columns: dict[str, Any] = {}
    for own in (bars.base, *bars.higher):
        computed = compute_indicators(
            own, [i for i in config.indicators if i.timeframes is None or own.timeframe in i.timeframes]
        )
        suffix = "" if own is bars.base else f"@{own.timeframe}"
        for name, values in computed.items():
            sets = config.fuzzy_sets.get(f"{name}@{own.timeframe}") or config.fuzzy_sets.get(name)
            for set_name, fuzzy_set in (sets or {}).items():
                membership = MEMBERSHIP_FUNCTIONS[fuzzy_set.type](values, fuzzy_set.parameters)
                columns[f"{name}.{set_name}{suffix}"] = slow_aligned(bars.base, own, membership)
                columns[f"{name}{suffix}"] = slow_aligned(bars.base, own, values)
    return columns


def test_every_column_is_the_one_its_name_says() -> None:
    config, bars = strategy(**MULTI), symbol_bars()
    features = compute_features(bars, config)
    columns = slow_columns(bars, config)
    seen = set()
    for column, name in enumerate(features.names):
        if name.startswith("price."):
            continue
        plain, _, lag = name.partition(".lag_")
        expected = columns[plain].astype(np.float32)
        if lag:
            expected = np.concatenate([np.full(int(lag), np.nan, dtype=np.float32), expected[: -int(lag)]])
        np.testing.assert_array_equal(features.X[:, column], expected, err_msg=name)
        seen.add(plain)
    assert seen == set(columns)


def test_set_for_one_timeframe_goes_before_the_general_one_there_only() -> None:
    names = compute_features(symbol_bars(), strategy(**MULTI)).names
    assert "rsi_5.oversold" in names
    assert "rsi_5.oversold@1d" in names
    assert "rsi_5.mid@4h" in names
    assert not {"rsi_5.mid", "rsi_5.oversold@4h", "macd_12_26_9.negative@1d"} & set(names)


def test_steps_one_by_one_give_the_same_matrix() -> None:
    config, bars = strategy(**MULTI), symbol_bars()
    values = compute_symbol_indicators(bars, config)
    memberships = compute_symbol_memberships(values, bars, config)
    features = build_features(memberships, values, bars)
    assert memberships.names == features.names[: len(memberships.names)]
    assert memberships.names[-1] == "rsi_5.oversold@1d"
    expected = compute_features(bars, config)
    np.testing.assert_array_equal(features.X, expected.X)
    assert features.columns == expected.columns
    assert list(values) == ["1h", "4h", "1d"]
    assert set(values["1d"]) == {"rsi_5"}
    assert len(values["4h"]["rsi_5"]) == len(bars.higher[0])


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model.features.include_price_context": True, "model.features.lookback_periods": 5},
        {"model.type": "lstm", "model.features.lookback_periods": 5},
        MULTI,
        {**MULTI, "model.type": "gru"},
    ],
)
@pytest.mark.parametrize("n", [1, 30, 130, 900])
def test_declared_warm_up_is_the_real_one(overrides: dict[str, Any], n: int) -> None:
    config, bars = strategy(**overrides), symbol_bars(n)
    if len(config.timeframes) == 1:
        bars = SymbolBars(bars.base)
    features = compute_features(bars, config)
    assert feature_warm_up_bars(bars, config) == features.warm_up_bars
    is_complete = ~np.isnan(features.X).any(axis=1)
    assert is_complete.tolist() == [False] * features.warm_up_bars + [True] * (n - features.warm_up_bars)


def test_gap_over_a_weekend_changes_nothing_but_the_bars_seen() -> None:
    kept = np.ones(900, dtype=bool)
    kept[300:348] = False
    full = make_bars(900)
    base = Bars(
        "EURUSD", "1h", *(getattr(full, name)[kept] for name in ("times", "open", "high", "low", "close", "volume"))
    )
    bars = SymbolBars(base, (resample(base, "4h"), resample(base, "1d")))
    config = strategy(**MULTI)
    features = compute_features(bars, config)
    columns = slow_columns(bars, config)
    for name in ("rsi_5.mid@4h", "rsi_5.oversold@1d"):
        own = features.X[:, features.names.index(name)]
        np.testing.assert_array_equal(own, columns[name].astype(np.float32))


def test_prefix_without_a_closed_longer_bar_has_no_complete_row() -> None:
    bars = symbol_bars().head(1)
    assert len(bars.higher[1]) == 0
    features = compute_features(bars, strategy(**MULTI))
    assert features.X.shape[0] == 1
    assert features.warm_up_bars == 1


def test_shipped_strategy_keeps_its_columns() -> None:
    config = load_strategy(REPOSITORY / "strategies" / "neuro_mean_reversion.yaml")
    features = compute_features(SymbolBars(make_bars(200)), config)
    sets = [
        "macd_12_26_9.falling",
        "macd_12_26_9.flat",
        "macd_12_26_9.rising",
        "macd_12_26_9.hist.gaining",
        "macd_12_26_9.hist.losing",
        "macd_12_26_9.hist.steady",
        "rsi_14.neutral",
        "rsi_14.overbought",
        "rsi_14.oversold",
        "rsi_14.strong",
        "rsi_14.weak",
    ]
    expected = sets + [f"{name}.lag_{lag}" for lag in range(1, 5) for name in sets]
    expected += ["price.return_1", "price.range", "price.body", "price.close_position"]
    assert list(features.names) == expected


QUANTILES: dict[str, Any] = {
    "fuzzy_sets.rsi": {
        "low": {"type": "quantile", "parameters": [0.1, 0.4], "shoulder": "left"},
        "mid": {"type": "quantile", "parameters": [0.2, 0.5, 0.8]},
        "high": {"type": "right_shoulder", "parameters": [50, 70]},
    }
}


def fitted_on(config: StrategyConfig, rows: dict[str, Any], bars: dict[str, SymbolBars]) -> StrategyConfig:
    values = {symbol: compute_symbol_indicators(own, config) for symbol, own in bars.items()}
    return fit_quantile_sets(values, bars, rows, config)


def test_quantile_sets_see_the_training_part_only() -> None:
    config, own = strategy(**QUANTILES), SymbolBars(make_bars(600))
    rows = {"EURUSD": np.arange(50, 400)}
    fitted = fitted_on(config, rows, {"EURUSD": own})
    rsi = compute_indicators(own.base, config.indicators)["rsi_14"]
    sets = fitted.fuzzy_sets["rsi_14"]
    assert (sets["low"].type, sets["mid"].type) == ("left_shoulder", "triangular")
    np.testing.assert_allclose(sets["low"].parameters, np.quantile(rsi[50:400], [0.1, 0.4]))
    np.testing.assert_allclose(sets["mid"].parameters, np.quantile(rsi[50:400], [0.2, 0.5, 0.8]))
    assert sets["high"] == config.fuzzy_sets["rsi_14"]["high"]
    assert fitted.fuzzy_sets["macd_12_26_9"] == config.fuzzy_sets["macd_12_26_9"]
    other = make_bars(600, seed=99)
    changed = Bars(
        "EURUSD",
        "1h",
        own.base.times,
        *(
            np.concatenate([getattr(own.base, name)[:400], getattr(other, name)[400:]])
            for name in ("open", "high", "low", "close", "volume")
        ),
    )
    assert fitted_on(config, rows, {"EURUSD": SymbolBars(changed)}) == fitted


def test_warm_up_in_the_training_part_is_no_value_of_it() -> None:
    config, own = strategy(**QUANTILES), SymbolBars(make_bars(600))
    from_start = fitted_on(config, {"EURUSD": np.arange(400)}, {"EURUSD": own})
    assert from_start == fitted_on(config, {"EURUSD": np.arange(14, 400)}, {"EURUSD": own})


def test_quantile_sets_are_fitted_per_timeframe_over_all_symbols() -> None:
    config = strategy(**{**MULTI, **QUANTILES})
    bars = {"EURUSD": symbol_bars(), "GBPUSD": symbol_bars(700, symbol="GBPUSD", seed=8)}
    rows = {"EURUSD": np.arange(200, 600), "GBPUSD": np.arange(100, 500)}
    fitted = fitted_on(config, rows, bars)
    assert set(fitted.fuzzy_sets) == {"rsi_5", "rsi_5@4h", "rsi_5@1d", "macd_12_26_9"}
    assert fitted.fuzzy_sets["rsi_5@4h"] == config.fuzzy_sets["rsi_5@4h"]
    samples = []
    for symbol, own in bars.items():
        daily = compute_indicators(own.higher[1], config.indicators[:1])["rsi_5"]
        seen = slow_aligned(own.base, own.higher[1], np.arange(len(own.higher[1])))[rows[symbol]]
        indices = sorted({int(index) for index in seen if not np.isnan(index)})
        samples += [daily[index] for index in indices if not np.isnan(daily[index])]
    np.testing.assert_allclose(fitted.fuzzy_sets["rsi_5@1d"]["mid"].parameters, np.quantile(samples, [0.2, 0.5, 0.8]))
    assert not has_quantile_sets(fitted)
    assert strategy_from_dict(fitted.to_dict()) == fitted
    compute_features(bars["EURUSD"], fitted)


def test_quantiles_for_one_timeframe_leave_the_others_alone() -> None:
    config = strategy(**{**MULTI, "fuzzy_sets.rsi@1h": {"mid": {"type": "quantile", "parameters": [0.2, 0.5, 0.8]}}})
    fitted = fitted_on(config, {"EURUSD": np.arange(100, 500)}, {"EURUSD": symbol_bars()})
    assert set(fitted.fuzzy_sets) == set(config.fuzzy_sets)
    assert fitted.fuzzy_sets["rsi_5@1h"]["mid"].type == "triangular"
    assert fitted.fuzzy_sets["rsi_5"] == config.fuzzy_sets["rsi_5"]


def test_strategy_without_quantiles_is_returned_as_it_is() -> None:
    config = strategy()
    assert fit_quantile_sets({}, {}, {}, config) is config


def test_quantiles_of_a_flat_market_are_refused_by_name() -> None:
    own = SymbolBars(bars_of_closes(np.full(300, 1.1)))
    with pytest.raises(InvalidStrategyError, match=r"fuzzy_sets\.rsi_14\.low: quantiles 0\.1, 0\.4 of the 1h training"):
        fitted_on(strategy(**QUANTILES), {"EURUSD": np.arange(100, 200)}, {"EURUSD": own})


def test_coverage_is_that_of_the_training_part_of_each_timeframe() -> None:
    narrow = {"top": {"type": "triangular", "parameters": [98, 99, 100]}}
    config = strategy(**{**MULTI, "fuzzy_sets.rsi@4h": narrow})
    bars = {"EURUSD": symbol_bars(), "GBPUSD": symbol_bars(700, symbol="GBPUSD", seed=8)}
    rows = {symbol: np.arange(200, 600) for symbol in bars}
    values = {symbol: compute_symbol_indicators(own, config) for symbol, own in bars.items()}
    coverage = {(own.values, own.timeframe): own for own in measure_set_coverage(values, bars, rows, config)}
    assert set(coverage) == {(n, t) for n in ("rsi_5", "macd_12_26_9") for t in ("1h", "4h")} | {("rsi_5", "1d")}
    assert coverage["rsi_5", "1h"].num_values == 800
    assert coverage["rsi_5", "4h"].num_values == 202
    assert coverage["rsi_5", "4h"].uncovered_share > 0.9
    assert coverage["rsi_5", "4h"].example == values["EURUSD"]["4h"]["rsi_5"][50 - 1]
    assert [len(own.warnings()) > 0 for key, own in coverage.items() if key == ("rsi_5", "4h")] == [True]
