from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.bar_store import BarStore, DirectoryBarStore, SeriesInfo
from ktrdr_core.data.bars import Bars, day_of
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.datasets.rows import build_rows
from ktrdr_core.datasets.series_features import compute_features
from ktrdr_core.datasets.split import split_rows
from ktrdr_core.domain.spec import DataMode, TrainingSpec
from ktrdr_core.errors import (
    InvalidBarsError,
    InvalidInputError,
    InvalidSpecError,
    InvalidStrategyError,
    SeriesNotFoundError,
    TooFewBarsError,
    UnsupportedError,
)
from ktrdr_core.labels.registry import check_degenerate, generate_labels
from ktrdr_core.training.preflight import TrainingPlan, preflight, prepare_strategy
from tests.kit.builders import REPOSITORY, bars_csv, make_bars, strategy_text, write_bars_csv


class ReadOnceStore:
    """The shipped bars, each file read and checked once for all tests here."""

    def __init__(self) -> None:
        self._store = DirectoryBarStore(REPOSITORY / "data")
        self._bars: dict[tuple[str, str], Bars] = {}

    def list_series(self) -> list[SeriesInfo]:
        return self._store.list_series()

    def load(self, symbol: str, timeframe: str, start: date | None = None, end: date | None = None) -> Bars:
        key = (symbol, timeframe)
        if key not in self._bars:
            self._bars[key] = self._store.load(symbol, timeframe)
        return self._bars[key].between(start, end)


STORE = ReadOnceStore()


def plan(overrides: dict[str, Any] | None = None, store: BarStore = STORE, **spec: Any) -> TrainingPlan:
    return preflight(TrainingSpec(strategy_yaml=strategy_text(**(overrides or {})), **spec), store)


def shipped_text() -> str:
    return (REPOSITORY / "strategies" / "neuro_mean_reversion.yaml").read_text()


def test_shipped_strategy_passes_on_the_shipped_bars() -> None:
    result = preflight(TrainingSpec(strategy_yaml=shipped_text()), STORE)
    assert (result.symbols, result.timeframes) == (("EURUSD",), ("1h",))
    assert (result.start_date, result.end_date) == (date(2017, 1, 1), date(2017, 12, 29))


def test_labels_of_the_shipped_strategy_are_balanced_in_every_part() -> None:
    result = preflight(TrainingSpec(strategy_yaml=shipped_text()), STORE)
    bars, strategy = STORE.load("EURUSD", "1h"), result.strategy
    labels = generate_labels(bars, strategy.training.labels)
    check_degenerate(labels.y, strategy.training.labels)
    shares = np.bincount(labels.y[labels.y >= 0]) / (labels.y >= 0).sum()
    assert ((shares > 0.2) & (shares < 0.5)).all()
    split = _split(bars, strategy)
    for part in (split.train, split.validation, split.test):
        assert (np.bincount(part.y, minlength=3) > 0.15 * len(part)).all()


def test_config_holds_every_setting_and_is_plain_json() -> None:
    config = plan(seed=7, enable_gpu=False, memory_fraction=0.5).config
    assert json.loads(json.dumps(config)) == config
    assert set(config) == {"strategy_config", "training_config", "model_config"}
    assert config["training_config"] == {
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 0.01,
        "optimizer": "adam",
        "weight_decay": None,
        "momentum": 0.0,
        "schedule": {"type": "constant", "factor": None, "every_epochs": None, "warm_up_epochs": 0},
        "gradient_clip_norm": None,
        "early_stopping": None,
        "loss": None,
        "focal_gamma": 2.0,
        "class_weights": "none",
        "checkpoint_every_epochs": None,
        "seed": 7,
        "enable_gpu": False,
        "require_gpu": False,
        "num_gpus": 0,
        "memory_fraction": 0.5,
        "mixed_precision": False,
        "sampling": "balanced",
        "num_symbols": 1,
        "output_format": "classification",
        "output_activation": "softmax",
        "buy_threshold": None,
        "sell_threshold": None,
        "validation_split": 0.15,
        "data_split": {"train": 0.7, "validation": 0.15, "test": 0.15, "embargo_bars": 0},
    }
    assert config["model_config"] == {
        "type": "mlp",
        "hidden_layers": [8],
        "activation": "relu",
        "output_activation": "softmax",
        "dropout": 0.1,
        "d_model": None,
        "num_heads": None,
        "output_format": "classification",
        "window_bars": 1,
        "num_symbols": 0,
        "symbol_embedding_dim": 0,
        "input_size": None,
    }
    assert strategy_from_dict(config["strategy_config"]) == plan(seed=7).strategy


