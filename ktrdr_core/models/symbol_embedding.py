"""Symbol identity of networks over windows: one-hot columns in, numbers that are learned instead.

Shape suffixes: F columns of a row, S symbols, D numbers of a symbol's embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ktrdr_core.models.dropout import derive_seed
from ktrdr_core.models.layers import SYMBOL_STREAM
from ktrdr_core.models.network_spec import NetworkSpec


def build_symbol_embedding(spec: NetworkSpec, seed: int) -> nn.Parameter | None:
    """Return the numbers of each symbol (S, D), standard normal; None for a symbol-agnostic network."""
    if spec.symbol_embedding_dim == 0:
        return None
    generator = torch.Generator().manual_seed(derive_seed(seed, SYMBOL_STREAM))
    return nn.Parameter(torch.randn(spec.num_symbols, spec.symbol_embedding_dim, generator=generator))


def embed_symbols(x: Tensor, embedding_SD: Tensor | None) -> Tensor:
    """Return `x` (..., F) with its last S columns, one-hot, replaced by their symbol's numbers: (..., F - S + D)."""
    if embedding_SD is None:
        return x
    num_symbols = embedding_SD.shape[0]
    return torch.cat((x[..., :-num_symbols], x[..., -num_symbols:] @ embedding_SD), dim=-1)
