"""Evaluation in blocks of one fixed size.

A matrix product over another number of rows may differ in the last bit, so every evaluation uses the same block size
and pads the last block: training's evaluation and a later prediction of the same rows agree bit for bit.

Shape suffixes: N rows, P rows padded to whole blocks, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BLOCK_ROWS = 1024


class PaddedRows:
    """Rows on a device, padded with zeros to whole blocks; put there once, evaluated many times."""

    def __init__(self, X: NDArray[np.float32], device: str) -> None:
        self.num_rows = len(X)
        num_padded = -(-max(self.num_rows, 1) // BLOCK_ROWS) * BLOCK_ROWS
        x_PF = torch.zeros(num_padded, X.shape[1], dtype=torch.float32)
        x_PF[: self.num_rows] = torch.from_numpy(np.ascontiguousarray(X))
        self.x_PF = x_PF.to(device)

    def blocks(self) -> tuple[Tensor, ...]:
        """Return the blocks, each of exactly BLOCK_ROWS rows."""
        return torch.split(self.x_PF, BLOCK_ROWS)


def compute_logits(
    model: nn.Module, rows: PaddedRows, *, check: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """Return logits (N, C), float32, dropout off, full precision; the model's training mode is left as it was.

    Args:
        model: Network on the device of `rows`.
        rows: What to evaluate.
        check: Called before each block; may raise to end early.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = []
            for block in rows.blocks():
                check()
                parts.append(model(block))
            logits = torch.cat(parts)[: rows.num_rows].float().cpu().numpy()
    finally:
        model.train(was_training)
    return np.asarray(logits)
