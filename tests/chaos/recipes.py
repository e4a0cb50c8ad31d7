"""What is trained under chaos: small strategies of every kind, on a few hundred bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ktrdr.training.v1 import execution_mode_pb2
from ktrdr.training.v1.training_spec_pb2 import TrainingSpec

from tests.chaos.schedule import Recipe
from tests.kit.builders import make_bars, strategy_text, write_bars_csv

_PAIR = {"mode": "multi_symbol", "list": ["EURUSD", "GBPUSD"]}
# Many steps an epoch: time passes without hundreds of epochs, each of which every watcher is told.
_SLOW_EPOCHS = {"model.training.batch_size": 4, "model.architecture.hidden_layers": [128, 64]}
_CHANGES: dict[Recipe, dict[str, Any]] = {
    Recipe.QUICK: {"model.training.epochs": 25},
    Recipe.MEDIUM: _SLOW_EPOCHS | {"model.training.epochs": 80},
    Recipe.LONG: _SLOW_EPOCHS | {"model.training.epochs": 300},
    Recipe.LSTM: {
        "model.type": "lstm",
        "model.architecture": {"hidden_layers": [6], "dropout": 0.2},
        "model.features.lookback_periods": 5,
        "model.training.batch_size": 128,
        "model.training.epochs": 20,
    },
    Recipe.PAIR: {"training_data.symbols": _PAIR, "model.training.epochs": 40},
    Recipe.FOLDS: {"model.training.epochs": 30, "validation": {"method": "walk_forward", "folds": 3}},
    Recipe.DEGENERATE: {"training.labels.zigzag_threshold": 0.9},
}
_MODES = {
    "host": execution_mode_pb2.EXECUTION_MODE_HOST,
    "local": execution_mode_pb2.EXECUTION_MODE_LOCAL,
    "auto": execution_mode_pb2.EXECUTION_MODE_AUTO,
}


def write_bars(directory: Path) -> None:
    """Write the bars that every recipe trains on."""
    for symbol, seed in (("EURUSD", 7), ("GBPUSD", 8)):
        write_bars_csv(directory, make_bars(1_500, seed, symbol=symbol))


def build_spec(recipe: Recipe, mode: str, *, seed: int = 42) -> TrainingSpec:
    """Return what is asked for; `seed` makes it another training."""
    spec = TrainingSpec(execution_mode=_MODES[mode], seed=seed)
    spec.strategy.yaml = strategy_text(name=f"chaos_{recipe}", **_CHANGES[recipe])
    return spec
