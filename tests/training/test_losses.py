from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ktrdr_core.training.losses import balanced_class_weights, build_loss, predicted_classes
from tests.kit.training import make_settings

Array = NDArray[np.float64]
WEIGHTS = np.array([0.5, 2.0, 1.25])
REGRESSION = {"output_format": "regression", "buy_threshold": 0.5, "sell_threshold": 0.25}


def softmax(z: Array) -> list[float]:
    exps = [math.exp(value - max(z)) for value in z]
    return [value / sum(exps) for value in exps]


def slow_cross_entropy(z: Array, y: NDArray[np.int64], weights: Array) -> float:
    total = weight = 0.0
    for logits, label in zip(z, y, strict=True):
        total += weights[label] * -math.log(softmax(logits)[label])
        weight += weights[label]
    return total / weight


def slow_focal(z: Array, y: NDArray[np.int64], weights: Array, gamma: float) -> float:
    total = 0.0
    for logits, label in zip(z, y, strict=True):
        p = softmax(logits)[label]
        total += weights[label] * -((1 - p) ** gamma) * math.log(p)
    return total / len(y)


def slow_one_vs_rest(z: Array, y: NDArray[np.int64], weights: Array) -> float:
    total = weight = 0.0
    for logits, label in zip(z, y, strict=True):
        judged = 0.0
        for index, value in enumerate(logits):
            p = 1 / (1 + math.exp(-value))
            judged += -math.log(p if index == label else 1 - p)
        total += weights[label] * judged / len(logits)
        weight += weights[label]
    return total / weight


def slow_mse(z: Array, targets: Array) -> float:
    return sum((float(row[0]) - float(target)) ** 2 for row, target in zip(z, targets, strict=True)) / len(z)


def slow_huber(z: Array, targets: Array) -> float:
    total = 0.0
    for row, target in zip(z, targets, strict=True):
        distance = abs(float(row[0]) - float(target))
        total += distance**2 / 2 if distance <= 1 else distance - 0.5
    return total / len(z)


def case(name: str, is_weighted: bool) -> tuple[Any, Any, Array, Any]:
    """Return the loss, its slow twin, outputs and answers."""
    rng = np.random.default_rng(5)
    weights = WEIGHTS if is_weighted else np.ones(3)
    tensor = torch.from_numpy(WEIGHTS) if is_weighted else None
    if name in ("mse", "huber"):
        z, targets = rng.normal(size=(11, 1)) * 2, rng.normal(size=11)
        slow = slow_mse if name == "mse" else slow_huber
        return build_loss(make_settings(**REGRESSION, loss=name), None), lambda v: slow(v, targets), z, targets
    z, y = rng.normal(size=(11, 3)) * 2, rng.integers(0, 3, size=11)
    if name == "cross_entropy":
        return build_loss(make_settings(), tensor), lambda v: slow_cross_entropy(v, y, weights), z, y
    if name == "one_vs_rest":
        settings = make_settings(output_activation="sigmoid")
        return build_loss(settings, tensor), lambda v: slow_one_vs_rest(v, y, weights), z, y
    gamma = float(name.removeprefix("focal "))
    settings = make_settings(loss="focal", focal_gamma=gamma)
    return build_loss(settings, tensor), lambda v: slow_focal(v, y, weights, gamma), z, y


CASES = [
    *[(name, weighted) for name in ("cross_entropy", "focal 2.0", "focal 0.5", "one_vs_rest") for weighted in (0, 1)],
    ("mse", 0),
    ("huber", 0),
]


@pytest.mark.parametrize(("name", "is_weighted"), CASES)
def test_loss_is_that_of_the_slow_definition(name: str, is_weighted: bool) -> None:
    loss, slow, z, answers = case(name, is_weighted)
    assert loss(torch.from_numpy(z), torch.from_numpy(answers)).item() == pytest.approx(slow(z), rel=1e-12)


@pytest.mark.parametrize(("name", "is_weighted"), CASES)
def test_gradient_is_that_of_finite_differences(name: str, is_weighted: bool) -> None:
    loss, slow, z, answers = case(name, is_weighted)
    outputs = torch.from_numpy(z.copy()).requires_grad_()
    loss(outputs, torch.from_numpy(answers)).backward()
    assert outputs.grad is not None
    step = 1e-6
    for place in np.ndindex(*z.shape):
        moved = z.copy()
        moved[place] += step
        above = slow(moved)
        moved[place] -= 2 * step
        assert float(outputs.grad[place]) == pytest.approx((above - slow(moved)) / (2 * step), abs=2e-9)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_stays_finite_where_rows_are_certain(gamma: float) -> None:
    loss = build_loss(make_settings(loss="focal", focal_gamma=gamma), None)
    for sure in (40.0, 200.0):
        z = torch.tensor([[sure, 0.0, -5.0], [-sure, 0.0, 0.0]], requires_grad=True)
        value = loss(z, torch.tensor([0, 0]))
        value.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(z.grad).all())
        assert value.item() == pytest.approx(sure / 2, rel=0.02)


def test_class_weight_makes_every_class_weigh_the_same() -> None:
    y = np.array([0] * 10 + [1] * 85 + [2] * 5)
    weights = balanced_class_weights(y)
    assert weights.tolist() == pytest.approx([100 / 30, 100 / 255, 100 / 15])
    assert [weights[label] * np.sum(y == label) for label in range(3)] == pytest.approx([100 / 3] * 3)


def test_class_without_rows_has_no_weight() -> None:
    assert balanced_class_weights(np.array([1, 1, 1, 2])).tolist() == pytest.approx([0.0, 4 / 9, 4 / 3])


def test_answers_of_a_regression_become_classes_at_the_thresholds() -> None:
    outputs = torch.tensor([[0.5], [0.49], [0.0], [-0.24], [-0.25], [-3.0]])
    assert predicted_classes(outputs, make_settings(**REGRESSION)).tolist() == [0, 1, 1, 1, 2, 2]


def test_answer_of_a_classification_is_the_largest_output() -> None:
    assert predicted_classes(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.1, 0.2]]), make_settings()).tolist() == [0, 2]
