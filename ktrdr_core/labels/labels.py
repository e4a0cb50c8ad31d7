"""Labels of a series: what the model should have said at each bar, and how far ahead that looked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.domain.labels import SignalClass

NO_LABEL = -1
NO_END = -1


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a series.

    Attributes:
        y: SignalClass of each bar, shape (T,), int64; NO_LABEL where there is none.
        ends: Index of the last bar that each label has seen, shape (T,), int64: after t and at most
            t + `horizon_bars`; NO_END where there is no label. A label is a function of the bars up to its end.
        horizon_bars: Most bars ahead that a label may see.
        targets: Forward return that a regression learns, shape (T,), float32, NaN where there is no label; None
            unless the source is forward_return.
    """

    y: NDArray[np.int64]
    ends: NDArray[np.int64]
    horizon_bars: int
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.y)


def unlabelled(num_bars: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `y` and `ends` of a series in which no bar has a label yet."""
    return np.full(num_bars, NO_LABEL, dtype=np.int64), np.full(num_bars, NO_END, dtype=np.int64)


def classes(is_buy: NDArray[np.bool_], is_sell: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return BUY, SELL, or else HOLD of each row, shape (N,), int64; no row may be both."""
    y = np.full(len(is_buy), int(SignalClass.HOLD), dtype=np.int64)
    y[is_buy] = SignalClass.BUY
    y[is_sell] = SignalClass.SELL
    return y
