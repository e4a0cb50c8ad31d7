from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from ktrdr_core.models.mlp import MultiLayerPerceptron
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


def build(network_spec: NetworkSpec, *, seed: int) -> MultiLayerPerceptron:
    network = build_network(network_spec, seed=seed)
    assert isinstance(network, MultiLayerPerceptron)
    return network


def spec(activation: str = "relu", dropout: float = 0.0) -> NetworkSpec:
    return NetworkSpec(type="mlp", input_size=5, hidden_layers=(7, 4), activation=activation, dropout=dropout)


@pytest.mark.parametrize("activation", BUILT_ACTIVATIONS)
def test_network_computes_what_its_layers_say(activation: str) -> None:
    network, x = build(spec(activation), seed=1), torch.randn(6, 5)
    state = network.state_dict()
    expected = x
    for index in range(3):
        expected = expected @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]
        if index < 2:
            expected = MODULES[activation](expected)
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network.tail(functional.linear(x, *network.first_affine())), expected)


def test_network_without_hidden_layers_is_affine() -> None:
    network = build(NetworkSpec(type="mlp", input_size=5, hidden_layers=(), dropout=0.3), seed=1)
    x = torch.randn(6, 5)
    torch.testing.assert_close(network(x), functional.linear(x, *network.first_affine()))


def test_loaded_weights_and_copies_are_what_is_computed_with() -> None:
    source, target, x = build(spec(), seed=1), build(spec(), seed=2), torch.randn(6, 5)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))
    twin = copy.deepcopy(source)
    with torch.no_grad():
        source.first.weight.zero_()
    assert torch.equal(twin(x), target(x))
    assert not torch.equal(source(x), twin(x))


def test_weights_depend_on_the_seed_alone_and_stay_in_their_bounds() -> None:
    torch.manual_seed(1)
    first = build(spec(), seed=3).first.weight
    torch.manual_seed(2)
    assert torch.equal(first, build(spec(), seed=3).first.weight)
    assert not torch.equal(first, build(spec(), seed=4).first.weight)
    assert float(first.detach().abs().max()) <= 1 / np.sqrt(5)


def test_dropout_layers_have_streams_of_their_own() -> None:
    seeds = {layer.seed for seed in (3, 4) for layer in build(spec(dropout=0.5), seed=seed).dropouts()}
    assert len(seeds) == 4


def test_first_affine_reads_a_symbols_numbers_where_its_column_is_set() -> None:
    network = build(
        NetworkSpec(type="mlp", input_size=8, hidden_layers=(5,), num_symbols=3, symbol_embedding_dim=2), seed=1
    )
    assert network.symbol_embedding is not None
    x, symbols = torch.randn(4, 8), torch.tensor([0, 1, 2, 1])
    x[:, 5:] = functional.one_hot(symbols, 3)
    state = network.state_dict()
    rows = torch.cat((x[:, :5], state["symbol_embedding"][symbols]), dim=1)
    expected = rows @ state["layers.0.weight"].T + state["layers.0.bias"]
    torch.testing.assert_close(functional.linear(x, *network.first_affine()), expected)
    expected = torch.relu(expected) @ state["layers.1.weight"].T + state["layers.1.bias"]
    torch.testing.assert_close(network(x), expected)


def test_symbols_numbers_learn_from_their_own_rows_alone() -> None:
    network = build(
        NetworkSpec(type="mlp", input_size=8, hidden_layers=(5,), num_symbols=3, symbol_embedding_dim=2), seed=1
    )
    x = torch.randn(4, 8)
    x[:, 5:] = functional.one_hot(torch.tensor([0, 2, 2, 0]), 3)
    network(x).sum().backward()
    assert network.symbol_embedding is not None
    gradient = network.symbol_embedding.grad
    assert gradient is not None
    assert gradient[[0, 2]].any(dim=1).all()
    assert not gradient[1].any()


def test_regression_has_one_output() -> None:
    network = build(
        NetworkSpec(type="mlp", input_size=5, hidden_layers=(4,), num_outputs=1, output_activation="linear"), seed=1
    )
    assert network(torch.randn(6, 5)).shape == (6, 1)
