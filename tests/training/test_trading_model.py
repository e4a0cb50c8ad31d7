"""A stored model predicts what its training saw, from its files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrdr_core.data.alignment import resample
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.errors import CorruptDataError, InvalidInputError, NotFoundError
from ktrdr_core.evaluation.forward import split_outputs
from ktrdr_core.training.trading_model import Predictions, TradingModel
from tests.kit.builders import make_bars, strategy
from tests.kit.trading_models import REGRESSION, TWO_SYMBOLS, StoredNetwork, store_network

WINDOW: dict[str, Any] = {"model.features.lookback_periods": 6}
TWO_TIMEFRAMES: dict[str, Any] = {"training_data.timeframes": {"mode": "multi_timeframe", "list": ["1h", "4h"]}}
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"model.architecture.hidden_layers": [33, 17], "model.features.include_price_context": True},
    "mlp of two symbols and timeframes": {**TWO_SYMBOLS, **TWO_TIMEFRAMES},
    "lstm": {"model.type": "lstm", **WINDOW},
    "gru of two symbols": {"model.type": "gru", **WINDOW, **TWO_SYMBOLS},
    "transformer of two timeframes": {"model.type": "transformer", **WINDOW, **TWO_TIMEFRAMES},
    "regression": REGRESSION,
    "regression of a window": {"model.type": "gru", **WINDOW, **REGRESSION},
}


def symbol_bars(symbol: str, config: Any) -> SymbolBars:
    base = make_bars(900, seed=len(symbol) + ord(symbol[0]), symbol=symbol)
    return SymbolBars(base, tuple(resample(base, timeframe) for timeframe in config.higher_timeframes))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StoredNetwork]:
    """Return what gives the stored model of one of CASES, made once."""
    made: dict[str, StoredNetwork] = {}

    def get(case: str) -> StoredNetwork:
        if case not in made:
            config = strategy(**CASES[case])
            bars = [symbol_bars(symbol, config) for symbol in config.symbols]
            made[case] = store_network(tmp_path_factory.mktemp("stored") / "model", config, bars)
        return made[case]

    return get


def predict(model: StoredNetwork, symbol: str = "EURUSD") -> tuple[Bars, Predictions]:
    bars = symbol_bars(symbol, model.strategy)
    return bars.base, TradingModel.load(model.path).predict(bars)


@pytest.mark.parametrize("case", CASES)
def test_predictions_on_the_test_part_are_those_of_the_training_bit_for_bit(
    stored: Callable[[str], StoredNetwork], case: str
) -> None:
    model = stored(case)
    test = model.split.test
    seen = split_outputs(model.network, model.split, test)
    assert len(seen) > 100
    for symbol_id, symbol in enumerate(model.strategy.symbols):
        _, predictions = predict(model, symbol)
        own = test.symbol_ids == symbol_id
        places = np.searchsorted(predictions.times, test.times[own])
        np.testing.assert_array_equal(predictions.times[places], test.times[own])
        np.testing.assert_array_equal(predictions.outputs[places], seen[own])


@pytest.mark.parametrize("case", CASES)
def test_every_bar_after_warm_up_and_window_is_predicted(stored: Callable[[str], StoredNetwork], case: str) -> None:
    bars, predictions = predict(stored(case))
    assert predictions.times[-1] == bars.times[-1]
    np.testing.assert_array_equal(predictions.times, bars.times[-len(predictions) :])
    assert 700 < len(predictions) < 900
    assert predictions.probabilities.shape == (len(predictions), 3)
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(predictions.classes, predictions.probabilities.argmax(axis=1))


@pytest.mark.parametrize("case", CASES)
def test_bars_that_follow_change_no_prediction(stored: Callable[[str], StoredNetwork], case: str) -> None:
    model = TradingModel.load(stored(case).path)
    bars = symbol_bars("EURUSD", model.strategy)
    whole = model.predict(bars)
    for stop in (400, 655, 899):
        short = model.predict(bars.head(stop))
        assert 0 < len(short) < len(whole)
        np.testing.assert_array_equal(short.outputs, whole.outputs[: len(short)])
        np.testing.assert_array_equal(short.decisions, whole.decisions[: len(short)])


def test_window_model_needs_a_window_more_than_its_features(stored: Callable[[str], StoredNetwork]) -> None:
    _, of_rows = predict(stored("regression"))
    _, of_windows = predict(stored("regression of a window"))
    # Both warm up alike; the mlp has lags of 2 bars, the other a window of 6 bars before the current one.
    assert len(of_rows) - len(of_windows) == 6 - 2


def test_longer_bars_are_resampled_where_only_base_bars_are_given(stored: Callable[[str], StoredNetwork]) -> None:
    model = TradingModel.load(stored("transformer of two timeframes").path)
    bars = symbol_bars("EURUSD", model.strategy)
    expected = model.predict(bars).outputs
    np.testing.assert_array_equal(model.predict(bars.base).outputs, expected)
    np.testing.assert_array_equal(model.predict(SymbolBars(bars.base)).outputs, expected)


def test_longer_bars_of_their_own_are_used(stored: Callable[[str], StoredNetwork]) -> None:
    model = TradingModel.load(stored("transformer of two timeframes").path)
    bars = symbol_bars("EURUSD", model.strategy)
    others = resample(make_bars(900, seed=99), "4h")
    assert not np.array_equal(model.predict(SymbolBars(bars.base, (others,))).outputs, model.predict(bars).outputs)


@pytest.mark.parametrize(("timeframes", "says"), [(("2h",), "2h"), (("1h", "1d"), "1h, 1d")])
def test_bars_of_other_timeframes_are_refused(
    stored: Callable[[str], StoredNetwork], timeframes: tuple[str, ...], says: str
) -> None:
    model = TradingModel.load(stored("transformer of two timeframes").path)
    base, *higher = (make_bars(300, timeframe=timeframe) for timeframe in timeframes)
    with pytest.raises(InvalidInputError, match=f"of {says}, .* on 1h, 4h; give bars of 1h"):
        model.predict(SymbolBars(base, tuple(higher)))


def test_symbol_that_a_model_of_identities_does_not_know_is_refused(stored: Callable[[str], StoredNetwork]) -> None:
    with pytest.raises(InvalidInputError, match="GBPUSD") as raised:
        TradingModel.load(stored("gru of two symbols").path).predict(make_bars(symbol="GBPUSD"))
    assert raised.value.violations[0].field == "symbol"


def test_symbol_agnostic_model_predicts_any_symbol(stored: Callable[[str], StoredNetwork]) -> None:
    model = TradingModel.load(stored("lstm").path)
    bars = make_bars(300, symbol="GBPUSD")
    renamed = Bars("EURUSD", bars.timeframe, bars.times, bars.open, bars.high, bars.low, bars.close, bars.volume)
    np.testing.assert_array_equal(model.predict(bars).outputs, model.predict(renamed).outputs)


def test_identity_changes_what_a_model_answers(stored: Callable[[str], StoredNetwork]) -> None:
    model = TradingModel.load(stored("gru of two symbols").path)
    first, second = (model.predict(make_bars(300, symbol=symbol)).outputs for symbol in model.strategy.symbols)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("case", ["lstm", "mlp"])
def test_too_few_bars_give_no_predictions(stored: Callable[[str], StoredNetwork], case: str) -> None:
    model = TradingModel.load(stored(case).path)
    for num_bars in (5, 30):
        predictions = model.predict(make_bars(num_bars))
        assert len(predictions) == 0
        assert predictions.outputs.shape == predictions.probabilities.shape == (0, 3)


def test_regression_answers_returns_and_their_classes(stored: Callable[[str], StoredNetwork]) -> None:
    _, predictions = predict(stored("regression"))
    assert predictions.returns is not None
    assert predictions.outputs.shape == (len(predictions), 1)
    np.testing.assert_array_equal(predictions.returns, predictions.outputs[:, 0].astype(np.float64))
    assert (predictions.returns[predictions.classes == SignalClass.BUY] >= 0.001).all()
    assert (predictions.returns[predictions.classes == SignalClass.SELL] <= -0.001).all()
    assert set(predictions.classes) == set(SignalClass)


def test_classification_has_no_returns(stored: Callable[[str], StoredNetwork]) -> None:
    _, predictions = predict(stored("mlp"))
    assert predictions.returns is None


def test_signal_below_the_confidence_threshold_is_hold(tmp_path: Path) -> None:
    config = strategy(**{"decisions.confidence_threshold": 0.4})
    model = store_network(tmp_path / "model", config, [symbol_bars("EURUSD", config)])
    _, predictions = predict(model)
    is_sure = predictions.probabilities.max(axis=1) >= 0.4
    assert is_sure.any()
    assert not is_sure.all()
    np.testing.assert_array_equal(predictions.decisions[is_sure], predictions.classes[is_sure])
    assert (predictions.decisions[~is_sure] == SignalClass.HOLD).all()


def test_fuzzy_sets_are_those_that_were_fitted(tmp_path: Path) -> None:
    low = {"type": "quantile", "parameters": [0.1, 0.3], "shoulder": "left"}
    high = {"type": "quantile", "parameters": [0.6, 0.9], "shoulder": "right"}
    config = strategy(**{"fuzzy_sets.rsi": {"low": low, "high": high}, **TWO_TIMEFRAMES})
    model = store_network(tmp_path / "model", config, [symbol_bars("EURUSD", config)])
    loaded = TradingModel.load(model.path)
    sets = loaded.strategy.fuzzy_sets
    assert {one.type for own in sets.values() for one in own.values()} == {
        "left_shoulder",
        "right_shoulder",
        "triangular",
    }
    assert sets["rsi_14"]["low"].parameters != sets["rsi_14@4h"]["low"].parameters
    _, predictions = predict(model)
    places = np.searchsorted(predictions.times, model.split.test.times)
    np.testing.assert_array_equal(
        predictions.outputs[places], split_outputs(model.network, model.split, model.split.test)
    )


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("features.json", lambda raw: raw.pop("fuzzy_sets"), "fuzzy_sets"),
        ("features.json", lambda raw: raw["fuzzy_sets"]["rsi_14"].clear(), "fuzzy_sets"),
        ("features.json", lambda raw: raw["scaler"].pop("scale"), "scale"),
        ("config.json", lambda raw: raw["model_config"]["network"].update(type="tree"), "tree"),
        (
            "config.json",
            lambda raw: raw["model_config"]["network"].update(hidden_layers=[9]),
            "not those of its network",
        ),
        ("config.json", lambda raw: raw["model_config"]["network"].update(type="gru"), "damaged"),
        ("config.json", lambda raw: raw["strategy_config"].pop("indicators"), "indicators"),
    ],
)
def test_damaged_artifact_is_refused(
    tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    model = store_network(tmp_path / "model", strategy(), [symbol_bars("EURUSD", strategy())])
    change_json(model.path / file, change)
    with pytest.raises(CorruptDataError, match=says):
        TradingModel.load(model.path)


def test_features_that_are_not_those_of_the_training_are_refused(tmp_path: Path) -> None:
    model = store_network(tmp_path / "model", strategy(), [symbol_bars("EURUSD", strategy())])

    def rename(raw: dict[str, Any]) -> None:
        raw["feature_names"][0] = "rsi_99.low"
        raw["feature_importance"] = dict.fromkeys(raw["feature_names"], 0.0)

    change_json(model.path / "features.json", rename)
    with pytest.raises(CorruptDataError, match="trained on rsi_99"):
        TradingModel.load(model.path).predict(make_bars(300))


def test_directory_without_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        TradingModel.load(tmp_path)
