from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.evaluation.forward import part_outputs
from ktrdr_core.models.network import Network, derive_seed
from ktrdr_core.training.device import DeviceCapabilities, DeviceManager
from ktrdr_core.training.eager_engine import EagerEngine
from ktrdr_core.training.engines import build_engine
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.loop_state import SHUFFLE_STREAM
from ktrdr_core.training.losses import balanced_class_weights
from tests.kit.training import make_network, make_part, make_settings, make_trainer, make_window_part

CPU = DeviceManager.select(enable_gpu=False)
TRAIN, VALIDATION = make_part(200, 1), make_part(60, 2)
WINDOWS, WINDOW_VALIDATION = make_window_part(150, 3), make_window_part(40, 4)
REGRESSION: dict[str, Any] = {"output_format": "regression", "buy_threshold": 0.005, "sell_threshold": 0.005}
LSTM: dict[str, Any] = {"type": "lstm", "window_bars": 4}


def in_float64(lanes: Sequence[Lane], device: DeviceCapabilities) -> EagerEngine:
    return EagerEngine(lanes, device, dtype=torch.float64)


def plain_optimizer(name: str, model: Network, **settings: Any) -> torch.optim.Optimizer:
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "rmsprop": torch.optim.RMSprop,
    }
    return kinds[name](model.parameters(), lr=0.01, **settings)  # type: ignore[no-any-return]


def plain_weights(
    model: Network,
    part: DatasetPart,
    optimizer: torch.optim.Optimizer,
    loss: torch.nn.Module,
    *,
    epochs: int,
    clip: float | None = None,
    answers: np.ndarray[Any, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Train by the plainest loop there is, in float64, and return the weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _plain_weights(model, part, optimizer, loss, epochs, clip, answers)
    finally:
        torch.set_num_threads(threads)


def _plain_weights(
    model: Network,
    part: DatasetPart,
    optimizer: torch.optim.Optimizer,
    loss: torch.nn.Module,
    epochs: int,
    clip: float | None,
    answers: np.ndarray[Any, Any] | None,
) -> dict[str, torch.Tensor]:
    model.double().train()
    x = torch.from_numpy(np.ascontiguousarray(part.X)).double()
    y = torch.from_numpy(part.y if answers is None else answers)
    generator = torch.Generator().manual_seed(derive_seed(42, SHUFFLE_STREAM))
    for rows_of_epoch in [torch.randperm(len(y), generator=generator) for _ in range(epochs)]:
        for rows in torch.split(rows_of_epoch, 16):
            optimizer.zero_grad()
            outputs = model(x[rows])
            loss(outputs if answers is None else outputs[:, 0], y[rows]).backward()
            if clip is not None:
                total = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad *= min(1.0, clip / (total + 1e-6))
            optimizer.step()
    return model.state_dict()


def assert_equal_to_rounding(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "optimizer"),
    [
        ({"optimizer": "adam"}, {}),
        ({"optimizer": "adam", "weight_decay": 0.02}, {"weight_decay": 0.02}),
        ({"optimizer": "adamw"}, {}),
        ({"optimizer": "sgd"}, {}),
        ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "weight_decay": 0.01}),
        ({"optimizer": "rmsprop"}, {}),
        ({"optimizer": "adam", "gradient_clip_norm": 0.1}, {}),
        ({"optimizer": "adam", "class_weights": "balanced"}, {}),
    ],
    ids=str,
)
def test_ten_epochs_are_those_of_a_plain_loop_of_torch(settings: dict[str, Any], optimizer: dict[str, Any]) -> None:
    trained = make_trainer(engine_builder=in_float64, epochs=10, **settings).train(make_network(), TRAIN, VALIDATION)
    model = make_network()
    is_balanced = "class_weights" in settings
    loss = torch.nn.CrossEntropyLoss(torch.from_numpy(balanced_class_weights(TRAIN.y)) if is_balanced else None)
    expected = plain_weights(
        model,
        TRAIN,
        plain_optimizer(settings["optimizer"], model, **optimizer),
        loss,
        epochs=10,
        clip=settings.get("gradient_clip_norm"),
    )
    assert_equal_to_rounding(trained.checkpoint.lanes[0].weights, expected)


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer"])
def test_windows_are_trained_as_copies_of_them_would_be(kind: str) -> None:
    spec: dict[str, Any] = {"type": kind, "window_bars": 4} | (
        {"d_model": 8, "num_heads": 2} if kind == "transformer" else {}
    )
    trained = make_trainer(engine_builder=in_float64, epochs=3).train(make_network(**spec), WINDOWS, WINDOW_VALIDATION)
    model = make_network(**spec)
    expected = plain_weights(model, WINDOWS, plain_optimizer("adam", model), torch.nn.CrossEntropyLoss(), epochs=3)
    assert_equal_to_rounding(trained.checkpoint.lanes[0].weights, expected)


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_regression_learns_targets_in_units_of_their_spread(loss: str) -> None:
    part = make_window_part(150, 3, window_bars=1)
    spec: dict[str, Any] = {"num_outputs": 1, "output_activation": "linear"}
    trained = make_trainer(engine_builder=in_float64, epochs=6, loss=loss, **REGRESSION).train(
        make_network(**spec), part, make_window_part(40, 4, window_bars=1)
    )
    model = make_network(**spec)
    plain_loss = torch.nn.MSELoss() if loss == "mse" else torch.nn.HuberLoss()
    in_own_units = (part.targets / float(np.std(part.targets.astype(np.float64)))).astype(np.float32)
    expected = plain_weights(
        model, part, plain_optimizer("adam", model), plain_loss, epochs=6, answers=in_own_units.astype(np.float64)
    )
    assert_equal_to_rounding(trained.checkpoint.lanes[0].weights, expected)