def test_request_overrides_the_strategy_everywhere() -> None:
    result = plan(epochs=9, batch_size=64, learning_rate=0.5, model_type="MLP")
    assert result.config["training_config"]["epochs"] == 9
    assert result.config["training_config"]["batch_size"] == 64
    assert result.strategy.model.training.learning_rate == 0.5
    assert result.config["strategy_config"]["model"]["training"]["epochs"] == 9


@pytest.mark.parametrize(
    ("declared", "asked", "expected"),
    [
        ({"train": 0.6, "validation": 0.1, "test": 0.3}, None, (0.6, 0.1, 0.3)),
        ({"train": 0.6, "validation": 0.1, "test": 0.3}, 0.2, (0.5, 0.2, 0.3)),
        ({"train": 0.6, "validation": 0.1, "test": 0.3}, 0.05, (0.65, 0.05, 0.3)),
        (None, None, (0.6, 0.2, 0.2)),
        (None, 0.1, (0.8, 0.1, 0.1)),
    ],
)
def test_split_of_the_strategy_is_the_truth_and_the_request_moves_validation(
    declared: dict[str, float] | None, asked: float | None, expected: tuple[float, ...]
) -> None:
    config = plan({"training.data_split": declared}, validation_split=asked).config["training_config"]
    assert tuple(config["data_split"].values()) == pytest.approx((*expected, 0))
    assert config["validation_split"] == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("declared", "asked", "limit"), [({"train": 0.6, "validation": 0.1, "test": 0.3}, 0.7, "0.7"), (None, 0.5, "0.5")]
)
def test_validation_split_that_leaves_nothing_to_train_on_is_refused(
    declared: dict[str, float] | None, asked: float, limit: str
) -> None:
    with pytest.raises(InvalidSpecError, match=f"it must be above 0 and below {limit}"):
        plan({"training.data_split": declared}, validation_split=asked)


def test_memory_and_precision_may_be_asked_for_by_the_strategy_or_the_request() -> None:
    asked = {"model.training.gpu_memory_fraction": 0.25, "model.training.mixed_precision": True}
    config = plan(asked).config["training_config"]
    assert (config["memory_fraction"], config["mixed_precision"]) == (0.25, True)
    assert plan(asked, memory_fraction=0.5).config["training_config"]["memory_fraction"] == 0.5


def test_network_that_sees_windows_is_told_their_length() -> None:
    config = plan({"model.type": "lstm", "model.features.lookback_periods": 20}).config["model_config"]
    assert (config["type"], config["window_bars"]) == ("lstm", 21)


def test_embargo_of_the_strategy_survives_another_validation_split() -> None:
    config = plan({"training.data_split.embargo_bars": 7}, validation_split=0.2).config["training_config"]
    assert config["data_split"]["embargo_bars"] == 7


def test_longer_timeframe_without_bars_is_resampled() -> None:
    result = plan(timeframes=("4h", "1h"))
    assert result.timeframes == ("1h", "4h")
    assert result.strategy.base_timeframe == "1h"


