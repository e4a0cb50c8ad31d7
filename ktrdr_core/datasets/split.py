"""Splits the rows of each symbol in time, with a purge at each boundary and an embargo behind it.

A label of row t has seen bars up to its end. A row whose label reaches the next part is dropped (the purge), or the
model would be judged on what it was taught. The embargo leaves out the first bars of validation and of test on top of
that, for what the purge does not see: features there still look back at bars of the part before.

Precisely, for one symbol with N rows: validation begins at row round(N train), test at row round(N (train +
validation)). A row before such a row is kept only if its label's end is before that row's bar. A row of validation or
test is kept only if its bar is at least `embargo_bars` bars after the first bar of its part. The purge does not count
the embargo in: the two gaps add up.

Source: M. Lopez de Prado, Advances in Financial Machine Learning, 2018, section 7.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import DataSplitConfig
from ktrdr_core.data.bars import Bars, IntArray, day_of
from ktrdr_core.datasets.dataset import DatasetPart, DataSplit, SeriesRows
from ktrdr_core.datasets.rows import Rows
from ktrdr_core.errors import TooFewBarsError
from ktrdr_core.features.engineer import FeatureColumn
from ktrdr_core.features.scaler import Scaler, ScalerKind
from ktrdr_core.labels.labels import NO_LABEL, Labels

PART_NAMES = ("train", "validation", "test")
MIN_PART_ROWS = 10
# Symbols of one range differ by their gaps; beyond this share of the training rows people are told.
MAX_OVERLAP_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class PartRows:
    """Which rows of something each part has.

    Attributes:
        train, validation, test: Row numbers, int64, increasing.
        purged_rows: Rows dropped because their label reaches into another part.
        embargoed_rows: Rows dropped by the embargo alone.
    """

    train: IntArray
    validation: IntArray
    test: IntArray
    purged_rows: int
    embargoed_rows: int

    @property
    def parts(self) -> tuple[IntArray, IntArray, IntArray]:
        return self.train, self.validation, self.test


def part_bounds(num_rows: int, shares: DataSplitConfig) -> tuple[int, int]:
    """Return the first row of validation and of test for `num_rows` rows of one symbol."""
    return round(num_rows * shares.train), round(num_rows * (shares.train + shares.validation))


def split_series(bar_indices: IntArray, ends: IntArray, shares: DataSplitConfig) -> PartRows:
    """Return the parts of one symbol by the rule at the top of this module.

    Args:
        bar_indices: Bar of each row, shape (N,), increasing.
        ends: Last bar that each row's label has seen, shape (N,).
        shares: Shares of the parts, and the embargo.

    Returns:
        Row numbers in [0, N), disjoint.
    """
    num_rows = len(bar_indices)
    validation, test = part_bounds(num_rows, shares)
    is_purged = np.zeros(num_rows, dtype=np.bool_)
    is_embargoed = np.zeros(num_rows, dtype=np.bool_)
    for first in (validation, test):
        if first < num_rows:
            first_bar = bar_indices[first]
            is_purged[:first] |= ends[:first] >= first_bar
            is_embargoed[first:] |= bar_indices[first:] < first_bar + shares.embargo_bars
    is_kept = ~(is_purged | is_embargoed)
    train, validated, tested = (
        np.flatnonzero(is_kept[start:stop]) + start
        for start, stop in ((0, validation), (validation, test), (test, num_rows))
    )
    return PartRows(train, validated, tested, int(is_purged.sum()), int((is_embargoed & ~is_purged).sum()))


def check_part_sizes(num_bars: int, num_rows: int, shares: DataSplitConfig, horizon_bars: int, *, subject: str) -> None:
    """Refuse a series of which too little is left for one of the parts.

    Args:
        num_bars: Bars in the range.
        num_rows: Consecutive bars that have every feature, a window and a label; see `expected_rows`.
        shares: Shares of the parts, and the embargo.
        horizon_bars: Rows purged at each boundary, at most.
        subject: The series, for the message: "EURUSD 1h".

    Raises:
        TooFewBarsError: A part has fewer than MIN_PART_ROWS rows.
    """
    rows = np.arange(max(num_rows, 0), dtype=np.int64)
    require_rows(split_series(rows, rows + horizon_bars, shares), num_bars, shares.embargo_bars, horizon_bars, subject)


def require_rows(
    parts: PartRows, num_bars: int, embargo_bars: int, horizon_bars: int, subject: str, *, or_else: str = ""
) -> None:
    """Refuse a part of fewer than MIN_PART_ROWS rows; see `check_part_sizes`. `or_else` is one more way out."""
    sizes = [len(part) for part in parts.parts]
    if min(sizes) >= MIN_PART_ROWS:
        return
    shown = ", ".join(f"{name} {size}" for name, size in zip(PART_NAMES, sizes, strict=True))
    embargo, way_out = (f", an embargo of {embargo_bars} bars", " or embargo") if embargo_bars else ("", "")
    num_rows = sum(sizes) + parts.purged_rows + parts.embargoed_rows
    raise TooFewBarsError(
        f"{subject} has {num_bars} bars in this range, {num_rows} with every feature and a label; after a horizon of "
        f"{horizon_bars} bars{embargo} and the purge, {shown} rows are left, and each part needs {MIN_PART_ROWS}; take "
        f"a longer range or a shorter warm-up or horizon{way_out}{or_else}",
        field="spec.start_date",
        metadata={"num_bars": str(num_bars), "num_rows": str(sum(sizes))},
    )


def training_stop_bar(labels: Labels, *, warm_up_bars: int, window_bars: int, shares: DataSplitConfig) -> int:
    """Return the bar after the last one of the training part, known before there are features.

    What is fitted on the training part and then makes the features, such as quantile fuzzy sets, may use bars before
    this one. 0 if the training part is empty.

    Args:
        labels: Of one symbol.
        warm_up_bars: Its bars without complete features.
        window_bars: Bars that a row spans.
        shares: See `split_series`.
    """
    first_row = warm_up_bars + window_bars - 1
    bar_indices = np.flatnonzero(labels.y[first_row:] != NO_LABEL) + first_row
    train = split_series(bar_indices, labels.ends[bar_indices], shares).train
    return int(bar_indices[train[-1]]) + 1 if len(train) else 0


def split_rows(
    rows: Rows,
    *,
    columns: Sequence[FeatureColumn],
    shares: DataSplitConfig,
    scaling: ScalerKind = "standard",
) -> DataSplit:
    """Return the three parts, split within each symbol, scaled by what the training part shows.

    Args:
        rows: Rows of every symbol.
        columns: Columns of the matrix; those of the indicator "symbol" are not scaled.
        shares: Chronological shares, and the embargo.
        scaling: Kind of scaler; with "none" the parts share the matrix of `rows`, else one scaled copy of it.

    Raises:
        TooFewBarsError: A part of a symbol has fewer than MIN_PART_ROWS rows.
    """
    by_symbol = []
    for symbol_id, counts in enumerate(rows.counts):
        own = rows.slice_of(symbol_id)
        parts = split_series(rows.bar_indices[own], rows.ends[own], shares)
        require_rows(parts, counts.bars, shares.embargo_bars, rows.horizon_bars, counts.symbol)
        by_symbol.append(parts)
    return assemble_split(rows, by_symbol, columns=columns, scaling=scaling)


def whole_test_stretch(split: DataSplit, bars: Sequence[Bars]) -> DatasetPart:
    """Return every bar from the first to the last row of each symbol's test part, also those without a label.

    Whether a bar has a label may depend on bars to come, and a trader has to decide without. Where none is missing it
    is the test part itself; else `y` is NO_LABEL and there are no targets.

    Args:
        split: Of one or several symbols.
        bars: Base bars of each symbol.
    """
    test = split.test
    rows, times, symbol_ids = [], [], []
    for symbol_id, (placed, own_bars) in enumerate(zip(split.series, bars, strict=True)):
        own = test.rows[test.symbol_ids == symbol_id]
        run = np.arange(own[0], own[-1] + 1, dtype=np.int64)
        rows.append(run)
        times.append(own_bars.times[run - placed.start + placed.first_bar])
        symbol_ids.append(np.full(len(run), symbol_id, dtype=np.int64))
    if sum(map(len, rows)) == len(test):
        return test
    every = np.concatenate(rows)
    return replace(
        test,
        rows=every,
        y=np.full(len(every), NO_LABEL, dtype=np.int64),
        targets=np.empty(0, dtype=np.float32),
        times=np.concatenate(times),
        symbol_ids=np.concatenate(symbol_ids),
    )


def overlap_warning(split: DataSplit) -> str | None:
    """Return what people should know where symbols of unlike ranges are split at unlike times; None if nothing.

    Parts are chronological within a symbol alone. Where one symbol is still trained on while another is tested, and
    both move together, the model has seen some of what it is judged by.

    Args:
        split: Of one or several symbols.
    """
    train, test = split.train, split.test
    worst, num_worst = 0, 0
    for symbol_id in range(len(split.symbols)):
        tested = test.times[test.symbol_ids == symbol_id]
        is_meanwhile = (train.symbol_ids != symbol_id) & (train.times >= tested.min()) & (train.times <= tested.max())
        num_meanwhile = int(np.count_nonzero(is_meanwhile))
        if num_meanwhile > num_worst:
            worst, num_worst = symbol_id, num_meanwhile
    if num_worst <= MAX_OVERLAP_SHARE * len(train):
        return None
    tested = test.times[test.symbol_ids == worst]
    return (
        f"{100 * num_worst / len(train):.1f} % of the training rows are other symbols' from the time of the test "
        f"part of {split.symbols[worst]} ({day_of(int(tested.min()))} to {day_of(int(tested.max()))}); if they move "
        "together its test flatters the model, so take a range that all symbols have"
    )


def assemble_split(
    rows: Rows,
    by_symbol: Sequence[PartRows],
    *,
    columns: Sequence[FeatureColumn],
    scaling: ScalerKind,
    is_trimmed: bool = False,
) -> DataSplit:
    """Return the split whose parts have the given rows of each symbol.

    Args:
        rows: Rows of every symbol.
        by_symbol: Row numbers within each symbol's rows.
        columns: See `split_rows`.
        scaling: See `split_rows`.
        is_trimmed: Leave out of the scaled matrix, at both ends of each symbol, the bars that no part has a window on.
    """
    starts = [rows.slice_of(symbol_id).start for symbol_id in range(len(rows.symbols))]
    train, validation, test = (
        np.concatenate([part + start for part, start in zip(own, starts, strict=True)])
        for own in zip(*(parts.parts for parts in by_symbol), strict=True)
    )
    identity = [index for index, column in enumerate(columns) if column.indicator == "symbol"]
    scaler = Scaler.fit(rows.matrix, scaling, rows=rows.positions[train], identity=identity)
    if scaling == "none":
        matrix, series = rows.matrix, rows.series
    else:
        series = _extents(rows, np.concatenate((train, validation, test))) if is_trimmed else rows.series
        matrix, series = _scaled(rows, series, scaler)
    shifts = np.array(
        [
            (new.start - new.first_bar) - (old.start - old.first_bar)
            for new, old in zip(series, rows.series, strict=True)
        ]
    )

    def part(own: IntArray) -> DatasetPart:
        symbol_ids = rows.symbol_ids[own]
        return DatasetPart(
            matrix=matrix,
            rows=rows.positions[own] + shifts[symbol_ids],
            y=rows.y[own],
            targets=rows.targets[own] if len(rows.targets) else rows.targets,
            times=rows.times[own],
            symbol_ids=symbol_ids,
            window_bars=rows.window_bars,
        )

    return DataSplit(
        train=part(train),
        validation=part(validation),
        test=part(test),
        series=series,
        columns=tuple(columns),
        symbols=rows.symbols,
        scaler=scaler,
        horizon_bars=rows.horizon_bars,
        purged_rows=sum(parts.purged_rows for parts in by_symbol),
        embargoed_rows=sum(parts.embargoed_rows for parts in by_symbol),
    )


def _extents(rows: Rows, used: IntArray) -> tuple[SeriesRows, ...]:
    """Return, for each symbol, the run of `rows.series` that holds the windows of the rows used."""
    extents = []
    for symbol_id, placed in enumerate(rows.series):
        positions = rows.positions[used[rows.symbol_ids[used] == symbol_id]]
        start, stop = int(positions.min()) - rows.window_bars + 1, int(positions.max()) + 1
        extents.append(SeriesRows(placed.symbol, start, stop, placed.first_bar + start - placed.start))
    return tuple(extents)


def _scaled(
    rows: Rows, extents: Sequence[SeriesRows], scaler: Scaler
) -> tuple[NDArray[np.float32], tuple[SeriesRows, ...]]:
    """Return the scaled matrix of the extents, which are places in `rows.matrix`, and where each stands in it."""
    matrix = np.empty((sum(own.stop - own.start for own in extents), rows.matrix.shape[1]), dtype=np.float32)
    series, start = [], 0
    for own in extents:
        placed = SeriesRows(own.symbol, start, start + own.stop - own.start, own.first_bar)
        scaler.transform(rows.matrix[own.start : own.stop], out=matrix[placed.start : placed.stop])
        series.append(placed)
        start = placed.stop
    return matrix, tuple(series)
