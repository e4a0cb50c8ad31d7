from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ktrdr_core.config.loader import parse_strategy, strategy_from_dict
from ktrdr_core.errors import InvalidStrategyError
from tests.kit.builders import strategy, strategy_dict, strategy_text

TRIANGLE = {"type": "triangular", "parameters": [0, 50, 100]}


def refused(**overrides: Any) -> InvalidStrategyError:
    with pytest.raises(InvalidStrategyError) as caught:
        strategy(**overrides)
    return caught.value


def test_minimal_file_gets_every_default() -> None:
    config = parse_strategy(
        """
name: minimal
training_data:
  symbols: {symbol: EURUSD}
  timeframes: {timeframe: 1h}
indicators: [{name: rsi}]
fuzzy_sets: {rsi: {low: {type: triangular, parameters: [0, 20, 40]}}}
model: {type: mlp}
training: {labels: {zigzag_threshold: 0.002, label_lookahead: 12}}
"""
    )
    assert config.symbols == ("EURUSD",)
    assert config.timeframes == ("1h",)
    assert config.indicators[0].parameters == {"period": 14}
    assert config.model.training.optimizer == "adam"
    assert config.model.features.lookback_periods == 0
    assert config.model.features.scale_features
    assert config.training.data_split is None
    assert strategy_from_dict(config.to_dict()) == config


def test_parsed_strategy_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        strategy().name = "other"


