"""Pairs features with labels. The one place where rows are dropped for want of either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars, IntArray, time_text
from ktrdr_core.datasets.dataset import SeriesRows
from ktrdr_core.errors import InvalidInputError, TrainingError
from ktrdr_core.features.engineer import FeatureMatrix
from ktrdr_core.labels.labels import NO_LABEL, Labels
from ktrdr_core.labels.registry import label_horizon, label_warm_up_bars

ValueT = TypeVar("ValueT", np.int64, np.float32)


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What became of the bars of a symbol; the last four sum to the first.

    Attributes:
        symbol: The symbol.
        bars: Its bars.
        warm_up_bars: Dropped because a feature was not known yet.
        window_bars: Dropped because a window that ends there would reach into the warm-up.
        unlabelled_bars: Dropped because they have no label: the horizon is not complete, or the source gives none.
        rows: Kept.
    """

    symbol: str
    bars: int
    warm_up_bars: int
    window_bars: int
    unlabelled_bars: int
    rows: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Every bar with complete features, not scaled, and the rows: those of them that have a window and a label.

    Symbols stand one after another, each in time order, in the matrix as among the rows.

    Attributes:
        matrix: Features, shape (R, F), float32, C-contiguous, finite; with one symbol a view of its features.
        positions: Place of each row's bar in `matrix`, shape (N,), int64, increasing.
        bar_indices: Index of each row's bar in its own series, shape (N,), int64.
        ends: Index, in that series, of the last bar that the row's label has seen, shape (N,), int64.
        y: SignalClass, shape (N,), int64.
        targets: Forward return, shape (N,), float32; empty if the labels have none.
        times: Open time of each row's bar, ns since 1970 UTC, shape (N,), int64.
        symbol_ids: Index of each row's symbol in `symbols`, shape (N,), int64.
        symbols: The symbols.
        series: Where each symbol stands in the matrix.
        counts: What became of each symbol's bars.
        horizon_bars: Most bars ahead that a label may see.
        window_bars: Bars that a row spans.
    """

    matrix: NDArray[np.float32]
    positions: IntArray
    bar_indices: IntArray
    ends: IntArray
    y: IntArray
    targets: NDArray[np.float32]
    times: IntArray
    symbol_ids: IntArray
    symbols: tuple[str, ...]
    series: tuple[SeriesRows, ...]
    counts: tuple[RowCounts, ...]
    horizon_bars: int
    window_bars: int

    def __len__(self) -> int:
        return len(self.positions)

    def slice_of(self, symbol_id: int) -> slice:
        """Return which rows are those of a symbol."""
        start, stop = np.searchsorted(self.symbol_ids, [symbol_id, symbol_id + 1])
        return slice(int(start), int(stop))


def build_rows(
    features: Sequence[FeatureMatrix],
    labels: Sequence[Labels],
    bars: Sequence[Bars],
    *,
    symbols: Sequence[str],
    window_bars: int = 1,
) -> Rows:
    """Return the rows of every symbol; entry i of each sequence is that of `symbols[i]`.

    Args:
        features: Unscaled features, warm-up rows first. They are not copied if there is one symbol.
        labels: Labels of the same bars.
        bars: Bars of the base timeframe.
        symbols: Names, which the bars must have too.
        window_bars: L: a row is a bar whose L - 1 bars before it have complete features too.

    Raises:
        InvalidInputError: The sequences, or features, labels and bars of a symbol, do not belong together.
        TrainingError: A feature after the warm-up is not finite; it is named.
    """
    _check_pairs(features, labels, bars, symbols)
    matrix = _join([own.X[own.warm_up_bars :] for own in features])
    series, counts, own_bars, own_positions = [], [], [], []
    start = 0
    for symbol, own_features, own_labels in zip(symbols, features, labels, strict=True):
        num_bars, first_bar = len(own_features.X), own_features.warm_up_bars
        placed = SeriesRows(symbol, start, start + num_bars - first_bar, first_bar)
        first_row = min(first_bar + window_bars - 1, num_bars)
        kept = np.flatnonzero(own_labels.y[first_row:] != NO_LABEL) + first_row
        counts.append(
            RowCounts(
                symbol=symbol,
                bars=num_bars,
                warm_up_bars=first_bar,
                window_bars=first_row - first_bar,
                unlabelled_bars=num_bars - first_row - len(kept),
                rows=len(kept),
            )
        )
        own_bars.append(kept)
        own_positions.append(kept + (placed.start - first_bar))
        series.append(placed)
        start = placed.stop
    _check_finite(matrix, features[0].names, series, bars)
    return Rows(
        matrix=matrix,
        positions=np.concatenate(own_positions),
        bar_indices=np.concatenate(own_bars),
        ends=_gather([own.ends for own in labels], own_bars),
        y=_gather([own.y for own in labels], own_bars),
        targets=_targets(labels, own_bars),
        times=_gather([own.times for own in bars], own_bars),
        symbol_ids=np.repeat(np.arange(len(symbols), dtype=np.int64), [len(kept) for kept in own_bars]),
        symbols=tuple(symbols),
        series=tuple(series),
        counts=tuple(counts),
        horizon_bars=max(own.horizon_bars for own in labels),
        window_bars=window_bars,
    )


def expected_rows(num_bars: int, *, warm_up_bars: int, window_bars: int, labels: LabelsConfig) -> int:
    """Return the rows that a series of `num_bars` bars gives at most, known before anything is computed.

    Args:
        num_bars: Bars of the base timeframe.
        warm_up_bars: Those without complete features.
        window_bars: Bars that a row spans.
        labels: Their horizon and their own warm-up are not rows either.
    """
    first_row = max(warm_up_bars + window_bars - 1, label_warm_up_bars(labels))
    return max(num_bars - first_row - label_horizon(labels), 0)


def _join(matrices: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the matrices one below the other; a single one is not copied."""
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices)


