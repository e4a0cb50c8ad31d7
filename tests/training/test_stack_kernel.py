"""The kernels' gradients against finite differences, and what they stand on."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.models.mask_kernel import compiled
from ktrdr_core.models.network_spec import BUILT_ACTIVATIONS, NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.training.blas_threads import OneBlasThread, find_library
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.stack_engine import StackEngine
from ktrdr_core.training.stack_plan import aligned_zeros, build_plan

ROWS, FEATURES = 12, 4
STEP = 1e-6


def build_engine(activation: str, **settings: Any) -> StackEngine:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    part = DatasetPart.from_rows(
        X, rng.integers(0, 3, size=ROWS), targets=(2 * rng.normal(size=ROWS)).astype(np.float32)
    )
    is_regression = settings.get("output_format") == "regression"
    spec = NetworkSpec(
        type="mlp",
        input_size=FEATURES,
        hidden_layers=(5, 3),
        activation=activation,
        dropout=0.3,
        num_outputs=1 if is_regression else 3,
        output_activation=settings.get("output_activation", "softmax"),
    )
    chosen: dict[str, Any] = {"epochs": 1, "batch_size": ROWS, "learning_rate": 1.0, "optimizer": "sgd"} | settings
    return StackEngine([Lane(build_network(spec, seed=3), part, part, Hyperparameters(**chosen))], dtype="float64")


class Steps:
    """Steps from one and the same state, masks included."""

    def __init__(self, engine: StackEngine) -> None:
        self.engine, self.weights, self.state = engine, engine.weights(0), engine.state(0)

    def take(self, weights: dict[str, torch.Tensor], learning_rate: float) -> float:
        self.engine.restore(0, weights, self.state)
        self.engine.begin_epoch([np.arange(ROWS)])
        self.engine.step([learning_rate])
        return float(self.engine.epoch_totals(0)[0][0])

    def gradient(self) -> dict[str, torch.Tensor]:
        self.take(self.weights, 1.0)
        return {name: self.weights[name] - after for name, after in self.engine.weights(0).items()}

    def difference(self, name: str, index: int) -> float:
        losses = []
        for sign in (1, -1):
            moved = {key: tensor.clone() for key, tensor in self.weights.items()}
            moved[name].view(-1)[index] += sign * STEP
            losses.append(self.take(moved, 0.0))
        return (losses[0] - losses[1]) / (2 * STEP)


REGRESSION: dict[str, Any] = {
    "output_format": "regression",
    "output_activation": "linear",
    "buy_threshold": 0.5,
    "sell_threshold": 0.5,
}
LOSSES: dict[str, dict[str, Any]] = {
    "cross entropy": {},
    "weighted cross entropy": {"class_weights": "balanced"},
    "focal": {"loss": "focal", "focal_gamma": 1.5, "class_weights": "balanced"},
    "one against the rest": {"output_activation": "sigmoid", "class_weights": "balanced"},
    "mse": REGRESSION,
    "huber": {**REGRESSION, "loss": "huber"},
}


@pytest.mark.parametrize(
    ("activation", "loss"),
    [*((activation, "cross entropy") for activation in BUILT_ACTIVATIONS), *(("tanh", loss) for loss in LOSSES)],
)
def test_step_goes_down_the_slope_that_finite_differences_show(activation: str, loss: str) -> None:
    steps = Steps(build_engine(activation, **LOSSES[loss]))
    for name, gradient in steps.gradient().items():
        measured = [steps.difference(name, index) for index in range(gradient.numel())]
        np.testing.assert_allclose(gradient.view(-1), measured, rtol=1e-5, atol=1e-8)


def test_every_tensor_of_a_plan_begins_at_a_whole_cache_line() -> None:
    for dtype in (np.float32, np.float64):
        assert aligned_zeros(1_000, dtype).ctypes.data % 128 == 0
    plan = build_plan((7, 5, 3), activation="relu", loss="mse", optimizer="sgd", batch_size=9, room_rows=9)
    offsets = [offset for offset, _ in (*plan.weights, *plan.biases)]
    assert all(offset % 16 == 0 for offset in offsets)
    taken = sorted([*((offset, out * into) for offset, (out, into) in plan.weights), *plan.biases])
    assert all(start + length <= following for (start, length), (following, _) in itertools.pairwise(taken))
    assert taken[-1][0] + taken[-1][1] <= plan.num_parameters


@pytest.fixture
def blas() -> Iterator[ctypes.CDLL]:
    """The library that compiled code calls, allowed two threads; as it was afterwards."""
    library = find_library()
    if library is None:
        pytest.skip("scipy brings no OpenBLAS of its own here")
    threads = library.scipy_openblas_get_num_threads()
    library.scipy_openblas_set_num_threads(2)
    yield library
    library.scipy_openblas_set_num_threads(threads)


def test_body_has_one_blas_thread_and_the_caller_gets_its_own_back(blas: ctypes.CDLL) -> None:
    guard = OneBlasThread()
    for _ in range(2):
        with guard:
            assert blas.scipy_openblas_get_num_threads() == 1
        assert blas.scipy_openblas_get_num_threads() == 2
    with pytest.raises(KeyError), guard:
        raise KeyError
    assert blas.scipy_openblas_get_num_threads() == 2


def test_results_do_not_depend_on_the_threads_that_blas_may_use(blas: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    part = DatasetPart.from_rows(rng.normal(size=(2_000, 100)).astype(np.float32), rng.integers(0, 3, size=2_000))
    spec = NetworkSpec(type="mlp", input_size=100, hidden_layers=(200, 100))

    def results(threads: int) -> bytes:
        blas.scipy_openblas_set_num_threads(threads)
        settings = Hyperparameters(epochs=1, batch_size=2_000, learning_rate=0.01)
        engine = StackEngine([Lane(build_network(spec, seed=1), part, part, settings)])
        engine.begin_epoch([np.arange(2_000)])
        engine.step([0.01])
        return engine.validation_outputs(0, lambda: None).tobytes()

    assert results(2) == results(1)


def test_kernel_works_where_machine_code_cannot_be_kept() -> None:
    """Code that comes from no file has no folder to keep anything in."""
    namespace: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x", namespace)  # noqa: S102
    assert compiled(namespace["twice"])(21) == 42
