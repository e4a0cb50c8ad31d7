"""The multi-layer perceptron.

Shape suffixes: B rows of a batch, F features, S symbols, D numbers of a symbol's embedding, H units, C outputs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ktrdr_core.models.dropout import SeededDropout, derive_seed
from ktrdr_core.models.layers import ACTIVATIONS, FIRST_DROPOUT_STREAM, WEIGHT_STREAM, build_linear
from ktrdr_core.models.network import AffineFirstNetwork
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.symbol_embedding import build_symbol_embedding


class MultiLayerPerceptron(AffineFirstNetwork):
    """Affine layers with an activation and dropout between them; the last one gives the outputs.

    Weights start uniform in +-1/sqrt(fan_in), as torch's own Linear does, but from a generator of this network. Where
    the spec has a symbol embedding, the last S columns of a row name its symbol (one is 1, the others 0), and the first
    layer reads the symbol's D numbers in their place.
    """

    def __init__(self, spec: NetworkSpec, *, seed: int) -> None:
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(derive_seed(seed, WEIGHT_STREAM))
        first_width = spec.input_size - spec.num_symbols + spec.symbol_embedding_dim
        widths = (first_width, *spec.hidden_layers, spec.num_outputs)
        layers = [build_linear(widths[i], widths[i + 1], generator) for i in range(len(widths) - 1)]
        dropouts = [
            SeededDropout(spec.dropout, units, derive_seed(seed, FIRST_DROPOUT_STREAM + index))
            for index, units in enumerate(spec.hidden_layers)
            if spec.dropout > 0
        ]
        self.layers = nn.ModuleList(layers)
        self.dropout_layers = nn.ModuleList(dropouts)
        self.symbol_embedding = build_symbol_embedding(spec, seed)
        self._activation = ACTIVATIONS[spec.activation]
        # The forward pass calls functions on these: going through modules costs a tenth of a step at batch 32.
        self._affine = tuple((layer.weight, layer.bias) for layer in layers)
        self._dropouts = tuple(dropouts)

    @property
    def first(self) -> nn.Linear:
        """The first layer itself, without the symbol embedding."""
        return cast(nn.Linear, self.layers[0])

    def first_affine(self) -> tuple[Tensor, Tensor]:
        weight, bias = self._affine[0]
        embedding_SD = self.symbol_embedding
        if embedding_SD is None:
            return weight, bias
        own_width = weight.shape[1] - embedding_SD.shape[1]
        weight_HS = functional.linear(weight[:, own_width:], embedding_SD)
        return torch.cat((weight[:, :own_width], weight_HS), dim=1), bias

    def tail(self, z_BH: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(self._affine[1:]):
            z_BH = self._activation(z_BH)
            if self._dropouts:
                z_BH = self._dropouts[index].forward(z_BH)
            z_BH = functional.linear(z_BH, weight, bias)
        return z_BH

    def tail_columns(self, z_HB: Tensor) -> Tensor:
        """Return `tail` of a transposed batch, transposed: (H, B) to (C, B), without dropout.

        Matrix products with narrow layers are faster this way round (measured: 1.6 times over an importance).
        """
        for weight, bias in self._affine[1:]:
            z_HB = torch.addmm(bias.unsqueeze(1), weight, self._activation(z_HB))
        return z_HB
