"""LSTM and GRU against the published equations, one bar at a time in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ktrdr_core.models.network import Network
from tests.kit.networks import network_of

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def lstm_step(x: Array, state: tuple[Array, Array], weights: dict[str, Array]) -> tuple[Array, Array]:
    """Hochreiter and Schmidhuber with forget gate; rows of the matrices are input, forget, cell, output."""
    hidden, cell = state
    gates = (
        weights["weight_ih_l0"] @ x + weights["bias_ih_l0"] + weights["weight_hh_l0"] @ hidden + weights["bias_hh_l0"]
    )
    enter, forget, candidate, leave = np.split(gates, 4)
    cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)
    return sigmoid(leave) * np.tanh(cell), cell


def gru_step(x: Array, state: tuple[Array, Array], weights: dict[str, Array]) -> tuple[Array, Array]:
    """Cho et al. with the reset gate after the product; rows of the matrices are reset, update, new."""
    hidden, _ = state
    from_x = np.split(weights["weight_ih_l0"] @ x + weights["bias_ih_l0"], 3)
    from_hidden = np.split(weights["weight_hh_l0"] @ hidden + weights["bias_hh_l0"], 3)
    reset, update = sigmoid(from_x[0] + from_hidden[0]), sigmoid(from_x[1] + from_hidden[1])
    new = np.tanh(from_x[2] + reset * from_hidden[2])
    return (1 - update) * new + update * hidden, hidden


STEPS = {"lstm": lstm_step, "gru": gru_step}


def slow_outputs(network: Network, windows: Array) -> Array:
    """Return the outputs of each window (L, F), bar by bar and layer by layer."""
    state = {name: value.detach().double().numpy() for name, value in network.state_dict().items()}
    outputs = []
    for window in windows:
        sequence = list(window)
        for index, units in enumerate(network.spec.hidden_layers):
            prefix = f"layers.{index}."
            weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            carried = (np.zeros(units), np.zeros(units))
            seen = []
            for x in sequence:
                carried = STEPS[network.spec.type](x, carried, weights)
                seen.append(carried[0])
            sequence = seen
        outputs.append(state["head.weight"] @ sequence[-1] + state["head.bias"])
    return np.array(outputs)


@pytest.mark.parametrize("family", STEPS)
@pytest.mark.parametrize("hidden_layers", [(8,), (9, 5), (4, 6, 3)], ids=str)
def test_network_computes_the_published_equations(family: str, hidden_layers: tuple[int, ...]) -> None:
    network = network_of(family, hidden_layers=hidden_layers, window_bars=12).eval()
    windows = np.random.default_rng(7).normal(size=(6, 12, 6))
    expected = slow_outputs(network, windows)
    with torch.no_grad():
        single = network(torch.from_numpy(windows).float()).numpy()
        np.testing.assert_allclose(single, slow_outputs(network, windows.astype(np.float32)), atol=1e-6, rtol=0)
        double = network.double()(torch.from_numpy(windows)).numpy()
    np.testing.assert_allclose(double, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", STEPS)
def test_weights_start_within_their_bounds_and_fill_them(family: str) -> None:
    network = network_of(family, hidden_layers=(16, 25))
    for name, weight in network.named_parameters():
        bound = 1 / np.sqrt({"layers.0": 16, "layers.1": 25, "head": 25}[name.rpartition(".")[0]])
        assert 0.5 * bound < float(weight.detach().abs().max()) <= bound, name
