"""A causal transformer encoder over a window of bars.

Source: A. Vaswani et al., Attention Is All You Need, 2017 (encoder, sinusoidal positions); R. Xiong et al., On Layer
Normalization in the Transformer Architecture, 2020 (normalisation before each part).

Shape suffixes: B rows of a batch, L bars of a window, Q of them that are asked for (all, or the last), F features,
D width of a token, H heads, K width of a head, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ktrdr_core.models.dropout import SeededDropout, derive_seed
from ktrdr_core.models.layers import ACTIVATIONS, FIRST_DROPOUT_STREAM, WEIGHT_STREAM, build_linear
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.symbol_embedding import build_symbol_embedding, embed_symbols

# Wavelengths of the positions run from 2 pi to this times 2 pi bars.
_LONGEST_WAVE = 10_000.0
_DROPOUTS_OF_LAYER = 3


class TransformerNetwork(Network):
    """Encoder layers over the bars of a window; the last bar's token goes through a linear head.

    A token is an affine map of its bar's features plus its position; it sees itself and the bars before it.
    """

    positions: Tensor

    def __init__(self, spec: NetworkSpec, *, seed: int) -> None:
        super().__init__()
        self.spec = spec
        generator = torch.Generator().manual_seed(derive_seed(seed, WEIGHT_STREAM))
        self.input = build_linear(spec.embedded_size, spec.d_model, generator)
        # Not a weight: it follows from the spec, and so is in no artifact.
        self.register_buffer("positions", sinusoidal_positions(spec.window_bars, spec.d_model), persistent=False)
        self.layers = nn.ModuleList(
            EncoderLayer(spec, units, generator, seed, FIRST_DROPOUT_STREAM + index * _DROPOUTS_OF_LAYER)
            for index, units in enumerate(spec.hidden_layers)
        )
        self.final_norm = nn.LayerNorm(spec.d_model)
        self.head = build_linear(spec.d_model, spec.num_outputs, generator)
        self.symbol_embedding = build_symbol_embedding(spec, seed)

    def forward(self, x_BLF: Tensor) -> Tensor:
        # The last layer's other tokens are read by nobody: leaving them out saves most of its arithmetic.
        return cast(Tensor, self.head(self.encode(x_BLF, last_only=True)[:, -1]))

    def encode(self, x_BLF: Tensor, *, last_only: bool = False) -> Tensor:
        """Return the encoded tokens, shape (B, L, D), or only that of the last bar, (B, 1, D)."""
        x_BLD = self.input(embed_symbols(x_BLF, self.symbol_embedding)) + self.positions
        for layer in self.layers[:-1]:
            x_BLD = layer(x_BLD)
        return cast(Tensor, self.final_norm(self.layers[-1](x_BLD, last_only=last_only)))


class EncoderLayer(nn.Module):
    """Causal self-attention, then a feed-forward part, each on normalised tokens and added to them.

    Args:
        spec: The network's.
        units: Width of the feed-forward part.
        generator: Draws the weights.
        seed: Of the training.
        stream: Of `derive_seed`, for the first of the dropout layers.
    """

    def __init__(self, spec: NetworkSpec, units: int, generator: torch.Generator, seed: int, stream: int) -> None:
        super().__init__()
        width = spec.d_model
        self.num_heads = spec.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = build_linear(width, width, generator)
        self.key_value = build_linear(width, 2 * width, generator)
        self.attention_output = build_linear(width, width, generator)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = build_linear(width, units, generator)
        self.contract = build_linear(units, width, generator)
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[spec.activation]
        self.dropout_layers = nn.ModuleList(
            SeededDropout(spec.dropout, size, derive_seed(seed, stream + index)) if spec.dropout > 0 else nn.Identity()
            for index, size in enumerate((width, units, width))
        )

    def forward(self, x_BLD: Tensor, *, last_only: bool = False) -> Tensor:
        """Return what becomes of the tokens, shape (B, Q, D): of all, or only of the last."""
        drop_attention, drop_hidden, drop_output = self.dropout_layers
        first = -1 if last_only else 0
        normed_BLD = self.attention_norm(x_BLD)
        x_BQD = x_BLD[:, first:] + drop_attention(self._attend(normed_BLD[:, first:], normed_BLD))
        hidden = drop_hidden(self.activation(self.expand(self.feed_forward_norm(x_BQD))))
        return cast(Tensor, x_BQD + drop_output(self.contract(hidden)))

    def _attend(self, queries_BQD: Tensor, tokens_BLD: Tensor) -> Tensor:
        num_queries = queries_BQD.shape[1]
        query_BHQK = self._split_heads(self.query(queries_BQD))
        key_BHLK, value_BHLK = (self._split_heads(part) for part in self.key_value(tokens_BLD).chunk(2, dim=2))
        mixed_BHQK = functional.scaled_dot_product_attention(
            query_BHQK, key_BHLK, value_BHLK, is_causal=num_queries > 1
        )
        return cast(Tensor, self.attention_output(mixed_BHQK.transpose(1, 2).flatten(2)))

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """Return (B, H, tokens, K) from (B, tokens, D)."""
        num_rows, num_tokens, width = tokens.shape
        return tokens.reshape(num_rows, num_tokens, self.num_heads, width // self.num_heads).transpose(1, 2)


def sinusoidal_positions(num_tokens: int, width: int) -> Tensor:
    """Return the position codes (L, D), float32: sine in even columns, cosine in odd ones, wavelengths rising."""
    position_L = torch.arange(num_tokens, dtype=torch.float64)
    rate_P = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(_LONGEST_WAVE) / width))
    angle_LP = position_L[:, None] * rate_P
    codes_LD = torch.empty(num_tokens, width, dtype=torch.float64)
    codes_LD[:, 0::2] = torch.sin(angle_LP)
    codes_LD[:, 1::2] = torch.cos(angle_LP[:, : width // 2])
    return codes_LD.float()
