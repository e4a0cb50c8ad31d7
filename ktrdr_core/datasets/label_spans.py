"""Proves on a finished split that no label of one part has seen a bar of another: the third part of the leakage gate.

It starts from the parts as the model gets them and from the labels as they were made, and shares no code with what made
the split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.data.bars import IntArray
from ktrdr_core.datasets.dataset import DatasetPart, DataSplit
from ktrdr_core.errors import LeakageError
from ktrdr_core.labels.labels import Labels

_PART_NAMES = ("training", "validation", "test")


def check_label_spans(split: DataSplit, labels: Sequence[Labels]) -> int:
    """Refuse a split in which a label's span, from its row's bar to the last bar it has seen, meets another part's.

    Rows of a part may share bars with one another, and windows of features may reach back into any part: that is the
    past. For a fold, `split.test` is the judged stretch; the rule is the same on both sides of it.

    Args:
        split: A split or a fold.
        labels: Labels of each symbol, in the order of `split.symbols`.

    Returns:
        Spans checked: rows of all parts.

    Raises:
        LeakageError: A row stands in two parts or among another symbol's bars, its window crosses into another symbol,
            its label is not that of its bar, it sees further than `split.horizon_bars`, or its span meets that of a row
            of another part; symbol and bar are named.
    """
    parts = (split.train, split.validation, split.test)
    for symbol_id, (placed, own_labels) in enumerate(zip(split.series, labels, strict=True)):
        starts, ends, owners = [], [], []
        for owner, part in enumerate(parts):
            own = np.flatnonzero(part.symbol_ids == symbol_id)
            bars = part.rows[own] - placed.start + placed.first_bar
            last_bar = placed.first_bar + placed.stop - placed.start
            is_outside = (bars - part.window_bars + 1 < placed.first_bar) | (bars >= last_bar)
            _refuse(is_outside, bars, placed.symbol, owner, "its window has bars of another symbol")
            _check_pairing(part, own, bars, own_labels, placed.symbol, owner)
            starts.append(bars)
            ends.append(own_labels.ends[bars])
            owners.append(np.full(len(own), owner))
            is_far = (ends[-1] < bars) | (ends[-1] > bars + split.horizon_bars)
            _refuse(is_far, bars, placed.symbol, owner, f"its label sees more than {split.horizon_bars} bars ahead")
        _check_disjoint(np.concatenate(starts), np.concatenate(ends), np.concatenate(owners), placed.symbol)
    return sum(len(part) for part in parts)


def _check_pairing(part: DatasetPart, own: IntArray, bars: IntArray, labels: Labels, symbol: str, owner: int) -> None:
    _refuse(part.y[own] != labels.y[bars], bars, symbol, owner, "its label is that of another bar or symbol")
    if labels.targets is not None:
        is_other = part.targets[own] != labels.targets[bars]
        _refuse(is_other, bars, symbol, owner, "its forward return is that of another bar or symbol")


def _check_disjoint(starts: IntArray, ends: IntArray, owners: IntArray, symbol: str) -> None:
    """Walk along the spans by their first bar; each must begin after every span of another part that began before."""
    order = np.argsort(starts, kind="stable")
    starts, ends, owners = starts[order], ends[order], owners[order]
    for other, name in enumerate(_PART_NAMES):
        seen = np.maximum.accumulate(np.where(owners == other, ends, -1))
        meets = (owners != other) & (seen >= starts)
        if meets.any():
            row = int(np.argmax(meets))
            _refuse(meets, starts, symbol, int(owners[row]), f"a label of the {name} part has seen bar {seen[row]}")


def _refuse(is_broken: NDArray[np.bool_], bars: IntArray, symbol: str, owner: int, reason: str) -> None:
    if is_broken.any():
        bar = int(bars[int(np.argmax(is_broken))])
        raise LeakageError(
            f"bar {bar} of {symbol} is in the {_PART_NAMES[owner]} part, but {reason}; split the rows again from their "
            "own labels",
            metadata={"feature": "label", "symbol": symbol, "bar": str(bar)},
        )
