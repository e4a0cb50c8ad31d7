from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ktrdr_core.models.network_spec import BUILT_ACTIVATIONS, NetworkSpec
from ktrdr_core.models.registry import build_network

MODULES: dict[str, torch.nn.Module] = {
    "relu": torch.nn.ReLU(),
    "tanh": torch.nn.Tanh(),
    "gelu": torch.nn.GELU(),
    "leaky_relu": torch.nn.LeakyReLU(),
    "elu": torch.nn.ELU(),
    "silu": torch.nn.SiLU(),
    "sigmoid": torch.nn.Sigmoid(),
}


def spec(activation: str = "relu", dropout: float = 0.0) -> NetworkSpec:
    return NetworkSpec(type="mlp", input_size=5, hidden_layers=(7, 4), activation=activation, dropout=dropout)


@pytest.mark.parametrize("activation", BUILT_ACTIVATIONS)
def test_network_computes_what_its_layers_say(activation: str) -> None:
    network, x = build_network(spec(activation), seed=1), torch.randn(6, 5)
    state = network.state_dict()
    expected = x
    for index in range(3):
        expected = expected @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]
        if index < 2:
            expected = MODULES[activation](expected)
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network.tail(network.first(x)), expected)


def test_network_without_hidden_layers_is_affine() -> None:
    network = build_network(NetworkSpec(type="mlp", input_size=5, hidden_layers=(), dropout=0.3), seed=1)
    x = torch.randn(6, 5)
    torch.testing.assert_close(network(x), network.first(x))


def test_loaded_weights_and_copies_are_what_is_computed_with() -> None:
    source, target, x = build_network(spec(), seed=1), build_network(spec(), seed=2), torch.randn(6, 5)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))
    twin = copy.deepcopy(source)
    with torch.no_grad():
        source.first.weight.zero_()
    assert torch.equal(twin(x), target(x))
    assert not torch.equal(source(x), twin(x))


def test_weights_depend_on_the_seed_alone_and_stay_in_their_bounds() -> None:
    torch.manual_seed(1)
    first = build_network(spec(), seed=3).first.weight
    torch.manual_seed(2)
    assert torch.equal(first, build_network(spec(), seed=3).first.weight)
    assert not torch.equal(first, build_network(spec(), seed=4).first.weight)
    assert float(first.detach().abs().max()) <= 1 / np.sqrt(5)


def test_dropout_layers_draw_from_streams_of_their_own() -> None:
    states = [layer.random_state()[0] for layer in build_network(spec(dropout=0.5), seed=3).dropouts()]
    assert len(states) == 2
    assert not torch.equal(*states)
