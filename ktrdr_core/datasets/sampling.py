"""The order in which an epoch shows the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Sampling = Literal["balanced", "proportional"]
Permutation = Callable[[int], IntArray]
"""Draws a permutation of 0 .. n - 1."""


def epoch_order(symbol_ids: IntArray, sampling: Sampling, permutation: Permutation) -> IntArray:
    """Return the positions of an epoch's rows in the order in which they are seen.

    `proportional`, and `balanced` with one symbol, is one permutation of all rows. `balanced` with S symbols shows each
    of them N // S rows, one more for the first N % S symbols: N in total. A symbol with fewer rows is shown whole
    permutations of them and then the start of another, so that no two of its rows differ by more than one showing; of a
    symbol with more rows, a part is drawn without replacement, another one in each epoch. The rows are then mixed.

    Args:
        symbol_ids: Symbol of each row, shape (N,).
        sampling: See above.
        permutation: The only source of chance. It is asked, in this order: for each symbol, by rising id, one
            permutation of its rows for each (begun) showing of all of them; last, one of N.

    Returns:
        Positions in [0, N), shape (N,), int64.
    """
    num_rows = len(symbol_ids)
    by_symbol = np.argsort(symbol_ids, kind="stable")
    counts = np.unique(symbol_ids, return_counts=True)[1].tolist()
    if sampling == "proportional" or len(counts) <= 1:
        return permutation(num_rows)
    quota, num_larger = divmod(num_rows, len(counts))
    shown, start = [], 0
    for index, count in enumerate(counts):
        own = by_symbol[start : start + count]
        start += count
        left = quota + (index < num_larger)
        while left > 0:
            shown.append(own[permutation(count)[:left]])
            left -= count
    return np.concatenate(shown)[permutation(num_rows)]
