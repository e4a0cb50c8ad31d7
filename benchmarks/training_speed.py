"""Rows per second of ModelTrainer against the usual loop: DataLoader, `.item()` and a callback at each batch.

All train the same network ([50, 25], 100 features, dropout 0.2) on rows alike with Adam at batch 32, on one thread:
one model, a stack of models (rows of all of them), and the autograd engine that serves every other network. The whole
training is the shipped strategy on the shipped bars.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.report import BenchRow
from benchmarks.sample import BARS_DIR, build_spec
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.device import DeviceManager
from ktrdr_core.training.eager_engine import EagerEngine
from ktrdr_core.training.engines import EngineBuilder, build_engine
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.model_trainer import ModelTrainer
from ktrdr_core.training.run_job import run_training

NUM_FEATURES = 100
HIDDEN_LAYERS = (50, 25)
DROPOUT = 0.2
BATCH_SIZE = 32
NUM_LANES = 64
ROWS_PER_VALIDATION_ROW = 32
WHOLE_EPOCHS = 100


@dataclass(frozen=True)
class Contender:
    """What is measured against the usual loop: the ratio aimed at, rows seen (of all models), and what to run."""

    aim: float
    rows: int
    body: Callable[[], None]


def _make_part(num_rows: int, seed: int) -> DatasetPart:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_rows, NUM_FEATURES)).astype(np.float32)
    return DatasetPart.from_rows(X, rng.integers(0, 3, size=num_rows))


def _usual_network() -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    width = NUM_FEATURES
    for units in HIDDEN_LAYERS:
        layers += [torch.nn.Linear(width, units), torch.nn.ReLU(), torch.nn.Dropout(DROPOUT)]
        width = units
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 3))


def _train_usually(train: DatasetPart, validation: DatasetPart, epochs: int) -> None:
    model = _usual_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_function = torch.nn.CrossEntropyLoss()
    loader = DataLoader(
        TensorDataset(torch.from_numpy(train.X), torch.from_numpy(train.y)), batch_size=BATCH_SIZE, shuffle=True
    )
    x_validation, y_validation = torch.from_numpy(validation.X), torch.from_numpy(validation.y)
    seen: list[dict[str, float]] = []
    for epoch in range(epochs):
        model.train()
        total_loss, correct = 0.0, 0
        for batch, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            logits = model(x)
            loss = loss_function(logits, y)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()
            correct += (logits.argmax(dim=1) == y).sum().item()
            seen[:] = [{"epoch": epoch, "batch": batch, "train_loss": total_loss / (batch + 1), "hits": correct}]
        model.eval()
        with torch.no_grad():
            loss_function(model(x_validation), y_validation).item()


def _build_lanes(num_lanes: int, num_rows: int, epochs: int) -> list[Lane]:
    """Return models that share their rows; a model's own rows would only take longer to make."""
    train, validation = _make_part(num_rows, 1), _make_part(num_rows // ROWS_PER_VALIDATION_ROW, 2)
    settings = Hyperparameters(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=1e-3, enable_gpu=False)
    spec = NetworkSpec(type="mlp", input_size=NUM_FEATURES, hidden_layers=HIDDEN_LAYERS, dropout=DROPOUT)
    return [
        Lane(build_network(spec, seed=seed), train, validation, replace(settings, seed=seed))
        for seed in range(num_lanes)
    ]


def _train_lanes(lanes: Sequence[Lane], engine_builder: EngineBuilder) -> None:
    seen: list[object] = []

    def callback(epoch: int, total_epochs: int, metrics: object) -> None:
        seen[:] = [metrics]

    device = DeviceManager.select(enable_gpu=False)
    trainer = ModelTrainer(lanes[0].hyperparameters, device, callback, engine_builder=engine_builder)
    trainer.train_lanes(lanes)


def _train_whole() -> None:
    with TemporaryDirectory() as folder:
        run_training(
            build_spec(WHOLE_EPOCHS),
            bar_store=DirectoryBarStore(BARS_DIR),
            model_storage=ModelStorage(Path(folder) / "models"),
        )


def _seconds(body: Callable[[], None]) -> float:
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def run(quick: bool) -> list[BenchRow]:
    """Measure the loops in turn, several times; each ratio is the median of the rounds'."""
    num_rows, epochs, repeats = (6_400, 1, 3) if quick else (32_000, 2, 5)
    one, rows_of_one = _build_lanes(1, num_rows, epochs), num_rows * epochs
    rows_of_each = num_rows // 2
    stack = _build_lanes(NUM_LANES, rows_of_each, 1)
    contenders: dict[str, Contender] = {
        f"training, batch {BATCH_SIZE}, one thread": Contender(
            8.0, rows_of_one, partial(_train_lanes, one, build_engine)
        ),
        f"training, {NUM_LANES} models as one stack": Contender(
            18.0, rows_of_each * NUM_LANES, partial(_train_lanes, stack, build_engine)
        ),
        "training, autograd engine": Contender(1.7, rows_of_one, partial(_train_lanes, one, EagerEngine)),
    }
    usual = partial(_train_usually, one[0].train, one[0].validation, epochs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tiny = _build_lanes(1, 640, 1)
        _train_usually(tiny[0].train, tiny[0].validation, 1)
        for engine_builder in (build_engine, EagerEngine):
            _train_lanes(tiny, engine_builder)
        rounds = [
            (_seconds(usual) / rows_of_one, [_seconds(it.body) / it.rows for it in contenders.values()])
            for _ in range(repeats)
        ]
        whole_s = [_seconds(_train_whole) for _ in range(1 + repeats)][1:]
    finally:
        torch.set_num_threads(threads)
    rows = [
        BenchRow(
            name=name,
            value=1 / median(own[index] for _, own in rounds),
            unit="rows/s",
            baseline_name="DataLoader + .item() + callback",
            baseline_value=1 / median(usual_s for usual_s, _ in rounds),
            ratio=median(usual_s / own[index] for usual_s, own in rounds),
            aim=f">= {contender.aim:g}x",
        )
        for index, (name, contender) in enumerate(contenders.items())
    ]
    whole = BenchRow(
        name=f"whole training, EURUSD 1h, {WHOLE_EPOCHS} epochs, bars to stored model",
        value=median(whole_s),
        unit="s",
        aim="< 4 s",
    )
    return [*rows, whole]


if __name__ == "__main__":
    print(*run(quick=False), sep="\n")
