"""LSTM and GRU networks over a window of bars.

Source: S. Hochreiter, J. Schmidhuber, Long Short-Term Memory, 1997 (with the forget gate of F. Gers, 2000); K. Cho et
al., Learning Phrase Representations using RNN Encoder-Decoder, 2014 (torch's variant, reset after the product).

Shape suffixes: B rows of a batch, L bars of a window, F features, H hidden units, C outputs.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from ktrdr_core.models.dropout import SeededDropout, derive_seed
from ktrdr_core.models.layers import FIRST_DROPOUT_STREAM, WEIGHT_STREAM, build_linear, fill_uniform
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.symbol_embedding import build_symbol_embedding, embed_symbols

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentNetwork(Network):
    """Recurrent layers of any widths; the last one's state after the last bar goes through a linear head.

    Dropout follows every layer, as in an mlp. Weights start uniform in +-1/sqrt(units), as torch's own layers do.
    """

    def __init__(self, spec: NetworkSpec, *, seed: int) -> None:
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(derive_seed(seed, WEIGHT_STREAM))
        widths = (spec.embedded_size, *spec.hidden_layers)
        self.layers = nn.ModuleList(
            _build_layer(spec.type, widths[index], units, generator) for index, units in enumerate(spec.hidden_layers)
        )
        self.dropout_layers = nn.ModuleList(
            SeededDropout(spec.dropout, units, derive_seed(seed, FIRST_DROPOUT_STREAM + index))
            for index, units in enumerate(spec.hidden_layers)
            if spec.dropout > 0
        )
        self.head = build_linear(widths[-1], spec.num_outputs, generator)
        self.symbol_embedding = build_symbol_embedding(spec, seed)

    def forward(self, x_BLF: Tensor) -> Tensor:
        x_BLH, last = embed_symbols(x_BLF, self.symbol_embedding), len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x_BLH, _ = layer(x_BLH)
            if index == last:
                x_BLH = x_BLH[:, -1:]
            if self.spec.dropout > 0:
                x_BLH = self.dropout_layers[index](x_BLH)
        return cast(Tensor, self.head(x_BLH[:, -1]))


def _build_layer(kind: str, inputs: int, units: int, generator: torch.Generator) -> nn.Module:
    # Built without storage: the constructor would fill its weights from the process's global generator.
    layer = _CELLS[kind](inputs, units, batch_first=True, device="meta").to_empty(device="cpu")
    fill_uniform(layer, 1.0 / math.sqrt(units), generator)
    return layer
