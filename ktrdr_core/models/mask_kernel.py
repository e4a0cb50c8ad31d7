"""The bits of `dropout.py` in compiled code, for the CPU; importing this loads numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from ktrdr_core.models.dropout import FIRST_MULTIPLIER, GOLDEN_GAMMA, SECOND_MULTIPLIER

_Function = TypeVar("_Function", bound=Callable[..., Any])

_GAMMA, _FIRST, _SECOND = np.uint64(GOLDEN_GAMMA), np.uint64(FIRST_MULTIPLIER), np.uint64(SECOND_MULTIPLIER)
_ONE, _27, _30, _31 = np.uint64(1), np.uint64(27), np.uint64(30), np.uint64(31)


def compiled(function: _Function) -> _Function:
    """Compile `function` at its first call, without the interpreter's lock, and keep the machine code on disk.

    Where neither the source's folder nor the user's cache may be written, each process compiles for itself.
    """
    try:
        return cast(_Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        return cast(_Function, numba.njit(nogil=True, error_model="numpy")(function))


@compiled
def fill_bits(seed: int, first_row: int, num_rows: int, num_pairs: int, bits: NDArray[np.uint64]) -> None:
    """Write the bits of `num_rows` rows from `first_row` on, one number for each pair of units, into `bits`.

    Args:
        seed: Seed of the stream.
        first_row: Rows of the stream before these.
        num_rows: R.
        num_pairs: P, half the units of a row, rounded up.
        bits: Where to, shape (at least R * P,), uint64; read as uint32 it holds R rows of 2 P units.
    """
    state = np.uint64(seed) + _GAMMA * (np.uint64(first_row) * np.uint64(num_pairs) + _ONE)
    for index in range(num_rows * num_pairs):
        z = state + np.uint64(index) * _GAMMA
        z = (z ^ (z >> _30)) * _FIRST
        z = (z ^ (z >> _27)) * _SECOND
        bits[index] = z ^ (z >> _31)


@compiled
def fill_mask(
    seed: int, first_row: int, threshold: int, scale: float, bits: NDArray[np.uint64], mask_RW: NDArray[Any]
) -> None:
    """Write `scale` where a unit is kept and 0 elsewhere into `mask_RW`, rows from `first_row` on.

    Args:
        seed: Seed of the stream.
        first_row: Rows of the stream before these.
        threshold: As `keep_threshold` returns it.
        scale: What a kept value is multiplied by.
        bits: Room for one row of pairs, shape (ceil(W / 2),), uint64.
        mask_RW: Where to, float32 or float64.
    """
    num_rows, width = mask_RW.shape
    bits32, limit = bits.view(np.uint32), np.uint32(threshold)
    for row in range(num_rows):
        fill_bits(seed, first_row + row, 1, len(bits), bits)
        for unit in range(width):
            mask_RW[row, unit] = scale if bits32[unit] < limit else 0.0
