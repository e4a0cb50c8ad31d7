"""What holds for the networks of every family."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ktrdr_core.models.dropout import SeededDropout
from ktrdr_core.models.network import Network
from tests.kit.networks import FAMILIES, WINDOW_BARS, WINDOW_FAMILIES, network_of, spec_of

EMBEDDING: dict[str, Any] = {"input_size": 9, "num_symbols": 3, "symbol_embedding_dim": 2}

# Names are what a stored model is read back by: changing one makes every stored model unreadable.
NAMES = {
    "mlp": [f"layers.{index}.{kind}" for index in range(3) for kind in ("weight", "bias")],
    "lstm": [
        *(f"layers.{i}.{k}_{j}_l0" for i in range(2) for k in ("weight", "bias") for j in ("ih", "hh")),
        "head.weight",
        "head.bias",
    ],
    "transformer": [
        f"{module}.{kind}"
        for module in (
            "input",
            *(
                f"layers.{index}.{part}"
                for index in range(2)
                for part in (
                    "attention_norm",
                    "query",
                    "key_value",
                    "attention_output",
                    "feed_forward_norm",
                    "expand",
                    "contract",
                )
            ),
            "final_norm",
            "head",
        )
        for kind in ("weight", "bias")
    ],
}
NAMES["gru"] = NAMES["lstm"]


def rows_for(network: Network, num_rows: int = 4, *, seed: int = 2) -> Tensor:
    return torch.randn(num_rows, *network.spec.row_shape, generator=torch.Generator().manual_seed(seed))


def weights_equal(left: Network, right: Network) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_named_as_stored_models_name_them(family: str) -> None:
    assert list(network_of(family).state_dict()) == NAMES[family]
    assert set(network_of(family, **EMBEDDING).state_dict()) == {*NAMES[family], "symbol_embedding"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, EMBEDDING], ids=["agnostic", "embedding"])
def test_weights_depend_on_spec_and_seed_alone(family: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = network_of(family, seed=3, **changes)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was drawn from"
    torch.manual_seed(2)
    assert weights_equal(first, network_of(family, seed=3, **changes))
    assert not weights_equal(first, network_of(family, seed=4, **changes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("num_outputs", "activation"), [(3, "softmax"), (1, "linear")])
def test_answers_are_one_row_of_outputs_for_each_row(family: str, num_outputs: int, activation: str) -> None:
    network = network_of(family, num_outputs=num_outputs, output_activation=activation)
    assert network(rows_for(network)).shape == (4, num_outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_learned(family: str) -> None:
    network = network_of(family, **EMBEDDING)
    network(rows_for(network)).square().sum().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_weights_and_copies_are_what_is_computed_with(family: str) -> None:
    source, target = network_of(family, seed=1, **EMBEDDING), network_of(family, seed=2, **EMBEDDING)
    x = rows_for(source)
    assert not torch.equal(target(x), source(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))
    twin = copy.deepcopy(source)
    with torch.no_grad():
        for weight in source.parameters():
            weight.zero_()
    assert torch.equal(twin(x), target(x))
    assert not source(x).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_acts_in_training_alone_and_repeats_with_its_seed(family: str) -> None:
    first, second = (network_of(family, dropout=0.5) for _ in range(2))
    x = rows_for(first)
    assert torch.equal(first(x), second(x)), "equal streams"
    assert not torch.equal(first(x), first(x)), "masks of other rows"
    first.eval()
    assert torch.equal(first(x), first(x))
    assert torch.equal(first(x), network_of(family).eval()(x)), "dropout must change no weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_layers_have_streams_of_their_own(family: str) -> None:
    seeds = [layer.seed for layer in network_of(family, dropout=0.5).dropouts()]
    assert len(set(seeds)) == len(seeds) == (6 if family == "transformer" else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_state_goes_on_where_it_was_taken(family: str) -> None:
    network = network_of(family, dropout=0.5)
    x = rows_for(network)
    network(x)
    states = [layer.random_state() for layer in network.dropouts()]
    expected = network(x)
    network(x)
    for layer, state in zip(network.dropouts(), states, strict=True):
        layer.restore_random_state(state)
    assert torch.equal(network(x), expected)


def test_last_recurrent_layer_is_dropped_from_too() -> None:
    network = network_of("lstm", hidden_layers=(64,), dropout=0.5)
    kept: list[Tensor] = []
    for layer in network.modules():
        if isinstance(layer, SeededDropout):
            layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    network(rows_for(network, 50))
    assert len(kept) == 1
    assert 0.4 < float((kept[0] == 0).float().mean()) < 0.6


@pytest.mark.parametrize("family", FAMILIES)
def test_symbol_is_known_by_its_row_of_the_embedding(family: str) -> None:
    network = network_of(family, **EMBEDDING).double().eval()
    plain = network_of(family, input_size=8).double().eval()
    weights = network.state_dict()
    embedding = weights.pop("symbol_embedding").numpy()
    plain.load_state_dict(weights)
    rng = np.random.default_rng(5)
    shape = network.spec.row_shape[:-1]
    features = rng.normal(size=(6, *shape, 6))
    symbol = rng.integers(0, 3, size=6)
    identity, numbers = np.zeros((6, *shape, 3)), np.zeros((6, *shape, 2))
    for row in range(6):
        identity[row, ..., symbol[row]] = 1.0
        numbers[row, ..., :] = embedding[symbol[row]]
    answered = network(torch.from_numpy(np.concatenate([features, identity], axis=-1)))
    expected = plain(torch.from_numpy(np.concatenate([features, numbers], axis=-1)))
    torch.testing.assert_close(answered, expected, atol=1e-12, rtol=0)
    assert len(np.unique(answered.detach().numpy()[:, 0])) == 6


def test_window_models_see_every_bar_of_their_window() -> None:
    for family in WINDOW_FAMILIES:
        network = network_of(family).eval()
        x = rows_for(network, 1)
        for bar in range(WINDOW_BARS):
            changed = x.clone()
            changed[0, bar] += 1
            assert not torch.equal(network(changed), network(x)), (family, bar)


def test_transformer_of_odd_width_is_built() -> None:
    network = network_of("transformer", d_model=7, num_heads=1, window_bars=40)
    assert network(rows_for(network)).shape == (4, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_network_tells_the_spec_it_was_built_from(family: str) -> None:
    assert network_of(family, dropout=0.25).spec == spec_of(family, dropout=0.25)


@pytest.mark.parametrize("changes", [{}, EMBEDDING, {"num_outputs": 1, "output_activation": "linear"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_spec_counts_the_parameters_of_its_network(family: str, changes: dict[str, Any]) -> None:
    network = network_of(family, **changes)
    assert network.spec.num_parameters == sum(weights.numel() for weights in network.parameters())
