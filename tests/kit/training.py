"""Small real pieces for tests of the training loop; importing this loads torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.domain.cancellation import CancellationToken, LocalCancellationToken
from ktrdr_core.domain.progress import ProgressCallback
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.device import DeviceManager
from ktrdr_core.training.engines import EngineBuilder, build_engine
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.model_trainer import ModelTrainer

NUM_FEATURES = 6


@dataclass(frozen=True)
class Trained:
    """A finished training and everything it was given."""

    spec: TrainingSpec
    bar_store: DirectoryBarStore
    model_storage: ModelStorage
    result: TrainingResult

    @property
    def path(self) -> Path:
        return Path(self.result["model_path"])


def make_part(num_rows: int, seed: int, *, is_learnable: bool = True) -> DatasetPart:
    """Return rows whose class follows the first three features, or nothing at all."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_rows, NUM_FEATURES)).astype(np.float32)
    y = X[:, :3].argmax(axis=1) if is_learnable else rng.integers(0, 3, size=num_rows)
    return DatasetPart.from_rows(X, y.astype(np.int64))


def make_window_part(num_rows: int, seed: int, *, window_bars: int = 4, num_symbols: int = 1) -> DatasetPart:
    """Return windows over a matrix in which symbols stand one after another; some bars are no rows.

    The class follows the last two bars, and the target is a small number of its sign.
    """
    rng = np.random.default_rng(seed)
    per_symbol = num_rows // num_symbols
    bars = window_bars - 1 + 2 * per_symbol
    matrix = rng.normal(size=(bars * num_symbols, NUM_FEATURES)).astype(np.float32)
    kept = [np.sort(rng.choice(2 * per_symbol, per_symbol, replace=False)) for _ in range(num_symbols)]
    rows = np.concatenate([own + index * bars + window_bars - 1 for index, own in enumerate(kept)])
    y = (matrix[rows, :3] + matrix[rows - (window_bars > 1), :3]).argmax(axis=1)
    return DatasetPart(
        matrix=matrix,
        rows=rows,
        window_bars=window_bars,
        y=y,
        times=rows.copy(),
        symbol_ids=np.repeat(np.arange(num_symbols), per_symbol),
        targets=((1 - y) * 0.01 + rng.normal(size=len(y)) * 0.004).astype(np.float32),
    )


def make_network(
    *, seed: int = 42, dropout: float = 0.2, hidden_layers: tuple[int, ...] = (8, 5), **spec: Any
) -> Network:
    chosen: dict[str, Any] = {
        "type": "mlp",
        "input_size": NUM_FEATURES,
        "hidden_layers": hidden_layers,
        "dropout": dropout,
    } | spec
    return build_network(NetworkSpec(**chosen), seed=seed)


def make_trainer(
    progress_callback: ProgressCallback | None = None,
    cancellation_token: CancellationToken | None = None,
    *,
    engine_builder: EngineBuilder = build_engine,
    **settings: Any,
) -> ModelTrainer:
    return ModelTrainer(
        make_settings(**settings),
        DeviceManager.select(enable_gpu=False),
        progress_callback,
        cancellation_token,
        engine_builder=engine_builder,
    )


def make_settings(**settings: Any) -> Hyperparameters:
    """Return three short epochs on the CPU; keys and values as in a `training_config`."""
    chosen = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "enable_gpu": False} | settings
    return Hyperparameters.from_training_config(chosen)


class CountingToken(LocalCancellationToken):
    """Cancelled from the `limit`-th time it is asked on."""

    def __init__(self, limit: int, *, save_checkpoint: bool = False) -> None:
        super().__init__()
        self.limit = limit
        self.asked = 0
        self.save_checkpoint = save_checkpoint

    def is_cancelled(self) -> bool:
        self.asked += 1
        if self.asked >= self.limit:
            self.cancel("enough")
        return super().is_cancelled()


def recorder(into: list[dict[str, Any]], then: Callable[[], None] = lambda: None) -> ProgressCallback:
    """Return a callback that keeps a copy of each update's metrics, then calls `then`."""

    def callback(epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
        into.append(dict(metrics))
        then()

    return callback
