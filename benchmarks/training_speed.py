"""Rows per second of ModelTrainer against the usual loop: DataLoader, `.item()` and a callback at each batch.

Both train the same network ([50, 25], 100 features, dropout 0.2) on the same rows with Adam at batch 32, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.report import BenchRow
from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.training.device import DeviceManager
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.model_trainer import ModelTrainer

NUM_FEATURES = 100
HIDDEN_LAYERS = (50, 25)
DROPOUT = 0.2
BATCH_SIZE = 32
AIM = 1.7


def _make_part(num_rows: int, seed: int) -> DatasetPart:
    rng = np.random.default_rng(seed)
    return DatasetPart(
        X=rng.normal(size=(num_rows, NUM_FEATURES)).astype(np.float32),
        y=rng.integers(0, 3, size=num_rows),
        times=np.arange(num_rows, dtype=np.int64),
        symbol_ids=np.zeros(num_rows, dtype=np.int64),
    )


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


def _train_ours(train: DatasetPart, validation: DatasetPart, epochs: int) -> None:
    settings = Hyperparameters(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=1e-3, enable_gpu=False)
    network = build_network(
        NetworkSpec(type="mlp", input_size=NUM_FEATURES, hidden_layers=HIDDEN_LAYERS, dropout=DROPOUT), seed=1
    )
    seen: list[object] = []

    def callback(epoch: int, total_epochs: int, metrics: object) -> None:
        seen[:] = [metrics]

    ModelTrainer(settings, DeviceManager.select(enable_gpu=False), callback).train(network, train, validation)


def _seconds(body: Callable[[], None]) -> float:
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def run(quick: bool) -> list[BenchRow]:
    """Measure both loops in turn, several times; the ratio is the median of the pairs'."""
    num_rows, epochs, repeats = (6_400, 1, 3) if quick else (32_000, 2, 5)
    train, validation = _make_part(num_rows, 1), _make_part(1_024, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for warm_up in (_train_usually, _train_ours):
            warm_up(_make_part(640, 3), validation, 1)
        pairs = [
            (
                _seconds(lambda: _train_usually(train, validation, epochs)),
                _seconds(lambda: _train_ours(train, validation, epochs)),
            )
            for _ in range(repeats)
        ]
    finally:
        torch.set_num_threads(threads)
    rows = num_rows * epochs
    return [
        BenchRow(
            name=f"training, batch {BATCH_SIZE}, one thread",
            value=rows / median(ours for _, ours in pairs),
            unit="rows/s",
            baseline_name="DataLoader + .item() + callback",
            baseline_value=rows / median(usual for usual, _ in pairs),
            ratio=median(usual / ours for usual, ours in pairs),
            aim=f">= {AIM}x",
        )
    ]


if __name__ == "__main__":
    print(*run(quick=False), sep="\n")
