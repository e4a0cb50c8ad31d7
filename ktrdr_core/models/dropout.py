"""Dropout whose masks are a function of (seed, row, unit), so that every engine and device can draw the same bits.

The bits are the sequence of the generator splitmix64 whose state starts at `seed`, and its i-th output serves two
units: output `row * ceil(width / 2) + p` has unit 2p in its low 32 bits and unit 2p + 1 in its high 32 bits. A unit is
kept iff its bits are below `keep_threshold(rate)`. Rows are counted from the start of the training, so the whole state
of a stream is one number.

Source: G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators, 2014 (splitmix64); N. Srivastava
et al., Dropout: a simple way to prevent neural networks from overfitting, 2014.

Shape suffixes: R rows, W units of a row, P pairs of units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9
SECOND_MULTIPLIER = 0x94D049BB133111EB
_BITS = 64
_LOW_32_BITS = 0xFFFFFFFF
# Masks are drawn for many batches at once, which spreads the cost of the calls, but for no more values than this.
_BLOCK_ROWS = 2_048
_BLOCK_VALUES = 1 << 20


def derive_seed(seed: int, stream: int) -> int:
    """Return a seed for independent stream `stream` of a training seeded with `seed` (splitmix64 finaliser)."""
    z = (seed + GOLDEN_GAMMA * (stream + 1)) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * FIRST_MULTIPLIER) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * SECOND_MULTIPLIER) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


def keep_threshold(rate: float) -> int:
    """Return the number that 32 random bits are below with probability 1 - `rate`, to within 2**-32."""
    return min(round((1.0 - rate) * 2**32), _LOW_32_BITS)


def draw_kept(seed: int, rows_R: Tensor, width: int, rate: float) -> Tensor:
    """Return which units of which rows are kept, bool (R, W).

    Args:
        seed: Seed of the stream, as `derive_seed` returns it.
        rows_R: Numbers of the rows, shape (R,), int64, any device.
        width: Units of a row.
        rate: Share of units to drop.
    """
    num_pairs = (width + 1) // 2
    pairs_P = torch.arange(num_pairs, device=rows_R.device)
    # int64 wraps as uint64 does under + and *; only the shifts need their sign bits masked away.
    z_RP = (rows_R[:, None] * num_pairs + (pairs_P + 1)).mul_(_signed(GOLDEN_GAMMA)).add_(_signed(seed))
    z_RP = (z_RP ^ _shift_right(z_RP, 30)).mul_(_signed(FIRST_MULTIPLIER))
    z_RP = (z_RP ^ _shift_right(z_RP, 27)).mul_(_signed(SECOND_MULTIPLIER))
    z_RP ^= _shift_right(z_RP, 31)
    bits_RW = torch.stack((z_RP & _LOW_32_BITS, _shift_right(z_RP, 32)), dim=2).flatten(1)[:, :width]
    return bits_RW < keep_threshold(rate)


def _shift_right(z: Tensor, count: int) -> Tensor:
    return (z >> count).bitwise_and_((1 << (_BITS - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << _BITS) if value >= 1 << (_BITS - 1) else value


class SeededDropout(nn.Module):
    """Dropout with a stream of its own: a seed fixes a training whatever else draws numbers, on every device alike.

    Every leading dimension of the input counts as rows: (B, W) are B rows, windows (B, L, W) are B * L.

    Args:
        rate: Share of values set to 0, in (0, 1); the others are scaled by 1 / (1 - rate).
        width: Values in a row.
        seed: Seed of the stream.
    """

    def __init__(self, rate: float, width: int, seed: int) -> None:
        super().__init__()
        self.rate = rate
        self.width = width
        self.seed = seed
        self._next_row = 0
        self._block: Tensor | None = None
        self._block_start = 0
        self._device_row: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        num_rows = x.numel() // self.width
        if self._device_row is not None:
            mask_RW = self._draw(self._device_row + torch.arange(num_rows, device=x.device), x.dtype)
            self._device_row += num_rows
        else:
            mask_RW = self._next_masks(num_rows, x)
        return x * (mask_RW if x.dim() == 2 else mask_RW.view(x.shape))

    def random_state(self) -> int:
        """Return the rows seen since the start of the training; this waits for a device that counts them."""
        return self._next_row if self._device_row is None else int(self._device_row)

    def restore_random_state(self, next_row: int) -> None:
        """Go on exactly where `random_state` was taken."""
        self._next_row = next_row
        if self._device_row is not None:
            self._device_row.fill_(next_row)

    def count_on_device(self, device: torch.device) -> None:
        """Keep the count of rows on `device` from now on, and draw each batch's masks from it.

        A captured CUDA graph of the forward pass then moves on by itself each time it is replayed. The bits are the
        same; without a graph it costs about twelve calls a batch, which drawing in blocks does not.
        """
        self._device_row = torch.tensor(self.random_state(), device=device)
        self._block = None

    def _next_masks(self, num_rows: int, x: Tensor) -> Tensor:
        block, start = self._block, self._next_row - self._block_start
        if (
            block is None
            or not 0 <= start <= block.shape[0] - num_rows
            or block.dtype != x.dtype
            or block.device != x.device
        ):
            block_rows = max(num_rows, min(_BLOCK_ROWS, _BLOCK_VALUES // self.width))
            block, start = self._draw_block(block_rows, x), 0
            self._block, self._block_start = block, self._next_row
        self._next_row += num_rows
        return block.narrow(0, start, num_rows)

    def _draw_block(self, num_rows: int, like: Tensor) -> Tensor:
        if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
            rows_R = torch.arange(self._next_row, self._next_row + num_rows, device=like.device)
            return self._draw(rows_R, like.dtype)
        # Imported here: numba takes 0.3 s, and who only predicts draws nothing.
        from ktrdr_core.models.mask_kernel import fill_mask

        mask_RW = torch.empty(num_rows, self.width, dtype=like.dtype)
        bits = np.empty((self.width + 1) // 2, dtype=np.uint64)
        scale = 1.0 / (1.0 - self.rate)
        fill_mask(self.seed, self._next_row, keep_threshold(self.rate), scale, bits, mask_RW.numpy())
        return mask_RW

    def _draw(self, rows_R: Tensor, dtype: torch.dtype) -> Tensor:
        return draw_kept(self.seed, rows_R, self.width, self.rate).to(dtype).mul_(1.0 / (1.0 - self.rate))