def test_validation_answers_are_those_of_the_network() -> None:
    lane = Lane(make_network(**LSTM), WINDOWS, WINDOW_VALIDATION, make_settings())
    asked = []
    outputs = EagerEngine([lane], CPU).validation_outputs(0, lambda: asked.append(1))
    assert outputs.tobytes() == part_outputs(lane.model, WINDOW_VALIDATION).tobytes()
    assert len(asked) == 1
    assert lane.model.training


def test_float64_answers_to_the_validation_rows_are_those_of_the_network_too() -> None:
    lane = Lane(make_network(), TRAIN, VALIDATION, make_settings())
    expected = part_outputs(lane.model, VALIDATION)
    np.testing.assert_allclose(in_float64([lane], CPU).validation_outputs(0, lambda: None), expected, atol=1e-6)


def test_totals_are_of_the_batches_applied_and_asking_changes_nothing() -> None:
    lane = Lane(make_network(dropout=0.0), TRAIN, VALIDATION, make_settings(learning_rate=1e-12))
    engine = EagerEngine([lane], CPU)
    order = np.arange(200)[::-1].copy()
    outputs = part_outputs(lane.model, TRAIN)[::-1].astype(np.float64)
    y = TRAIN.y[::-1]
    losses = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(200), y]
    engine.begin_epoch([order])
    for batch in range(3):
        engine.step([1e-12])
        found, correct = engine.epoch_totals(0)
        assert found == pytest.approx([losses[16 * i : 16 * i + 16].mean() for i in range(batch + 1)], rel=1e-5)
        assert correct == int((outputs.argmax(axis=1) == y)[: 16 * batch + 16].sum())
    engine.begin_epoch([order], first_batch=12)
    assert engine.epoch_totals(0)[0].tolist() == []
    engine.step([1e-12])
    engine.step([1e-12])  # the lane has no batch left
    found, _ = engine.epoch_totals(0)
    assert found == pytest.approx([losses[192:].mean()], rel=1e-5)


def test_lane_that_rests_keeps_its_weights() -> None:
    lanes = [Lane(make_network(seed=seed), TRAIN, VALIDATION, make_settings(seed=seed)) for seed in (1, 2)]
    engine = EagerEngine(lanes, CPU)
    before = engine.weights(0), engine.weights(1)
    engine.begin_epoch([None, np.arange(200)])
    engine.step([0.1, 0.1])
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in engine.weights(0).items())
    assert not any(torch.equal(tensor, before[1][name]) for name, tensor in engine.weights(1).items())


def test_learning_rate_of_a_step_is_the_one_given() -> None:
    lane = Lane(make_network(), TRAIN, VALIDATION, make_settings(optimizer="sgd"))
    engine = EagerEngine([lane], CPU)
    engine.begin_epoch([np.arange(200)])
    before = engine.weights(0)
    engine.step([0.0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.weights(0).items())
    engine.step([0.5])
    assert not any(torch.equal(tensor, before[name]) for name, tensor in engine.weights(0).items())


def test_mixed_precision_is_used_only_where_the_device_has_it() -> None:
    """The CPU can compute in bfloat16 too, so a device that says it may is told apart by its result."""
    may = DeviceCapabilities(
        device_type="cpu",
        device="cpu",
        supports_mixed_precision=True,
        supports_memory_profiling=False,
        max_batch_size=1,
        memory_available_gb=1.0,
    )
    found = []
    for device, asked in ((CPU, False), (CPU, True), (may, False), (may, True)):
        lane = Lane(make_network(), TRAIN, VALIDATION, make_settings(mixed_precision=asked))
        engine = EagerEngine([lane], device)
        engine.begin_epoch([np.arange(200)])
        engine.step([0.01])
        found.append(engine.epoch_totals(0)[0].tolist())
        assert all(tensor.dtype == torch.float32 for tensor in engine.weights(0).values())
    assert found[0] == found[1] == found[2] != found[3]
    assert found[3] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize(
    ("spec", "part", "settings", "name"),
    [
        ({}, TRAIN, {}, "StackEngine"),
        ({}, TRAIN, {"optimizer": "sgd", "loss": "focal"}, "StackEngine"),
        ({}, TRAIN, {"mixed_precision": True}, "StackEngine"),
        (LSTM, WINDOWS, {}, "EagerEngine"),
        ({"input_size": 6, "num_symbols": 2, "symbol_embedding_dim": 2}, TRAIN, {}, "EagerEngine"),
    ],
    ids=str,
)
def test_engine_is_chosen_by_network_and_settings(
    spec: dict[str, Any], part: DatasetPart, settings: dict[str, Any], name: str
) -> None:
    lane = Lane(make_network(**spec), part, part, make_settings(**settings))
    assert type(build_engine([lane], CPU)).__name__ == name
