"""What a model is trained, validated and tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.features.engineer import FeatureColumn
from ktrdr_core.features.scaler import Scaler


@dataclass(frozen=True, eq=False, kw_only=True)
class DatasetPart:
    """Rows of one part: positions in a matrix that all parts share, so that no part is a copy.

    Attributes:
        matrix: Scaled features of every bar with complete features, one symbol after another, in time order within
            a symbol, shape (R, F), float32, C-contiguous, no NaN. Read only.
        rows: Position in `matrix` of each row's bar, shape (N,), int64; increasing.
        window_bars: L, bars of a row: row i is matrix[rows[i] - L + 1 : rows[i] + 1]; no window crosses symbols.
        y: SignalClass of each row, shape (N,), int64.
        targets: Forward return that a regression learns, shape (N,), float32; empty for a classification.
        times: Open time of each row's bar, ns since 1970 UTC, shape (N,), int64.
        symbol_ids: Index of each row's symbol in `DataSplit.symbols`, shape (N,), int64.
    """

    matrix: NDArray[np.float32]
    rows: NDArray[np.int64]
    y: NDArray[np.int64]
    times: NDArray[np.int64]
    symbol_ids: NDArray[np.int64]
    targets: NDArray[np.float32]
    window_bars: int = 1

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_features(self) -> int:
        return int(self.matrix.shape[1])

    @property
    def X(self) -> NDArray[np.float32]:  # noqa: N802  # the field's name for it
        """Rows as an array, (N, F), or (N, L, F) for windows; a copy unless the rows are consecutive bars."""
        is_run = len(self.rows) > 0 and int(self.rows[-1] - self.rows[0]) == len(self.rows) - 1
        if self.window_bars == 1:
            return self.matrix[self.rows[0] : self.rows[-1] + 1] if is_run else self.matrix[self.rows]
        first = self.rows - self.window_bars + 1
        windows = sliding_windows(self.matrix, self.window_bars)
        return windows[first[0] : first[-1] + 1] if is_run else windows[first]

    @classmethod
    def from_rows(
        cls,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        *,
        times: NDArray[np.int64] | None = None,
        symbol_ids: NDArray[np.int64] | None = None,
        targets: NDArray[np.float32] | None = None,
    ) -> Self:
        """Return a part over a matrix of its own, one row a bar; missing columns are 0, 1, 2, ... and 0."""
        positions = np.arange(len(X), dtype=np.int64)
        return cls(
            matrix=np.ascontiguousarray(X, dtype=np.float32),
            rows=positions,
            y=y,
            times=positions if times is None else times,
            symbol_ids=np.zeros(len(X), dtype=np.int64) if symbol_ids is None else symbol_ids,
            targets=np.empty(0, dtype=np.float32) if targets is None else targets,
        )


def sliding_windows(matrix: NDArray[np.float32], window_bars: int) -> NDArray[np.float32]:
    """Return every run of `window_bars` rows of a C-contiguous matrix (R, F) as a read-only view (R - L + 1, L, F)."""
    num_rows, num_features = matrix.shape
    row_bytes, value_bytes = matrix.strides
    view: NDArray[np.float32] = np.lib.stride_tricks.as_strided(
        matrix,
        (max(num_rows - window_bars + 1, 0), window_bars, num_features),
        (row_bytes, row_bytes, value_bytes),
        writeable=False,
    )
    return view


@dataclass(frozen=True, slots=True)
class SeriesRows:
    """Where a symbol stands in the matrix: rows `start` to `stop` are its bars from `first_bar` on."""

    symbol: str
    start: int
    stop: int
    first_bar: int


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSplit:
    """The three parts and what is needed to make such rows again.

    Attributes:
        train, validation, test: The parts, in that order in time for each symbol; over one matrix.
        series: Where each symbol stands in the matrix.
        columns: Columns of the matrix.
        symbols: What `symbol_ids` point at.
        scaler: Fitted on the training rows only; the matrix has been through it.
        horizon_bars: Bars ahead that a label has seen; rows purged at each boundary.
        purged_rows: Labelled rows dropped at the boundaries by the purge.
        embargoed_rows: Labelled rows dropped by the embargo.
    """

    train: DatasetPart
    validation: DatasetPart
    test: DatasetPart
    series: tuple[SeriesRows, ...]
    columns: tuple[FeatureColumn, ...]
    symbols: tuple[str, ...]
    scaler: Scaler
    horizon_bars: int
    purged_rows: int
    embargoed_rows: int = 0

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)
