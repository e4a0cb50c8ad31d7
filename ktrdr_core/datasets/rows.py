"""Pairs features with labels. The one place where rows are dropped for want of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ktrdr_core.data.bars import Bars, FloatArray, IntArray
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.features.engineer import FeatureMatrix
from ktrdr_core.labels.registry import NO_LABEL, Labels


@dataclass(frozen=True, eq=False)
class Rows:
    """Complete rows, not scaled; those of a symbol are together and in time order.

    Attributes:
        X: Features, shape (N, F), float64, no NaN.
        y: SignalClass, shape (N,), int64.
        times: Open time of each row's bar, ns since 1970 UTC, shape (N,).
        bar_indices: Index of each row's bar in its series, shape (N,).
        symbol_ids: Index of each row's symbol, shape (N,).
        warm_up_rows: Bars dropped because a feature was NaN.
        unlabelled_rows: Bars dropped because their label's horizon was not complete.
    """

    X: FloatArray
    y: IntArray
    times: IntArray
    bar_indices: IntArray
    symbol_ids: IntArray
    warm_up_rows: int
    unlabelled_rows: int

    def __len__(self) -> int:
        return len(self.y)


def build_rows(features: FeatureMatrix, labels: Labels, bars: Bars, symbol_id: int = 0) -> Rows:
    """Return the rows of one symbol that have every feature and a label.

    Raises:
        InvalidInputError: Features, labels and bars are of different lengths.
    """
    if not len(features.X) == len(labels.y) == len(bars):
        raise InvalidInputError(
            f"features, labels and bars must be of one length, were {len(features.X)}, {len(labels.y)}, {len(bars)}",
            field="features",
        )
    has_features_T = np.logical_not(np.isnan(features.X).any(axis=1))
    has_label_T = labels.y != NO_LABEL
    kept = np.flatnonzero(has_features_T & has_label_T)
    return Rows(
        X=features.X[kept],
        y=labels.y[kept],
        times=bars.times[kept],
        bar_indices=kept,
        symbol_ids=np.full(len(kept), symbol_id, dtype=np.int64),
        warm_up_rows=int((~has_features_T).sum()),
        unlabelled_rows=int((has_features_T & ~has_label_T).sum()),
    )


def combine_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several symbols, one symbol after the other; each row keeps its symbol."""
    return Rows(
        X=np.concatenate([part.X for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        times=np.concatenate([part.times for part in parts]),
        bar_indices=np.concatenate([part.bar_indices for part in parts]),
        symbol_ids=np.concatenate([part.symbol_ids for part in parts]),
        warm_up_rows=sum(part.warm_up_rows for part in parts),
        unlabelled_rows=sum(part.unlabelled_rows for part in parts),
    )
