"""Networks by name. Importing this module needs no torch; building a network does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ktrdr_core.models.network_spec import NetworkSpec, check_model_type

if TYPE_CHECKING:
    from ktrdr_core.models.network import Network


def _build_mlp(spec: NetworkSpec, seed: int) -> Network:
    from ktrdr_core.models.mlp import MultiLayerPerceptron

    return MultiLayerPerceptron(spec, seed=seed)


def _build_recurrent(spec: NetworkSpec, seed: int) -> Network:
    from ktrdr_core.models.recurrent import RecurrentNetwork

    return RecurrentNetwork(spec, seed=seed)


def _build_transformer(spec: NetworkSpec, seed: int) -> Network:
    from ktrdr_core.models.transformer import TransformerNetwork

    return TransformerNetwork(spec, seed=seed)


_BUILDERS: dict[str, Callable[[NetworkSpec, int], Network]] = {
    "mlp": _build_mlp,
    "lstm": _build_recurrent,
    "gru": _build_recurrent,
    "transformer": _build_transformer,
}


def build_network(spec: NetworkSpec, *, seed: int) -> Network:
    """Return a freshly initialised network on the CPU; the same spec and seed give the same weights, bit for bit.

    No global random state is read or written.
    """
    return _BUILDERS[check_model_type(spec.type)](spec, seed)