def test_more_features_than_a_result_can_name_are_refused() -> None:
    many = {f"set_{n}": {"type": "triangular", "parameters": [n, n + 20, n + 40]} for n in range(8)}
    wide = {"fuzzy_sets.rsi": many, "model.features.lookback_periods": 1_000}
    with pytest.raises(InvalidStrategyError, match="makes 10,010 features with lookback_periods 1000") as caught:
        prepare_strategy(TrainingSpec(strategy_yaml=strategy_text(**wide)))
    assert caught.value.violations[0].field == "model.features.lookback_periods"
    assert prepare_strategy(TrainingSpec(strategy_yaml=strategy_text(**wide | {"model.type": "lstm"})))


def test_folds_need_enough_rows_too() -> None:
    days: dict[str, Any] = {"start_date": date(2017, 3, 1), "end_date": date(2017, 4, 30)}
    folds = {"method": "walk_forward", "folds": 40}
    assert plan(**days)
    with pytest.raises(TooFewBarsError, match=r"fold 1 of 40 \(walk_forward\): EURUSD 1h"):
        plan({"validation": folds}, **days)


def test_symbols_of_unlike_ranges_are_trained_on_what_each_has(tmp_path: Path) -> None:
    write_bars_csv(tmp_path, make_bars(900, symbol="AAA"))
    late = make_bars(900, symbol="BBB")
    write_bars_csv(tmp_path, late.rows(slice(300, 900)))
    store = DirectoryBarStore(tmp_path)
    result = plan(store=store, symbols=("AAA", "BBB"))
    assert (result.start_date, result.end_date) == (make_bars(900).first_day, late.last_day)
    early = make_bars(900).times[200]
    with pytest.raises(TooFewBarsError, match="BBB 1h has no bars"):
        plan(store=store, symbols=("AAA", "BBB"), end_date=day_of(int(early)))


@pytest.mark.parametrize(
    ("spec", "error_class", "text"),
    [
        ({"symbols": ("EURUSD", "GBPUSD"), "multi_symbol": False}, InvalidSpecError, "multi_symbol is false"),
        ({"timeframes": ("4h", "6h")}, InvalidSpecError, "6h is no whole multiple of the base timeframe 4h"),
        ({"model_type": "lstm", "symbols": ("EURUSD", "GBPUSD")}, SeriesNotFoundError, "no bars for GBPUSD 1h"),
        ({"data_mode": DataMode.IB}, UnsupportedError, "data mode 'ib' is not built yet"),
        ({"model_type": "mpl"}, InvalidSpecError, "unknown model type 'mpl'; did you mean 'mlp'"),
        ({"symbols": ("../x",)}, InvalidSpecError, "symbol must be"),
        ({"timeframes": ("1x",)}, InvalidSpecError, "a timeframe must be a number"),
        ({"symbols": ("GBPUSD",)}, SeriesNotFoundError, "these exist: EURUSD 1h"),
        ({"timeframes": ("4h",)}, SeriesNotFoundError, "EURUSD exists in 1h"),
        ({"start_date": date(2016, 12, 31)}, InvalidSpecError, "EURUSD 1h has bars from 2017-01-01 to 2017-12-29"),
        ({"end_date": date(2018, 1, 1)}, InvalidSpecError, "end_date 2018-01-01 is outside the bars"),
        (
            {"start_date": date(2019, 1, 1), "end_date": date(2019, 2, 1)},
            InvalidSpecError,
            "start_date 2019-01-01 is outside",
        ),
        (
            {"start_date": date(2017, 3, 1), "end_date": date(2017, 3, 6)},
            TooFewBarsError,
            "history_required asks for 100",
        ),
    ],
)
def test_wrong_request_is_refused(spec: dict[str, Any], error_class: type[Exception], text: str) -> None:
    with pytest.raises(error_class, match=text):
        plan(**spec)


def test_too_few_bars_after_warm_up_horizon_and_purge_are_refused() -> None:
    with pytest.raises(
        TooFewBarsError, match=r"EURUSD 1h has 120 bars .* train 42, validation 2, test 11 rows are left"
    ):
        plan({"training_data.history_required": 0}, start_date=date(2017, 3, 1), end_date=date(2017, 3, 7))