@pytest.mark.parametrize(
    ("place", "field", "hint"),
    [
        ("desciption", "desciption", "did you mean 'description'"),
        ("training_data.symbol", "training_data.symbol", "did you mean 'symbols'"),
        ("training_data.symbols.simbol", "training_data.symbols.simbol", "did you mean 'symbol'"),
        ("indicators.1.fast_perod", "indicators[1].fast_perod", "did you mean 'fast_period'"),
        ("fuzzy_sets.rsi.oversold.typ", "fuzzy_sets.rsi.oversold.typ", "did you mean 'type'"),
        ("model.features.lookback", "model.features.lookback", "did you mean 'lookback_periods'"),
        ("model.architecture.drop_out", "model.architecture.drop_out", "did you mean 'dropout'"),
        ("deployment.target_simbols", "deployment.target_simbols", "did you mean 'target_symbols'"),
        ("training.labels.lookahead", "training.labels.lookahead", "did you mean 'label_lookahead'"),
        ("training.data_split.tests", "training.data_split.tests", "did you mean 'test'"),
        ("decisions.qqq", "decisions.qqq", "known: output_format, confidence_threshold"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_key(place: str, field: str, hint: str) -> None:
    error = refused(**{place: 1})
    assert "unknown" in error.message
    assert hint in error.message
    assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize(
    ("overrides", "field", "rule"),
    [
        ({"name": "../../x"}, "name", "name must be 1 to 128 letters"),
        ({"training_data.symbols.symbol": "../x"}, "training_data.symbols.symbol", "symbol must be 1 to 128"),
        ({"training_data.timeframes.timeframe": "/"}, "training_data.timeframes.timeframe", "timeframe must be"),
        ({"model.training.epochs": 0}, "model.training.epochs", "epochs must be at least 1, was 0"),
        ({"model.training.epochs": "3"}, "model.training.epochs", "epochs must be a whole number, was '3'"),
        ({"model.training.epochs": True}, "model.training.epochs", "must be a whole number, was True"),
        ({"model.training.batch_size": 0}, "model.training.batch_size", "batch_size must be at least 1, was 0"),
        ({"model.training.learning_rate": 1e30}, "model.training.learning_rate", "must be below 10"),
        ({"model.training.learning_rate": float("nan")}, "model.training.learning_rate", "finite number, was nan"),
        ({"model.architecture.hidden_layers": [8, 0]}, "model.architecture.hidden_layers[1]", "at least 1, was 0"),
        ({"model.architecture.hidden_layers": []}, "model.architecture.hidden_layers", "at least 1 entries"),
        ({"model.architecture.dropout": 1.0}, "model.architecture.dropout", "must be below 1"),
        ({"model.features.scale_features": "yes"}, "model.features.scale_features", "must be true or false"),
        ({"model.type": "perceptron"}, "model.type", "must be 'mlp', 'lstm', 'gru' or 'transformer'"),
        ({"model": 3}, "model", "model must be a mapping, was 3"),
        ({"model": None}, "model", "model is missing"),
        ({"training.labels.source": "magic"}, "training.labels.source", "must be 'zigzag'"),
        ({"training.labels.zigzag_threshold": None}, "training.labels.zigzag_threshold", "labels from zigzag need"),
        ({"training.labels.label_lookahead": 0}, "training.labels.label_lookahead", "at least 1, was 0"),
        ({"training.data_split.test": 0.5}, "training.data_split", "must be 1, was 1.35"),
        ({"training.data_split.test": 0.0}, "training.data_split.test", "must be above 0"),
        ({"model.training.epochs": 2_000_000}, "model.training.epochs", "at most 1000000, was 2000000"),
        ({"indicators": []}, "indicators", "at least 1 entries"),
        ({"indicators.0": "rsi"}, "indicators[0]", "must be a mapping with a name"),
        ({"indicators.0.name": None}, "indicators[0].name", "must be an indicator's name"),
        ({"indicators.0.name": "rssi"}, "indicators[0].name", "unknown indicator 'rssi'; did you mean 'rsi'?"),
        ({"indicators.0.period": 1}, "indicators[0].period", "period must be at least 2"),
        ({"indicators.0.period": 14.0}, "indicators[0].period", "period must be a whole number, was 14.0"),
        ({"indicators.0.source": "typical"}, "indicators[0].source", "source must be 'open'"),
        ({"indicators.0.feature_id": "a.b"}, "indicators[0].feature_id", "must be a letter followed by"),
        ({"indicators.1.fast_period": 26}, "indicators[1].fast_period", "fast_period must be below slow_period (26)"),
        ({"fuzzy_sets.ema": {"x": TRIANGLE}}, "fuzzy_sets.ema", "'ema' names no indicator"),
        ({"fuzzy_sets.macd.signal": {"x": TRIANGLE}}, "fuzzy_sets.macd.signal.type", "type is missing"),
        ({"fuzzy_sets.rsi.oversold.parameters": [3, 1, 2]}, "fuzzy_sets.rsi.oversold.parameters", "must not decrease"),
        ({"fuzzy_sets.rsi.oversold.parameters": [1, 1, 1]}, "fuzzy_sets.rsi.oversold.parameters", "below the last"),
        ({"fuzzy_sets.rsi.oversold.parameters": [1, 2]}, "fuzzy_sets.rsi.oversold.parameters", "takes 3 parameters"),
        ({"fuzzy_sets.rsi": None}, "fuzzy_sets", "indicator rsi_14 has no fuzzy sets and would have no effect"),
    ],
)
def test_broken_rule_names_field_value_and_rule(overrides: dict[str, Any], field: str, rule: str) -> None:
    error = refused(**overrides)
    assert field in [violation.field for violation in error.violations]
    assert rule in error.message


def test_every_broken_rule_is_a_violation_of_its_own() -> None:
    error = refused(**{"foo": 1, "model.training.epochs": 0, "training.labels.zigzag_threshold": 2})
    assert {violation.field for violation in error.violations} == {
        "foo",
        "model.training.epochs",
        "training.labels.zigzag_threshold",
    }
    assert "2 more: " in error.message


def test_refusal_of_a_hostile_file_stays_small() -> None:
    """It travels in trailers of 16 kB at most."""
    keys = {f"key_{index}": 1 for index in range(5_000)}
    error = refused(**{"k" * 100_000: "v" * 100_000, "training_data.symbols.symbol": "x" * 100_000, **keys})
    assert "5001 more: " in error.message
    assert len(error.message) < 1_500
    assert sum(len(violation.field) + len(violation.description) for violation in error.violations) < 12_000


def test_unprintable_key_is_shown_on_one_line() -> None:
    error = refused(**{"a\nb": 1})
    assert "\n" not in error.message + error.violations[0].field


@pytest.mark.parametrize(
    ("symbols", "rule"),
    [
        ({"mode": "single"}, "symbol is missing (mode is single)"),
        ({"mode": "multi_symbol"}, "list is missing (mode is multi_symbol)"),
        ({"mode": "multi_symbol", "symbol": "A"}, "mode multi_symbol needs list, not symbol"),
        ({"mode": "single", "list": ["A", "B"]}, "mode single takes one name; list has several"),
        ({"mode": "single", "list": ["A"], "symbol": "A"}, "give either list or symbol, not both"),
        ({"mode": "multi_symbol", "list": ["A", "A"]}, "list names the same one twice"),
    ],
)
def test_symbols_are_named_in_one_way(symbols: dict[str, Any], rule: str) -> None:
    assert rule in refused(**{"training_data.symbols": symbols}).message


def test_base_timeframe_must_be_one_of_the_list() -> None:
    timeframes = {"mode": "multi_timeframe", "list": ["1h", "4h"], "base_timeframe": "5m"}
    assert "must be one of 1h, 4h, was 5m" in refused(**{"training_data.timeframes": timeframes}).message


def test_feature_id_is_the_name_with_its_parameters() -> None:
    assert [indicator.feature_id for indicator in strategy().indicators] == ["rsi_14", "macd_12_26_9"]
    shared = {"fuzzy_sets": {"rsi_7_open": {"x": TRIANGLE}}}
    other = strategy(indicators=[{"name": "RSI", "period": 7, "source": "open"}], **shared)
    assert other.indicators[0].feature_id == "rsi_7_open"


def test_two_indicators_of_one_name_need_no_feature_id() -> None:
    config = strategy(
        indicators=[{"name": "rsi", "period": 14}, {"name": "rsi", "period": 28}],
        fuzzy_sets={"rsi_14": {"low": TRIANGLE}, "rsi_28": {"low": TRIANGLE}},
    )
    assert [indicator.feature_id for indicator in config.indicators] == ["rsi_14", "rsi_28"]
    assert set(config.fuzzy_sets) == {"rsi_14", "rsi_28"}


def test_key_that_could_mean_two_indicators_is_refused() -> None:
    error = refused(
        indicators=[{"name": "rsi", "period": 14}, {"name": "rsi", "period": 28}],
        fuzzy_sets={"rsi": {"low": TRIANGLE}},
    )
    assert "rsi names several indicators; name one of rsi_14, rsi_28" in error.message


def test_equal_indicators_are_refused_not_dropped() -> None:
    error = refused(indicators=[{"name": "rsi"}, {"name": "rsi", "period": 14}], fuzzy_sets={"rsi_14": {"a": TRIANGLE}})
    assert error.violations[0].field == "indicators[1].feature_id"
    assert "already that of indicators[0]" in error.message


@pytest.mark.parametrize("key", ["rsi", "RSI", "rsi_14"])
def test_fuzzy_sets_may_name_an_indicator_or_its_feature_id(key: str) -> None:
    config = strategy(**{"fuzzy_sets.rsi": None, f"fuzzy_sets.{key}": {"low": TRIANGLE}})
    assert set(config.fuzzy_sets) == {"rsi_14", "macd_12_26_9"}


def test_fuzzy_sets_may_name_an_output() -> None:
    raw = strategy_dict()
    raw["fuzzy_sets"]["macd.hist"] = {"up": TRIANGLE}
    raw["fuzzy_sets"]["macd_12_26_9.signal"] = {"up": TRIANGLE}
    assert {"macd_12_26_9", "macd_12_26_9.hist", "macd_12_26_9.signal"} < set(strategy_from_dict(raw).fuzzy_sets)
    raw["fuzzy_sets"]["rsi.rsi"] = raw["fuzzy_sets"].pop("rsi")
    assert "rsi_14" in strategy_from_dict(raw).fuzzy_sets, "the primary output may be named too"
    raw["fuzzy_sets"]["macd.upper"] = {"up": TRIANGLE}
    with pytest.raises(InvalidStrategyError, match=r"'macd\.upper' names no indicator"):
        strategy_from_dict(raw)


def test_two_keys_for_the_same_values_are_refused() -> None:
    assert "both name the values rsi_14" in refused(**{"fuzzy_sets.rsi_14": {"low": TRIANGLE}}).message


@pytest.mark.parametrize(
    "deployment",
    [
        {"target_symbols": ["EURUSD"], "target_timeframes": ["1h"]},
        {"target_symbols": {"mode": "universal"}, "target_timeframes": {"mode": "single", "supported": ["1h"]}},
    ],
)
def test_deployment_is_kept(deployment: dict[str, Any]) -> None:
    assert strategy(deployment=deployment).to_dict()["deployment"] == deployment


def test_yaml_number_as_version_is_its_text() -> None:
    assert parse_strategy(strategy_text().replace("version: '1.0'", "version: 2.0")).version == "2.0"


EVERYTHING: dict[str, Any] = {
    "training_data.symbols": {"mode": "multi_symbol", "list": ["EURUSD", "GBPUSD"], "sampling": "proportional"},
    "training_data.timeframes": {"mode": "multi_timeframe", "list": ["4h", "1h"]},
    "indicators.0.timeframes": ["4h"],
    "fuzzy_sets.rsi.oversold": {"type": "Gaussian", "parameters": [20, 5]},
    "fuzzy_sets.rsi@4h": {"low": {"type": "quantile", "parameters": [0.0, 0.3], "shoulder": "left"}},
    "model.type": "transformer",
    "model.architecture": {"hidden_layers": [64, 64], "d_model": 32, "num_heads": 8},
    "model.features": {"lookback_periods": 20, "include_raw_indicators": True, "scaling": "robust"},
    "model.symbol_embedding_dim": 4,
    "model.training": {
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.001,
        "schedule": {"type": "cosine", "warm_up_epochs": 2},
        "gradient_clip_norm": 1.0,
        "early_stopping": {"metric": "val_mcc", "patience": 5},
        "loss": "focal",
        "class_weights": "balanced",
        "mixed_precision": True,
        "gpu_memory_fraction": 0.5,
        "checkpoint_every_epochs": 10,
    },
    "decisions.filters": {"min_separation": 0.1, "volume_filter": True, "trading_hours": {"start": 22, "end": 4}},
    "decisions.position_awareness": True,
    "training.labels": {
        "source": "triple_barrier",
        "label_lookahead": 24,
        "profit_barrier": 2.0,
        "loss_barrier": 1.5,
        "volatility_period": 50,
    },
    "training.data_split.embargo_bars": 5,
    "validation": {"method": "walk_forward", "folds": 4, "window": "rolling", "seeds": 2},
}


def test_file_that_uses_the_whole_grammar_reads_back_equal() -> None:
    config = strategy(**EVERYTHING)
    assert config.symbols == ("EURUSD", "GBPUSD")
    assert (config.base_timeframe, config.higher_timeframes) == ("1h", ("4h",))
    assert set(config.fuzzy_sets) == {"rsi_14", "rsi_14@4h", "macd_12_26_9"}
    assert config.fuzzy_sets["rsi_14"]["oversold"].type == "gaussian"
    assert config.model.window_bars == 21
    assert strategy_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("overrides", "field", "rule"),
    [
        (
            {"fuzzy_sets.rsi@5m": {"x": TRIANGLE}},
            "fuzzy_sets.rsi@5m",
            "names the timeframe '5m'; rsi_14 is computed on 1h",
        ),
        ({"indicators.0.timeframes": ["4h"]}, "indicators[0].timeframes", "among those of training_data (1h), was 4h"),
        (
            {"fuzzy_sets.rsi.oversold": {"type": "gaussian", "parameters": [20, 0]}},
            "fuzzy_sets.rsi.oversold.parameters",
            "sigma",
        ),
        (
            {"fuzzy_sets.rsi.oversold": {"type": "sigmoid", "parameters": [0, 50]}},
            "fuzzy_sets.rsi.oversold.parameters",
            "not be 0",
        ),
        (
            {"fuzzy_sets.rsi.oversold": {"type": "bell", "parameters": [1, 2]}},
            "fuzzy_sets.rsi.oversold.parameters",
            "[width, slope",
        ),
        (
            {"fuzzy_sets.rsi.oversold": {"type": "quantile", "parameters": [0.2, 1.5, 2.0]}},
            "fuzzy_sets.rsi.oversold.parameters",
            "must be in [0, 1]",
        ),
        (
            {"fuzzy_sets.rsi.oversold": {"type": "quantile", "parameters": [0.2, 0.5]}},
            "fuzzy_sets.rsi.oversold.shoulder",
            "two levels needs shoulder",
        ),
        ({"model.type": "lstm", "model.features": {}}, "model.features.lookback_periods", "needs lookback_periods"),
        ({"model.architecture.num_heads": 4}, "model.architecture.num_heads", "belongs to a transformer, not to a mlp"),
        (
            {"model.type": "transformer", "model.architecture": {"d_model": 30, "num_heads": 4}},
            "model.architecture.num_heads",
            "must be a multiple of num_heads, was 4",
        ),
        ({"model.training.momentum": 0.9}, "model.training.momentum", "momentum belongs to sgd, not to adam"),
        ({"model.training.schedule": {"type": "step"}}, "model.training.schedule", "step schedule needs factor"),
        (
            {"model.training.schedule": {"type": "constant", "factor": 0.5}},
            "model.training.schedule.factor",
            "constant schedule takes no factor",
        ),
        ({"training.labels.buy_threshold": 0.1}, "training.labels.buy_threshold", "labels from zigzag take no"),
        (
            {"decisions.output_format": "regression", "model.architecture": {}},
            "training.labels.source",
            "must be one of forward_return",
        ),
        (
            {"model.training.loss": "mse"},
            "model.training.loss",
            "must be one of cross_entropy, focal with decisions.output_format classification, was mse",
        ),
        (
            {"validation": {"method": "purged_k_fold", "window": "rolling"}},
            "validation.window",
            "belongs to walk_forward",
        ),
        (
            {"validation": {"method": "walk_forward", "embargo_bars": 3}},
            "validation.embargo_bars",
            "belongs to purged_k_fold, not to walk_forward",
        ),
        (
            {"decisions.filters": {"trading_hours": {"start": 7, "end": 7}}},
            "decisions.filters.trading_hours.end",
            "must differ from start",
        ),
        ({"validation": {"method": "walk_forward", "folds": 1}}, "validation.folds", "at least 2, was 1"),
        ({"decisions.filters": {"min_volume": 1}}, "decisions.filters.min_volume", "unknown key 'min_volume'"),
        ({"training.method": "reinforcement"}, "training.method", "must be 'supervised'"),
    ],
)
def test_sections_that_do_not_fit_together_are_refused(overrides: dict[str, Any], field: str, rule: str) -> None:
    overrides.setdefault("decisions.confidence_threshold", 0.0)
    error = refused(**overrides)
    assert field in [violation.field for violation in error.violations]
    assert rule in error.message
