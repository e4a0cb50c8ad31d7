from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_core.config.signatures import SIGNATURES
from ktrdr_core.config.strategy import IndicatorConfig, LabelsConfig, StrategyConfig
from ktrdr_core.data.alignment import close_times, last_closed, resample
from ktrdr_core.data.bars import BAR_COLUMNS, Bars, FloatArray
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.leakage import WINDOW_BARS, FeatureBuilder, Labeler, LeakageReport, check_leakage
from ktrdr_core.datasets.series_features import compute_features
from ktrdr_core.errors import CancellationError, LeakageError
from ktrdr_core.features.engineer import FeatureColumn, FeatureMatrix
from ktrdr_core.fuzzy.memberships import triangular
from ktrdr_core.indicators.compute import compute_indicators
from ktrdr_core.labels.labels import NO_LABEL, Labels
from ktrdr_core.labels.registry import generate_labels
from tests.kit.builders import make_bars, strategy

MULTI: dict[str, Any] = {
    "training_data.timeframes": {"mode": "multi_timeframe", "list": ["1h", "4h", "1d"]},
    "indicators.0.period": 5,
    "indicators.1.timeframes": ["1h", "4h"],
    "model.features.include_price_context": True,
    "model.features.include_raw_indicators": True,
    "model.features.lookback_periods": 2,
}
CONFIG = strategy(**MULTI)
LABEL_CONFIG = CONFIG.training.labels


def symbol_bars(n: int = 900) -> SymbolBars:
    bars = make_bars(n)
    return SymbolBars(bars, (resample(bars, "4h"), resample(bars, "1d")))


BARS = symbol_bars()


def gate(
    bars: SymbolBars = BARS,
    config: StrategyConfig = CONFIG,
    *,
    seed: int = 1,
    build: FeatureBuilder = compute_features,
    labeler: Labeler = generate_labels,
    check: Callable[[], None] = lambda: None,
) -> LeakageReport:
    features, labels = build(bars, config), labeler(bars.base, config.training.labels)
    return check_leakage(bars, features, labels, config, seed, build=build, labeler=labeler, check=check)


def with_column(name: str, leak: Callable[[SymbolBars], FloatArray]) -> FeatureBuilder:
    """Return a builder whose last column is `leak(bars)`."""

    def build(bars: SymbolBars, config: StrategyConfig) -> FeatureMatrix:
        features = compute_features(bars, config)
        X = features.X.copy()
        X[:, -1] = leak(bars)
        return FeatureMatrix(X, (*features.columns[:-1], FeatureColumn(name, "rsi_5", "1h")), features.warm_up_bars)

    return build


def test_honest_features_and_labels_pass() -> None:
    report = gate()
    assert report.cuts >= 7
    assert report.perturbations >= 6
    assert report.num_features == len(compute_features(BARS, CONFIG).columns)
    assert report.horizon_bars == LABEL_CONFIG.label_lookahead
    assert report.to_dict() == {
        "cuts": report.cuts,
        "perturbations": report.perturbations,
        "num_features": report.num_features,
        "horizon_bars": report.horizon_bars,
    }


def by_open(higher: int) -> Callable[[SymbolBars], FloatArray]:
    """Align a longer bar's close by open times, as a predecessor did: it shows the close of a bar that is not over."""

    def leak(bars: SymbolBars) -> FloatArray:
        own = bars.higher[higher]
        index = np.searchsorted(own.times, bars.base.times, side="right") - 1
        return np.where(index >= 0, own.close[np.maximum(index, 0)], 0.0) if len(own) else np.zeros(len(bars))

    return leak


def one_bar_early(bars: SymbolBars) -> FloatArray:
    """Show a day to the last hour before its end; no other row is wrong."""
    own = bars.higher[1]
    if not len(own):
        return np.zeros(len(bars))
    hour = 3_600 * 10**9
    index = np.searchsorted(close_times(own), close_times(bars.base) + hour, side="right") - 1
    return np.where(index >= 0, own.close[np.maximum(index, 0)], 0.0)


