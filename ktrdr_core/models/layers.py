"""Parts that several families of networks share: activations, and layers initialised from a generator of their own.

The constructors of torch's layers draw from the process's global generator; these never touch it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
}

# Streams of `derive_seed`: 0 for weights, then one per dropout layer in forward order. The symbol embedding's is beyond
# them all, so that a network has the same other weights with and without one.
WEIGHT_STREAM = 0
FIRST_DROPOUT_STREAM = 1
SYMBOL_STREAM = 1 << 20


def build_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return an affine layer, uniform in +-1/sqrt(inputs) as torch's own, but drawn from `generator`."""
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs))  # type: ignore[no-untyped-call]
    fill_uniform(layer, 1.0 / math.sqrt(inputs), generator)
    return layer


def fill_uniform(module: nn.Module, bound: float, generator: torch.Generator) -> None:
    """Fill every parameter of `module`, in the order of their names' definition, uniform in +-`bound`."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