def _gather(arrays: Sequence[NDArray[ValueT]], chosen: Sequence[IntArray]) -> NDArray[ValueT]:
    return np.concatenate([own[rows] for own, rows in zip(arrays, chosen, strict=True)])


def _targets(labels: Sequence[Labels], chosen: Sequence[IntArray]) -> NDArray[np.float32]:
    arrays = [own.targets for own in labels if own.targets is not None]
    return _gather(arrays, chosen) if arrays else np.empty(0, dtype=np.float32)


def _check_pairs(
    features: Sequence[FeatureMatrix], labels: Sequence[Labels], bars: Sequence[Bars], symbols: Sequence[str]
) -> None:
    if not len(features) == len(labels) == len(bars) == len(symbols) > 0:
        raise InvalidInputError(
            "each symbol needs its features, labels and bars; there are "
            f"{len(symbols)}, {len(features)}, {len(labels)} and {len(bars)}",
            field="symbols",
        )
    for symbol, own_features, own_labels, own_bars in zip(symbols, features, labels, bars, strict=True):
        if own_bars.symbol != symbol:
            raise InvalidInputError(f"the bars of {symbol} are those of {own_bars.symbol}; pair them", field="bars")
        if not len(own_features.X) == len(own_labels) == len(own_bars):
            raise InvalidInputError(
                f"features, labels and bars of {symbol} must be of one length, were "
                f"{len(own_features.X)}, {len(own_labels)}, {len(own_bars)}",
                field="features",
            )
        if own_features.columns != features[0].columns:
            raise InvalidInputError(
                f"features of {symbol} are {', '.join(own_features.names)}, those of {symbols[0]} "
                f"{', '.join(features[0].names)}; each symbol needs the same ones",
                field="features",
            )
    if len({own.targets is None for own in labels}) > 1:
        raise InvalidInputError("labels of some symbols have targets and others none; use one source", field="labels")


def _check_finite(
    matrix: NDArray[np.float32], names: Sequence[str], series: Sequence[SeriesRows], bars: Sequence[Bars]
) -> None:
    """Refuse a NaN or an infinity; minimum and maximum propagate them, without a mask as large as the matrix."""
    if matrix.size == 0 or (np.isfinite(matrix.min()) and np.isfinite(matrix.max())):
        return
    row = int(np.argmax([not np.isfinite(values).all() for values in matrix]))
    column = int(np.argmax(~np.isfinite(matrix[row])))
    placed, own_bars = next(pair for pair in zip(series, bars, strict=True) if pair[0].start <= row < pair[0].stop)
    time_ns = int(own_bars.times[row - placed.start + placed.first_bar])
    raise TrainingError(
        f"feature {names[column]} of {placed.symbol} is {matrix[row, column]} at {time_text(time_ns)}, after its "
        "warm-up; an indicator must be finite there",
        metadata={"feature": names[column], "symbol": placed.symbol},
    )
