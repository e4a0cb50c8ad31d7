"""Evaluation in blocks of one fixed size.

A matrix product over another number of rows may differ in the last bit. So a series is evaluated in blocks of one size,
counted from its first row, the last padded with zeros, and a block is always computed as a whole, in memory of one
alignment, on one thread: what a row answers then depends on the bars up to it and on where the series starts, and on
nothing else. Training's evaluation and a later prediction over the same bars agree bit for bit, and bars that follow
change no bit of those before.

Shape suffixes: R bars of a series, F features, L bars of a window, N rows, B rows of a block, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ktrdr_core.datasets.dataset import DatasetPart, DataSplit, sliding_windows
from ktrdr_core.evaluation.determinism import deterministic_torch

BLOCK_ROWS = 1024
# Windows of 20 bars x 30 features, in thousands of rows/s with blocks of 64, 256 and 1,024: an LSTM of 64 units 35, 39
# and 40, a GRU 40, 52 and 47, a transformer 112, 164 and 168. 256 is about as fast as any and needs less memory.
WINDOW_BLOCK_ROWS = 256
MIN_BLOCK_ROWS = 16
# Values of a block at most, which bounds the memory that long windows take.
_BLOCK_VALUES = 1 << 22

Check = Callable[[], None]
Outputs = NDArray[np.float32]
# Gives a block (B, L, F) on the device by its number.
Blocks = Callable[[int], Tensor]


def _no_check() -> None:
    pass


def block_rows(window_bars: int, num_features: int) -> int:
    """Return how many rows are evaluated at once: a power of two that depends on the shape of a row alone."""
    if window_bars == 1:
        return BLOCK_ROWS
    rows = WINDOW_BLOCK_ROWS
    while rows > MIN_BLOCK_ROWS and rows * window_bars * num_features > _BLOCK_VALUES:
        rows //= 2
    return rows


def series_outputs(
    model: nn.Module,
    matrix: NDArray[np.float32],
    *,
    window_bars: int = 1,
    device: str = "cpu",
    check: Check = _no_check,
) -> Outputs:
    """Return what a network answers to each bar of one series, dropout off, full precision.

    The outputs of the first rows are the same bits whatever follows them; those of a series that starts at another bar
    may differ in the last bit.

    Args:
        model: Network on `device`; its training mode is left as it was.
        matrix: Scaled features of the bars, oldest first, shape (R, F), float32, C-contiguous, no NaN.
        window_bars: L, bars of a row. Row i is matrix[i : i + L], the window that ends at bar i + L - 1.
        device: Where the model is.
        check: Called before each block; may raise to end early.

    Returns:
        Outputs, shape (R - L + 1, C), or (0, C) where R is below L; float32. Row i depends on bars up to i + L - 1.
    """
    wanted_N = np.arange(max(len(matrix) - window_bars + 1, 0), dtype=np.int64)
    return _outputs_of_rows(model, matrix, wanted_N, window_bars, device, check)


def split_outputs(
    model: nn.Module, split: DataSplit, part: DatasetPart, *, device: str = "cpu", check: Check = _no_check
) -> Outputs:
    """Return what a network answers to each row of a part, bit for bit as `series_outputs` of its symbols' series.

    Only the blocks that hold a row of the part are computed, and they are the same wherever the part begins.

    Args:
        model: Network on `device`; its training mode is left as it was.
        split: Says where each symbol stands in the matrix.
        part: A part over the matrix of `split`: one of its three, or any other rows of it.
        device: Where the model is; predictions are made on a CPU, so only there are they the same bits.
        check: Called before each block; may raise to end early.

    Returns:
        Outputs, shape (N, C), float32, in the order of the part's rows.
    """
    places: list[NDArray[np.int64]] = []
    found: list[Outputs] = []
    for series in split.series:
        own = np.flatnonzero((part.rows >= series.start) & (part.rows < series.stop))
        if len(own) == 0:
            continue
        wanted_N = part.rows[own] - series.start - (part.window_bars - 1)
        matrix = part.matrix[series.start : series.stop]
        places.append(own)
        found.append(_outputs_of_rows(model, matrix, wanted_N, part.window_bars, device, check))
    if not found:
        return part_outputs(model, part, device=device, check=check)
    outputs: Outputs = np.empty((len(part), found[0].shape[1]), dtype=np.float32)
    outputs[np.concatenate(places)] = np.concatenate(found)
    return outputs


def part_outputs(
    model: nn.Module,
    part: DatasetPart,
    *,
    device: str = "cpu",
    check: Check = _no_check,
    matrix: Tensor | None = None,
) -> Outputs:
    """Return what a network answers to each row of a part, dropout off, full precision.

    Blocks are of the part's own rows, whichever bars they are: the same part gives the same bits, but a row's may
    differ in the last bit from those of `split_outputs`.

    Args:
        model: Network on `device`; its training mode is left as it was.
        part: Rows to answer.
        device: Where the model is.
        check: Called before each block; may raise to end early.
        matrix: `part.matrix`, on `device` already; nothing but positions is copied there then, and nothing is read
            back before the end.

    Returns:
        Outputs, shape (N, C), float32, in the order of the part's rows.
    """
    first_N = part.rows - (part.window_bars - 1)
    size = block_rows(part.window_bars, part.num_features)
    num_blocks = max(-(-len(part) // size), 1)
    if matrix is None:
        block_at = _host_blocks(part, first_N, size, device)
    else:
        block_at = _device_blocks(matrix, first_N, part.window_bars, size, num_blocks)
    return _blockwise(model, block_at, num_blocks, device, check)[: len(part)]


def _outputs_of_rows(
    model: nn.Module,
    matrix: NDArray[np.float32],
    wanted_N: NDArray[np.int64],
    window_bars: int,
    device: str,
    check: Check,
) -> Outputs:
    """Return the outputs of some rows of a series, computing the blocks of the series that hold one."""
    num_features = matrix.shape[1]
    size = block_rows(window_bars, num_features)
    windows = sliding_windows(matrix, window_bars)
    buffer = _Buffer(size, window_bars, num_features, device)
    held = np.unique(wanted_N // size) if len(wanted_N) else np.zeros(1, dtype=np.int64)

    def block_at(index: int) -> Tensor:
        first = int(held[index]) * size
        return buffer.fill(windows[first : first + size])

    places_N = np.searchsorted(held, wanted_N // size) * size + wanted_N % size
    outputs: Outputs = _blockwise(model, block_at, len(held), device, check)[places_N]
    return outputs


class _Buffer:
    """Memory of one block, filled again and again: rows reach the network contiguous and equally aligned.

    Where a slice of a matrix begins in memory may change the last bit of a product.
    """

    def __init__(self, size: int, window_bars: int, num_features: int, device: str) -> None:
        self._block_BLF = torch.zeros(size, window_bars, num_features, dtype=torch.float32)
        self._view_BLF = self._block_BLF.numpy()
        self._device = device

    def fill(self, windows_NLF: NDArray[np.float32]) -> Tensor:
        """Return a block on the device that begins with these rows and is 0 after them."""
        self._view_BLF[: len(windows_NLF)] = windows_NLF
        self._view_BLF[len(windows_NLF) :] = 0
        return self._block_BLF.to(self._device)


def _host_blocks(part: DatasetPart, first_N: NDArray[np.int64], size: int, device: str) -> Blocks:
    """Return what copies a block of windows, those that start at `first_N`, to the device."""
    windows = sliding_windows(part.matrix, part.window_bars)
    buffer = _Buffer(size, part.window_bars, part.num_features, device)
    return lambda index: buffer.fill(windows[first_N[index * size : (index + 1) * size]])


def _device_blocks(
    matrix_RF: Tensor, first_N: NDArray[np.int64], window_bars: int, size: int, num_blocks: int
) -> Blocks:
    """Return what gathers a block of windows on the matrix's device; the last is filled up with the first window."""
    padded_P = np.zeros(num_blocks * size, dtype=np.int64)
    padded_P[: len(first_N)] = first_N
    first_P = torch.from_numpy(padded_P).to(matrix_RF.device)
    bars_L = torch.arange(window_bars, device=matrix_RF.device)
    return lambda index: matrix_RF[first_P[index * size : (index + 1) * size, None] + bars_L]


def _blockwise(model: nn.Module, block_at: Blocks, num_blocks: int, device: str, check: Check) -> Outputs:
    """Return the outputs of every row of every block; a window of one bar is a row (F,)."""
    was_training = model.training
    model.eval()
    try:
        with deterministic_torch(device), torch.inference_mode():
            parts = []
            for index in range(num_blocks):
                check()
                block_BLF = block_at(index)
                parts.append(model(block_BLF[:, 0] if block_BLF.shape[1] == 1 else block_BLF))
            outputs: Outputs = torch.cat(parts).float().cpu().numpy()
    finally:
        model.train(was_training)
    return outputs
