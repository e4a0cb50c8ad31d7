"""What a model is trained, validated and tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.features.scaler import Scaler


@dataclass(frozen=True, eq=False)
class DatasetPart:
    """Rows of one chronological part; within a symbol in time order.

    Attributes:
        X: Scaled features, shape (N, F), float32, C-contiguous, no NaN.
        y: SignalClass of each row, shape (N,), int64.
        times: Open time of each row's bar, ns since 1970 UTC, shape (N,), int64.
        symbol_ids: Index of each row's symbol in `DataSplit.symbols`, shape (N,), int64.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    times: NDArray[np.int64]
    symbol_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class DataSplit:
    """The three parts and what is needed to make such rows again.

    Attributes:
        train, validation, test: The parts, in that order in time for each symbol.
        feature_names: Names of the columns of X.
        symbols: What `symbol_ids` point at.
        scaler: Fitted on the training rows only; X has been through it.
        horizon_bars: Bars ahead that a label has seen; rows purged at each boundary.
        purged_rows: Rows dropped at the boundaries.
        warnings: Sentences for the result.
    """

    train: DatasetPart
    validation: DatasetPart
    test: DatasetPart
    feature_names: tuple[str, ...]
    symbols: tuple[str, ...]
    scaler: Scaler
    horizon_bars: int
    purged_rows: int
    warnings: tuple[str, ...] = ()