LEAKS: list[tuple[str, Callable[[SymbolBars], FloatArray]]] = [
    ("next_close", lambda bars: np.append(bars.base.close[1:], bars.base.close[-1])),
    ("centred_mean", lambda bars: np.convolve(bars.base.close, np.ones(5) / 5, mode="same")),
    ("share_of_the_highest_close", lambda bars: bars.base.close / bars.base.close.max()),
    ("z_score", lambda bars: (bars.base.close - bars.base.close.mean()) / bars.base.close.std()),
    ("reversed_sum", lambda bars: np.cumsum(bars.base.volume[::-1])[::-1]),
    ("rank_in_series", lambda bars: np.argsort(np.argsort(bars.base.close)).astype(np.float64)),
    ("back_fill_of_volume", lambda bars: np.roll(bars.base.volume, -3)),
    ("four_hours_by_open", by_open(0)),
    ("day_by_open", by_open(1)),
    ("day_one_bar_early", one_bar_early),
]


@pytest.mark.parametrize(("name", "leak"), LEAKS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_feature_that_sees_the_future_is_named(name: str, leak: Callable[[SymbolBars], FloatArray], seed: int) -> None:
    with pytest.raises(LeakageError, match=f"feature {name} of bar .* it sees the future") as caught:
        gate(build=with_column(name, leak), seed=seed)
    assert caught.value.metadata["feature"] == name
    assert 0 <= int(caught.value.metadata["bar"]) < len(BARS)


@pytest.mark.parametrize(("name", "leak"), [LEAKS[0], LEAKS[3], LEAKS[9]])
def test_leak_in_a_series_of_many_windows_is_named(name: str, leak: Callable[[SymbolBars], FloatArray]) -> None:
    with pytest.raises(LeakageError, match=f"feature {name} of bar"):
        gate(symbol_bars(2 * WINDOW_BARS + 500), build=with_column(name, leak))


def test_future_that_moves_a_feature_by_a_thousandth_is_enough() -> None:
    def leak(bars: SymbolBars) -> FloatArray:
        change = np.append(bars.base.close[1:] / bars.base.close[:-1] - 1, 0.0)
        return bars.base.close * (1 + 0.001 * change)

    with pytest.raises(LeakageError, match="feature nearly_the_close of bar"):
        gate(build=with_column("nearly_the_close", leak))


def test_regression_target_that_looks_further_than_its_end_is_refused() -> None:
    labels = {"source": "forward_return", "label_lookahead": 5, "buy_threshold": 0.001, "sell_threshold": 0.001}
    config = strategy(**{"training.labels": labels})

    def labeler(bars: Bars, own: LabelsConfig) -> Labels:
        honest = generate_labels(bars, own)
        assert honest.targets is not None
        return replace(honest, targets=(honest.targets + np.roll(bars.close, -6)).astype(np.float32))

    gate(SymbolBars(make_bars(900)), config)
    with pytest.raises(LeakageError, match="looks further ahead than its horizon of 5 bars"):
        gate(SymbolBars(make_bars(900)), config, labeler=labeler)


def test_bar_that_knows_of_the_weekend_after_it_is_named() -> None:
    """No value of a later bar is used, only when it opens; and only one bar in many is wrong."""
    full = make_bars(2_000)
    kept = np.arange(2_000) % 168 < 120
    bars = Bars("EURUSD", "1h", *(getattr(full, name)[kept] for name in ("times", *BAR_COLUMNS)))

    def leak(own: SymbolBars) -> FloatArray:
        return np.append(np.diff(own.base.times) > 3_600 * 10**9, [False]).astype(np.float64)

    with pytest.raises(LeakageError, match="feature last_before_a_gap of bar"):
        gate(SymbolBars(bars), strategy(), build=with_column("last_before_a_gap", leak))


def test_leak_in_one_column_of_one_higher_timeframe_is_named() -> None:
    """The strategy's own daily membership, of the day that is not over where there is one."""
    name = "rsi_5.neutral@1d"

    def build(bars: SymbolBars, config: StrategyConfig) -> FeatureMatrix:
        features, day = compute_features(bars, config), bars.higher[1]
        closed = last_closed(bars.base, day)
        opened = np.minimum(np.searchsorted(day.times, bars.base.times, side="right") - 1, len(day) - 1)
        rsi = compute_indicators(day, config.indicators, wanted=["rsi_5"])["rsi_5"]
        triangle = config.fuzzy_sets["rsi_5"]["neutral"]
        membership = triangular(rsi, triangle.parameters)
        X = features.X.copy()
        is_early = (opened > closed) & (opened >= 0) & (closed >= 5)
        X[is_early, features.names.index(name)] = membership[opened[is_early]]
        return FeatureMatrix(X, features.columns, features.warm_up_bars)

    with pytest.raises(LeakageError, match=f"feature {name} of bar .* it sees the future"):
        gate(build=build)


def test_every_indicator_on_two_timeframes_passes() -> None:
    indicators = [{"name": name, "feature_id": name} for name in SIGNATURES]
    outputs = [output for own in indicators for output in IndicatorConfig.model_validate(own).outputs]
    sets = {"any": {"type": "gaussian", "parameters": [0, 1]}}
    config = strategy(
        **{
            "training_data.timeframes": {"mode": "multi_timeframe", "list": ["1h", "4h"]},
            "indicators": indicators,
            "model.features": {"include_raw_indicators": True, "include_price_context": True},
        },
        fuzzy_sets=dict.fromkeys(outputs, sets),
    )
    bars = make_bars(1_000)
    report = gate(SymbolBars(bars, (resample(bars, "4h"),)), config)
    assert report.num_features == 2 * 2 * len(outputs) + 4


def test_scaling_by_the_whole_series_before_the_gate_is_named() -> None:
    def build(bars: SymbolBars, config: StrategyConfig) -> FeatureMatrix:
        features = compute_features(bars, config)
        X = features.X - np.nan_to_num(np.nanmean(features.X[:, -1:], axis=0)) if len(features.X) > 40 else features.X
        return FeatureMatrix(np.ascontiguousarray(X), features.columns, features.warm_up_bars)

    with pytest.raises(LeakageError, match="it sees the future"):
        gate(build=build)


def test_matrix_that_is_not_the_one_of_the_bars_is_refused() -> None:
    """Only the comparison with the real matrix can find this: every recomputation is honest."""
    features, labels = compute_features(BARS, CONFIG), generate_labels(BARS.base, LABEL_CONFIG)
    X = features.X.copy()
    column = features.names.index("rsi_5.neutral")
    X[100, column] += 0.01
    changed = FeatureMatrix(X, features.columns, features.warm_up_bars)
    with pytest.raises(LeakageError, match=r"feature rsi_5\.neutral of bar 100 "):
        check_leakage(BARS, changed, labels, CONFIG, 1)


def test_columns_that_depend_on_the_bars_are_refused() -> None:
    def build(bars: SymbolBars, config: StrategyConfig) -> FeatureMatrix:
        features = compute_features(bars, config)
        if len(bars) == len(BARS):
            return features
        return FeatureMatrix(np.ascontiguousarray(features.X[:, 1:]), features.columns[1:], features.warm_up_bars)

    with pytest.raises(LeakageError, match="the features change with later bars"):
        gate(build=build)


@pytest.mark.parametrize("source", ["zigzag", "triple_barrier", "forward_return"])
def test_label_that_looks_further_than_it_declares_is_refused(source: str) -> None:
    keys = {
        "zigzag": {"zigzag_threshold": 0.002},
        "triple_barrier": {"profit_barrier": 0.02, "loss_barrier": 0.02},
        "forward_return": {"buy_threshold": 0.001, "sell_threshold": 0.001},
    }[source]
    config = strategy(**{"training.labels": {"source": source, "label_lookahead": 10, **keys}})

    def labeler(bars: Bars, own: LabelsConfig) -> Labels:
        labels = generate_labels(bars, own)
        ends = np.where(labels.y == NO_LABEL, -1, np.minimum(labels.ends, np.arange(len(labels)) + 7))
        return replace(labels, horizon_bars=7, ends=ends)

    with pytest.raises(LeakageError, match="looks further ahead than its horizon of 7 bars") as caught:
        gate(SymbolBars(make_bars(3_000)), config, labeler=labeler)
    assert caught.value.metadata["feature"] == "label"


def test_label_that_ends_earlier_than_it_looked_is_refused() -> None:
    """The horizon is right, and the purge would go by the ends."""

    def labeler(bars: Bars, own: LabelsConfig) -> Labels:
        labels = generate_labels(bars, own)
        return replace(labels, ends=np.where(labels.y == NO_LABEL, -1, np.arange(len(labels)) + 1))

    with pytest.raises(LeakageError, match="looks further ahead than its horizon of 10 bars"):
        gate(SymbolBars(make_bars(3_000)), strategy(), labeler=labeler)


@pytest.mark.parametrize(
    ("bar", "end"), [(200, 200 + LABEL_CONFIG.label_lookahead + 1), (200, 199), (200, -1), (899, 5)]
)
def test_label_whose_end_is_not_within_its_horizon_is_refused(bar: int, end: int) -> None:
    labels = generate_labels(BARS.base, LABEL_CONFIG)
    ends = labels.ends.copy()
    ends[bar] = end
    with pytest.raises(LeakageError, match=f"label of bar {bar} .* says it has seen bar {end}, which is not within"):
        check_leakage(BARS, compute_features(BARS, CONFIG), replace(labels, ends=ends), CONFIG, 1)


def test_labels_that_are_not_those_of_the_bars_are_refused() -> None:
    labels = generate_labels(BARS.base, LABEL_CONFIG)
    y = labels.y.copy()
    y[100] = (y[100] + 1) % 3
    with pytest.raises(LeakageError, match="label of bar 100 "):
        check_leakage(BARS, compute_features(BARS, CONFIG), replace(labels, y=y), CONFIG, 1)


def test_gate_can_be_left_between_its_pieces() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise CancellationError

    with pytest.raises(CancellationError):
        gate(check=check)
    assert calls == 5


@settings(max_examples=10)
@given(kept=st.integers(60, 899), seed=st.integers(0, 2**32 - 1))
def test_features_are_unchanged_when_the_future_is_cut_off(kept: int, seed: int) -> None:
    full = compute_features(BARS, CONFIG).X[:kept]
    np.testing.assert_array_equal(full, compute_features(BARS.head(kept), CONFIG).X)
    gate(seed=seed)


@pytest.mark.parametrize("n", [1, 2, 3, 40, 200])
def test_series_of_a_few_bars_is_no_problem(n: int) -> None:
    gate(symbol_bars(n))


@pytest.mark.parametrize("n", [1, 2, 40, 900])
@pytest.mark.parametrize(
    "keys",
    [
        {"source": "zigzag", "zigzag_threshold": 0.002},
        {"source": "zigzag_segments", "zigzag_threshold": 0.002},
        {"source": "triple_barrier", "profit_barrier": 0.002, "loss_barrier": 0.003},
        {"source": "triple_barrier", "profit_barrier": 2.0, "loss_barrier": 2.0, "volatility_period": 20},
        {"source": "forward_return", "buy_threshold": 0.001, "sell_threshold": 0.001},
    ],
)
def test_labels_of_every_source_pass(keys: dict[str, Any], n: int) -> None:
    gate(SymbolBars(make_bars(n)), strategy(**{"training.labels": {"label_lookahead": 12, **keys}}))
