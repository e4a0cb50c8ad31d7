"""Every part of the grammar trains, and what is stored predicts the test part exactly as the training judged it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrdr_core.data.bar_store import BarStore, DirectoryBarStore
from ktrdr_core.data.symbol_series import load_symbol_bars
from ktrdr_core.domain.cancellation import LocalCancellationToken
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.domain.progress import TrainingStep
from ktrdr_core.domain.result import TrainingResult, validate_training_result
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import CancellationError
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.run_job import run_training
from ktrdr_core.training.trading_model import TradingModel
from tests.kit.builders import make_bars, strategy_text, write_bars_csv

START, END = date(2017, 3, 1), date(2017, 6, 30)
QUANTILES = {
    "low": {"type": "quantile", "parameters": [0.1, 0.4], "shoulder": "left"},
    "middle": {"type": "quantile", "parameters": [0.1, 0.5, 0.9]},
    "high": {"type": "quantile", "parameters": [0.6, 0.9], "shoulder": "right"},
}
REGRESSION: dict[str, Any] = {
    "decisions": {"output_format": "regression", "position_awareness": True},
    "training.labels": {
        "source": "forward_return",
        "label_lookahead": 6,
        "buy_threshold": 0.0005,
        "sell_threshold": 0.0005,
    },
    "model.architecture": {"hidden_layers": [8]},
}
WINDOWS: dict[str, Any] = {"model.features.lookback_periods": 5, "model.training.batch_size": 128}
BOUNDED = {"profit_barrier": 3.0, "loss_barrier": 3.0, "volatility_period": 24}
STRATEGIES: dict[str, dict[str, Any]] = {
    "lstm": WINDOWS | {"model.type": "lstm", "model.architecture": {"hidden_layers": [6, 4], "dropout": 0.2}},
    "gru": WINDOWS | {"model.type": "gru", "model.features.include_price_context": True},
    "transformer": WINDOWS
    | {"model.type": "transformer", "model.architecture": {"hidden_layers": [8], "d_model": 8, "num_heads": 2}},
    "regression": REGRESSION,
    "huber by lstm": WINDOWS | REGRESSION | {"model.type": "lstm", "model.training.loss": "huber"},
    "one against the rest": {"model.architecture.output_activation": "sigmoid"},
    "focal, balanced, clipped": {
        "model.training.loss": "focal",
        "model.training.class_weights": "balanced",
        "model.training.gradient_clip_norm": 0.5,
    },
    "sgd by schedule": {
        "model.training.optimizer": "sgd",
        "model.training.momentum": 0.9,
        "model.training.schedule": {"type": "cosine", "warm_up_epochs": 1},
    },
    "rmsprop": {"model.training.optimizer": "rmsprop", "model.training.weight_decay": 0.001},
    "robust, raw": {"model.features.scaling": "robust", "model.features.include_raw_indicators": True},
    "unscaled": {"model.features.scale_features": False},
    "two timeframes, quantiles": {
        "training_data.timeframes": {"mode": "multi_timeframe", "list": ["1h", "4h"]},
        "fuzzy_sets.rsi": QUANTILES,
        "fuzzy_sets.rsi@4h": {"low": {"type": "sigmoid", "parameters": [-0.2, 40]}},
        "indicators.1.timeframes": ["1h"],
    },
    "triple barrier, embargo": {
        "training.labels": {"source": "triple_barrier", "label_lookahead": 12, **BOUNDED},
        "training.data_split.embargo_bars": 24,
    },
    "segments": {"training.labels": {"source": "zigzag_segments", "label_lookahead": 48, "zigzag_threshold": 0.003}},
    "filtered decisions": {
        "decisions": {
            "confidence_threshold": 0.3,
            "position_awareness": True,
            "filters": {
                "min_separation": 0.01,
                "volume_filter": True,
                "min_range": 0.0001,
                "trading_hours": {"start": 7, "end": 21},
            },
        }
    },
    "walk forward, twice": {"validation": {"method": "walk_forward", "folds": 3, "window": "rolling", "seeds": 2}},
    "purged k-fold of quantiles": {
        "fuzzy_sets.rsi": QUANTILES,
        "validation": {"method": "purged_k_fold", "folds": 3, "embargo_bars": 12},
    },
    "repeated seeds of a gru": WINDOWS | {"model.type": "gru", "validation": {"method": "repeated_seeds", "folds": 2}},
}


def train(store: BarStore, storage: ModelStorage | None, text: str, **options: Any) -> TrainingResult:
    spec = TrainingSpec(strategy_yaml=text, start_date=START, end_date=END, enable_gpu=False, epochs=2)
    return run_training(spec, bar_store=store, model_storage=storage, **options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_trains_and_its_model_answers_as_it_was_judged(
    name: str, bar_store: DirectoryBarStore, tmp_path: Path
) -> None:
    result = train(bar_store, ModelStorage(tmp_path), strategy_text(**STRATEGIES[name]))
    validate_training_result(result)
    evaluation = result["evaluation"]
    base, *higher = result["metadata"]["timeframes"]
    bars = load_symbol_bars(bar_store, "EURUSD", base, higher, START, END)
    predictions = TradingModel.load(Path(result["model_path"])).predict(bars)
    test_rows = json.loads((Path(result["model_path"]) / "config.json").read_text())["data_config"]["rows"]["test"]
    confusion = np.array(evaluation["confusion_matrix"])
    counted: dict[str, int] = {key: int(str(count)) for key, count in evaluation["rows"].items()}
    assert counted.pop("bars") == len(bars) == sum(counted.values())
    assert confusion.sum() == test_rows == result["metadata"]["test_samples"]
    assert abs(result["test_metrics"]["accuracy"] - np.trace(confusion) / confusion.sum()) < 1e-12
    if "segments" not in name:  # whose last rows are not labelled one after the other
        horizon_bars = evaluation["leakage"]["horizon_bars"]
        judged = predictions.classes[-test_rows - horizon_bars : -horizon_bars]
        said = np.bincount(judged, minlength=len(SignalClass))
        np.testing.assert_array_equal(said, confusion.sum(axis=0))
    assert (evaluation["regression"] is not None) == ("decisions" in STRATEGIES[name] and "regression" in name) or (
        name == "huber by lstm"
    )
    assert len(evaluation["folds"]) == {"walk": 6, "purged": 3, "repeated": 2}.get(name.split()[0], 0)
    assert {group["kind"] for group in evaluation["group_importance"]} == {"indicator", "timeframe"}


def test_same_strategy_gives_the_same_artifact_whatever_its_family(bar_store: DirectoryBarStore) -> None:
    for name in ("lstm", "walk forward, twice", "two timeframes, quantiles"):
        text = strategy_text(**STRATEGIES[name])
        assert train(bar_store, None, text)["artifact_digest"] == train(bar_store, None, text)["artifact_digest"]


def test_validation_does_not_change_the_model(bar_store: DirectoryBarStore) -> None:
    alone = train(bar_store, None, strategy_text())
    beside = train(bar_store, None, strategy_text(validation={"method": "walk_forward", "folds": 3}))
    assert alone["training_metrics"] == beside["training_metrics"]
    assert alone["test_metrics"] == beside["test_metrics"]
    assert alone["feature_importance"] == beside["feature_importance"]


def test_folds_differ_from_one_another_and_seeds_too(bar_store: DirectoryBarStore) -> None:
    evaluation = train(bar_store, None, strategy_text(**STRATEGIES["walk forward, twice"]))["evaluation"]
    folds = evaluation["folds"]
    assert [(fold["fold"], fold["seed"]) for fold in folds] == [(n, seed) for n in (1, 2, 3) for seed in (42, 43)]
    assert len({fold["loss"] for fold in folds}) == 6
    spans, rows = evaluation["leakage"]["label_spans"], evaluation["rows"]
    own = rows["training_rows"] + rows["validation_rows"] + rows["test_rows"]
    assert spans > own + sum(fold["train_rows"] + fold["judged_rows"] for fold in folds[::2]), "folds are checked too"
    assert sorted({fold["judged_from"] for fold in folds}) == [folds[index]["judged_from"] for index in (0, 2, 4)]
    assert max(fold["judged_to"] for fold in folds) < "2017-06-15"  # the test part is not judged by any


@pytest.mark.parametrize("dim", [0, 3])
@pytest.mark.parametrize("sampling", ["balanced", "proportional"])
def test_symbols_train_together_and_each_predicts_as_it_was_judged(tmp_path: Path, dim: int, sampling: str) -> None:
    for symbol, n, seed in (("AAA", 900, 1), ("BBB", 500, 2)):
        write_bars_csv(tmp_path / "bars", make_bars(n, seed, symbol=symbol))
    store = DirectoryBarStore(tmp_path / "bars")
    symbols = {"mode": "multi_symbol", "list": ["AAA", "BBB"], "sampling": sampling}
    text = strategy_text(**{"training_data.symbols": symbols, "model.symbol_embedding_dim": dim})
    spec = TrainingSpec(strategy_yaml=text, enable_gpu=False, epochs=2)
    result = run_training(spec, bar_store=store, model_storage=ModelStorage(tmp_path / "models"))
    assert ("symbol.AAA" in result["feature_names"]) is (dim > 0)
    model = TradingModel.load(Path(result["model_path"]))
    counts = json.loads((Path(result["model_path"]) / "config.json").read_text())["data_config"]["row_counts"]
    said = np.zeros(len(SignalClass), dtype=np.int64)
    for own in counts:
        num_test = own["rows"] - round(own["rows"] * 0.85)
        said += np.bincount(model.predict(store.load(own["symbol"], "1h")).classes[-num_test - 10 : -10], minlength=3)
    np.testing.assert_array_equal(said, np.array(result["evaluation"]["confusion_matrix"]).sum(axis=0))


class StopAfter(LocalCancellationToken):
    """Asks for a checkpoint when it has been asked `limit` times since the training step began."""

    save_checkpoint = True

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit
        self._has_begun = False

    def see_step(self, step: TrainingStep) -> None:
        self._has_begun |= step is TrainingStep.TRAINING

    def is_cancelled(self) -> bool:
        self._left -= self._has_begun
        if self._left == 0:
            self.cancel("stop here")
        return super().is_cancelled()


# Epochs of some 44 batches, of 11 for the gru: in the first epoch, right after it, in the second.
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *(("walk forward, twice", limit) for limit in (10, 47, 80)),
        *(("gru", limit) for limit in (4, 14, 20)),
        ("purged k-fold of quantiles", 60),
    ],
)
def test_stopped_training_goes_on_bit_for_bit(
    name: str, limit: int, bar_store: DirectoryBarStore, tmp_path: Path
) -> None:
    text, token = strategy_text(**STRATEGIES[name]), StopAfter(limit)
    with pytest.raises(CancellationError) as stopped:
        train(bar_store, None, text, cancellation_token=token, step_callback=token.see_step, checkpoint_dir=tmp_path)
    checkpoint = stopped.value.checkpoint_path
    assert checkpoint
    resumed = train(bar_store, None, text, resume_from=Path(checkpoint))
    assert resumed["artifact_digest"] == train(bar_store, None, text)["artifact_digest"]
