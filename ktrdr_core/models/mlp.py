"""The multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ktrdr_core.models.network import Network, SeededDropout, derive_seed
from ktrdr_core.models.network_spec import NetworkSpec

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
}

# Streams of `derive_seed`: 0 for weights, then one per dropout layer.
_WEIGHT_STREAM = 0
_FIRST_DROPOUT_STREAM = 1


class MultiLayerPerceptron(Network):
    """Affine layers with an activation and dropout between them; the last one gives logits.

    Weights start uniform in +-1/sqrt(fan_in), as torch's own Linear does, but from a generator of this network.
    """

    def __init__(self, spec: NetworkSpec, *, seed: int) -> None:
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(derive_seed(seed, _WEIGHT_STREAM))
        widths = (spec.input_size, *spec.hidden_layers, spec.num_classes)
        layers = [_linear(widths[i], widths[i + 1], generator) for i in range(len(widths) - 1)]
        dropouts = [
            SeededDropout(spec.dropout, units, derive_seed(seed, _FIRST_DROPOUT_STREAM + index))
            for index, units in enumerate(spec.hidden_layers)
            if spec.dropout > 0
        ]
        self.layers = nn.ModuleList(layers)
        self.dropout_layers = nn.ModuleList(dropouts)
        self._activation = _ACTIVATIONS[spec.activation]
        # The forward pass calls functions on these: going through modules costs a tenth of a step at batch 32.
        self._affine = tuple((layer.weight, layer.bias) for layer in layers)
        self._dropouts = tuple(dropouts)

    @property
    def first(self) -> nn.Linear:
        return cast(nn.Linear, self.layers[0])

    def forward(self, x_BF: Tensor) -> Tensor:
        return self.tail(functional.linear(x_BF, *self._affine[0]))

    def tail(self, z_BH: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(self._affine[1:]):
            z_BH = self._activation(z_BH)
            if self._dropouts:
                z_BH = self._dropouts[index].forward(z_BH)
            z_BH = functional.linear(z_BH, weight, bias)
        return z_BH


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    # skip_init: the constructor of Linear would draw from the process's global generator.
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs))  # type: ignore[no-untyped-call]
    bound = 1.0 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
