from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.evaluation.forward import part_outputs
from ktrdr_core.training.eager_engine import EagerEngine
from ktrdr_core.training.engines import EngineBuilder, build_engine
from ktrdr_core.training.model_trainer import TrainedModel
from ktrdr_core.training.target_scale import output_layer
from tests.kit.training import make_network, make_trainer, make_window_part

SETTINGS: dict[str, Any] = {
    "output_format": "regression",
    "buy_threshold": 0.005,
    "sell_threshold": 0.005,
    "epochs": 12,
    "learning_rate": 0.02,
}
REGRESSION: dict[str, Any] = {"num_outputs": 1, "output_activation": "linear", "dropout": 0.0}
TRAIN, VALIDATION = (make_window_part(count, seed, window_bars=1) for count, seed in ((400, 1), (120, 2)))


def train(train_part: DatasetPart = TRAIN, validation: DatasetPart = VALIDATION, **settings: Any) -> TrainedModel:
    return make_trainer(**(SETTINGS | settings)).train(make_network(**REGRESSION), train_part, validation)


@pytest.mark.parametrize("engine", [build_engine, EagerEngine], ids=["stack", "eager"])
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_regression_answers_returns_in_the_units_they_came_in(engine: EngineBuilder, loss: str) -> None:
    trained = train(loss=loss, engine_builder=engine)
    answers = part_outputs(trained.model, VALIDATION)[:, 0].astype(np.float64)
    error = float(np.mean((answers - VALIDATION.targets) ** 2))
    best = trained.history[trained.best_epoch - 1]
    assert best["val_loss"] == pytest.approx(error, rel=1e-4)
    assert error < 0.7 * np.var(VALIDATION.targets)
    assert best["val_accuracy"] == pytest.approx(
        np.mean(np.where(answers >= 0.005, 0, np.where(answers <= -0.005, 2, 1)) == VALIDATION.y)
    )
    assert best["val_accuracy"] > 0.5
    if loss == "mse":
        assert best["train_loss"] == pytest.approx(error, rel=0.5)


def test_unit_of_the_targets_changes_nothing_but_the_unit() -> None:
    def larger(part: DatasetPart) -> DatasetPart:
        return replace(part, targets=part.targets * 4)

    usual = train()
    scaled = train(larger(TRAIN), larger(VALIDATION), buy_threshold=0.02, sell_threshold=0.02)
    answers = part_outputs(usual.model, VALIDATION)
    assert part_outputs(scaled.model, VALIDATION).tobytes() == (answers * np.float32(4)).tobytes()
    assert [metrics["val_loss"] * 16 for metrics in usual.history] == [
        metrics["val_loss"] for metrics in scaled.history
    ]


def test_targets_that_are_all_the_same_can_be_learned() -> None:
    flat = replace(TRAIN, targets=np.full(len(TRAIN), 0.25, dtype=np.float32))
    trained = train(flat, replace(VALIDATION, targets=np.full(len(VALIDATION), 0.25, dtype=np.float32)), epochs=30)
    assert part_outputs(trained.model, VALIDATION).mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"type": "lstm", "window_bars": 4},
        {"type": "gru", "window_bars": 4},
        {"type": "transformer", "window_bars": 4, "d_model": 8, "num_heads": 2},
        {"num_symbols": 2, "symbol_embedding_dim": 3},
    ],
    ids=str,
)
def test_last_layer_multiplied_multiplies_the_answers(spec: dict[str, Any]) -> None:
    model = make_network(**(REGRESSION | spec)).eval()
    x = torch.randn(7, *model.spec.row_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(x)
        layer = output_layer(model)
        layer.weight.mul_(2.0)
        layer.bias.mul_(2.0)
        assert torch.equal(model(x), before * 2.0)