def test_preflight_counts_the_rows_that_training_will_have() -> None:
    """The shortest range that preflight accepts is the shortest that the split accepts."""
    overrides = {"training_data.history_required": 0}
    strategy = plan(overrides).strategy
    accepted = []
    for num_days in range(6, 16):
        end = date(2017, 3, num_days)
        bars = STORE.load("EURUSD", "1h").between(date(2017, 3, 1), end)
        by_preflight = _passes(lambda end=end: plan(overrides, start_date=date(2017, 3, 1), end_date=end))
        by_split = _passes(lambda bars=bars: _split(bars, strategy))
        assert by_preflight == by_split
        accepted.append(by_preflight)
    assert len(set(accepted)) == 2


def _passes(action: Any) -> bool:
    try:
        action()
    except TooFewBarsError:
        return False
    return True


def _split(bars: Bars, strategy: StrategyConfig) -> DataSplit:
    features, labels = compute_features(SymbolBars(bars), strategy), generate_labels(bars, strategy.training.labels)
    assert strategy.training.data_split is not None
    rows = build_rows([features], [labels], [bars], symbols=["EURUSD"])
    return split_rows(rows, columns=features.columns, shares=strategy.training.data_split)


def test_days_are_included_at_both_ends() -> None:
    result = plan(start_date=date(2017, 1, 1), end_date=date(2017, 12, 29))
    assert (result.start_date, result.end_date) == (date(2017, 1, 1), date(2017, 12, 29))


def test_strategy_for_several_symbols_trains_on_the_one_that_is_asked_for() -> None:
    symbols = {"mode": "multi_symbol", "list": ["EURUSD", "GBPUSD"]}
    result = plan({"training_data.symbols": symbols}, symbols=("EURUSD",))
    assert result.symbols == ("EURUSD",)
    assert result.strategy.training_data.symbols.mode == "single"


def test_csv_mode_reads_csv_files_only(tmp_path: Path) -> None:
    from pyarrow import csv, parquet

    assert plan(data_mode=DataMode.CSV).config == plan(data_mode=DataMode.LOCAL).config
    path = write_bars_csv(tmp_path)
    parquet.write_table(csv.read_csv(path), path.with_suffix(".parquet"))
    path.unlink()
    store = DirectoryBarStore(tmp_path)
    assert plan(store=store).symbols == ("EURUSD",)
    with pytest.raises(InvalidSpecError, match="EURUSD 1h is stored as parquet; use backend or local"):
        plan(store=store, data_mode=DataMode.CSV)


def test_bars_that_break_a_rule_are_refused_before_anything_runs(tmp_path: Path) -> None:
    lines = bars_csv(make_bars(600)).splitlines()
    lines[100] = lines[101]
    (tmp_path / "EURUSD_1h.csv").write_text("\n".join(lines))
    with pytest.raises(InvalidBarsError, match=r"EURUSD_1h\.csv, row 101 .*times must strictly increase"):
        plan(store=DirectoryBarStore(tmp_path))


def test_malformed_strategy_is_refused_without_reading_bars() -> None:
    for text, error_class in (
        ("nonsense", InvalidStrategyError),
        ("a: [", InvalidStrategyError),
        (" ", InvalidInputError),
    ):
        with pytest.raises(error_class):
            prepare_strategy(TrainingSpec(strategy_yaml=text))


def test_refusal_names_the_file_it_was_given() -> None:
    spec = TrainingSpec(strategy_yaml=strategy_text(**{"model.training.epochs": 0}))
    with pytest.raises(InvalidStrategyError, match=r"was 0 \(mine\.yaml, model\.training\.epochs\)"):
        prepare_strategy(spec, source="mine.yaml")


def test_declared_input_size_travels_to_the_executor() -> None:
    assert plan({"model.input_size": 99}).config["model_config"]["input_size"] == 99
