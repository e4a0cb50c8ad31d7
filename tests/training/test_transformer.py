"""The transformer against the published equations in numpy, and its causality."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ktrdr_core.models.network_spec import BUILT_ACTIVATIONS
from ktrdr_core.models.transformer import TransformerNetwork, sinusoidal_positions
from tests.kit.networks import network_of

Array = NDArray[np.float64]
ERF = np.vectorize(math.erf)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: x * 0.5 * (1 + ERF(x / math.sqrt(2))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def build(**changes: Any) -> TransformerNetwork:
    network = network_of("transformer", **changes)
    assert isinstance(network, TransformerNetwork)
    return network.eval()


def slow_tokens(network: TransformerNetwork, window: Array) -> Array:
    """Return the encoded tokens (L, D) of one window, head by head and token by token."""
    spec = network.spec
    weights = {name: value.detach().double().numpy() for name, value in network.state_dict().items()}

    def affine(name: str, x: Array) -> Array:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    tokens = affine("input", window) + network.positions.double().numpy()
    width = spec.d_model // spec.num_heads
    for index in range(len(spec.hidden_layers)):
        layer = f"layers.{index}"
        normed = norm(f"{layer}.attention_norm", tokens)
        queries = affine(f"{layer}.query", normed)
        keys, values = np.split(affine(f"{layer}.key_value", normed), 2, axis=1)
        mixed = np.zeros_like(tokens)
        for head in range(spec.num_heads):
            own = slice(head * width, (head + 1) * width)
            for at in range(len(tokens)):
                scores = np.array([queries[at, own] @ keys[before, own] for before in range(at + 1)])
                shares = np.exp(scores / math.sqrt(width))
                shares /= shares.sum()
                mixed[at, own] = shares @ values[: at + 1, own]
        tokens = tokens + affine(f"{layer}.attention_output", mixed)
        hidden = ACTIVATIONS[spec.activation](affine(f"{layer}.expand", norm(f"{layer}.feed_forward_norm", tokens)))
        tokens = tokens + affine(f"{layer}.contract", hidden)
    return norm("final_norm", tokens)


@pytest.mark.parametrize("activation", BUILT_ACTIVATIONS)
def test_network_computes_the_published_equations(activation: str) -> None:
    network = build(activation=activation, d_model=12, num_heads=3, hidden_layers=(10, 7), window_bars=9)
    windows = np.random.default_rng(11).normal(size=(3, 9, 6))
    expected = np.array([slow_tokens(network, window) for window in windows])
    head = network.head
    outputs = expected[:, -1] @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(windows).float()).numpy(), outputs, atol=3e-6, rtol=0)
        network = network.double()
        np.testing.assert_allclose(network.encode(torch.from_numpy(windows)).numpy(), expected, atol=1e-12, rtol=0)
        np.testing.assert_allclose(network(torch.from_numpy(windows)).numpy(), outputs, atol=1e-12, rtol=0)


def test_a_token_does_not_change_with_later_bars() -> None:
    network = build(hidden_layers=(8, 8, 8), window_bars=7)
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = network.encode(x)
        for at in range(6):
            changed = x.clone()
            changed[:, at + 1 :] = 100.0
            again = network.encode(changed)
            assert torch.equal(again[:, : at + 1], tokens[:, : at + 1])
            assert not torch.equal(again[:, at + 1], tokens[:, at + 1])


def test_the_last_token_alone_is_that_of_all() -> None:
    network = build(hidden_layers=(8, 8)).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.encode(x, last_only=True)[:, 0], network.encode(x)[:, -1], atol=1e-13, rtol=0)


def test_positions_alone_tell_the_order_of_earlier_bars() -> None:
    network = build(hidden_layers=(9,))
    x = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(1))
    swapped = x[:, [1, 0, 2, 3, 4]]
    with torch.no_grad():
        assert not torch.allclose(network(swapped), network(x), atol=1e-5)
        network.positions.zero_()
        torch.testing.assert_close(network(swapped), network(x))


@pytest.mark.parametrize("width", [2, 7, 8])
def test_positions_are_the_published_ones(width: int) -> None:
    codes = sinusoidal_positions(50, width).numpy()
    for position in (0, 1, 17, 49):
        for column in range(width):
            angle = position / 10_000 ** ((column - column % 2) / width)
            expected = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            assert abs(float(codes[position, column]) - expected) < 1e-6
