"""What every network offers, and the seeded dropout they share.

Shape suffixes: B rows of a batch, F features, H hidden units, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ktrdr_core.models.network_spec import NetworkSpec

# Masks are drawn for this many rows at once: one call of the generator serves many batches.
MASK_BLOCK_ROWS = 2048


def derive_seed(seed: int, stream: int) -> int:
    """Return a seed for independent stream `stream` of a training seeded with `seed` (splitmix64 finaliser)."""
    z = (seed + 0x9E3779B97F4A7C15 * (stream + 1)) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


class SeededDropout(nn.Module):
    """Dropout that draws from a generator of its own, so that a seed fixes a training whatever else draws numbers.

    Args:
        rate: Share of values set to 0, in (0, 1); the others are scaled by 1 / (1 - rate).
        width: Values in a row.
        seed: Seed of the generator.
    """

    def __init__(self, rate: float, width: int, seed: int) -> None:
        super().__init__()
        self.rate = rate
        self.width = width
        self._seed = seed
        self._masks: Tensor | None = None
        self._generator: torch.Generator | None = None
        self._block_state: Tensor | None = None
        self._next_row = 0

    def forward(self, x_BH: Tensor) -> Tensor:
        if not self.training:
            return x_BH
        rows = x_BH.shape[0]
        masks = self._masks
        if masks is None or self._next_row + rows > masks.shape[0]:
            masks = self._draw(max(rows, MASK_BLOCK_ROWS), x_BH.device)
        mask_BH = masks.narrow(0, self._next_row, rows)
        self._next_row += rows
        return x_BH * mask_BH

    def random_state(self) -> tuple[Tensor, int, int]:
        """Return (generator state before the block of masks in use, rows of that block, rows used)."""
        if self._masks is None or self._block_state is None:
            return self._new_generator(torch.device("cpu")).get_state(), 0, 0
        return self._block_state, self._masks.shape[0], self._next_row

    def restore_random_state(self, state: Tensor, rows: int, next_row: int, device: torch.device) -> None:
        """Go on exactly where `random_state` was taken."""
        self._masks = None
        if rows == 0:
            return
        self._generator = self._new_generator(device)
        self._generator.set_state(state)
        self._draw(rows, device)
        self._next_row = next_row

    def _new_generator(self, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device=device)
        generator.manual_seed(self._seed)
        return generator

    def _draw(self, rows: int, device: torch.device) -> Tensor:
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = self._new_generator(device)
        self._block_state = self._generator.get_state()
        keep = 1.0 - self.rate
        masks = torch.empty(rows, self.width, device=device).bernoulli_(keep, generator=self._generator).div_(keep)
        self._masks, self._next_row = masks, 0
        return masks


class Network(nn.Module):
    """A classifier: rows of features in, logits of BUY, HOLD, SELL out.

    The forward pass is `tail(first(x))`; `first` is affine in x, which permutation importance uses.
    """

    spec: NetworkSpec

    @property
    @abstractmethod
    def first(self) -> nn.Linear:
        """The affine layer that reads the features."""

    @abstractmethod
    def tail(self, z_BH: Tensor) -> Tensor:
        """Return logits (B, C) from the first layer's output."""

    def forward(self, x_BF: Tensor) -> Tensor:
        return self.tail(self.first(x_BF))

    def dropouts(self) -> Iterator[SeededDropout]:
        """Yield the dropout layers in forward order."""
        for module in self.modules():
            if isinstance(module, SeededDropout):
                yield module
