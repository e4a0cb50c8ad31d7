"""Splits rows in time, with a purge at each boundary (M. Lopez de Prado, Advances in Financial Machine Learning, 2018).

A label of row t has seen bars up to t + horizon. A row whose label reaches into the next part is dropped, or the
model would be judged on what it was taught.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ktrdr_core.config.strategy import DataSplitConfig
from ktrdr_core.data.bars import IntArray
from ktrdr_core.datasets.dataset import DatasetPart, DataSplit
from ktrdr_core.datasets.rows import Rows
from ktrdr_core.errors import TooFewBarsError
from ktrdr_core.features.scaler import Scaler, ScalerKind

PART_NAMES = ("train", "validation", "test")
MIN_PART_ROWS = 10


def part_bounds(num_rows: int, shares: DataSplitConfig) -> tuple[int, int]:
    """Return the first row of validation and of test for `num_rows` rows of one symbol."""
    return round(num_rows * shares.train), round(num_rows * (shares.train + shares.validation))


def split_indices(bar_indices: IntArray, shares: DataSplitConfig, horizon_bars: int) -> tuple[IntArray, ...]:
    """Return the positions of the train, validation and test rows of one symbol.

    Args:
        bar_indices: Bar of each row, shape (N,), increasing.
        shares: Shares of the parts.
        horizon_bars: A row is purged if its bar + `horizon_bars` is not before the first bar of the next part.

    Returns:
        Three arrays of positions in [0, N), increasing, disjoint.
    """
    bounds = (0, *part_bounds(len(bar_indices), shares), len(bar_indices))
    parts = []
    for start, stop in itertools.pairwise(bounds):
        positions = np.arange(start, stop, dtype=np.int64)
        if stop < len(bar_indices):
            positions = positions[bar_indices[start:stop] + horizon_bars < bar_indices[stop]]
        parts.append(positions)
    return tuple(parts)


def check_part_sizes(num_bars: int, num_rows: int, shares: DataSplitConfig, horizon_bars: int, *, subject: str) -> None:
    """Refuse a series of which too little is left for one of the parts.

    Args:
        num_bars: Bars in the range.
        num_rows: Consecutive bars that have every feature and a label.
        shares: Shares of the parts.
        horizon_bars: Rows purged at each boundary.
        subject: The series, for the message: "EURUSD 1h".

    Raises:
        TooFewBarsError: A part has fewer than MIN_PART_ROWS rows.
    """
    parts = split_indices(np.arange(max(num_rows, 0), dtype=np.int64), shares, horizon_bars)
    sizes = [len(part) for part in parts]
    if min(sizes) < MIN_PART_ROWS:
        shown = ", ".join(f"{name} {size}" for name, size in zip(PART_NAMES, sizes, strict=True))
        raise TooFewBarsError(
            f"{subject} has {num_bars} bars in this range; after warm-up, a horizon of {horizon_bars} bars and the "
            f"purge, {shown} rows are left, and each part needs {MIN_PART_ROWS}; take a longer range or a shorter "
            "horizon",
            field="spec.start_date",
            metadata={"num_bars": str(num_bars), "num_rows": str(max(num_rows, 0))},
        )


def split_rows(
    rows: Rows,
    *,
    symbols: Sequence[str],
    feature_names: Sequence[str],
    shares: DataSplitConfig,
    horizon_bars: int,
    scaler_kind: ScalerKind = "standard",
    warnings: Sequence[str] = (),
) -> DataSplit:
    """Return the three parts, split within each symbol, scaled by what the training part shows.

    Args:
        rows: Rows of every symbol, see `combine_rows`.
        symbols: What `rows.symbol_ids` point at.
        feature_names: Names of the columns of `rows.X`.
        shares: Chronological shares.
        horizon_bars: See `split_indices`.
        scaler_kind: "standard" or "none".
        warnings: Carried into the result.

    Raises:
        TooFewBarsError: A part of a symbol has fewer than MIN_PART_ROWS rows.
    """
    positions: list[list[IntArray]] = [[], [], []]
    for symbol_id, symbol in enumerate(symbols):
        own = np.flatnonzero(rows.symbol_ids == symbol_id)
        parts = split_indices(rows.bar_indices[own], shares, horizon_bars)
        if min(len(part) for part in parts) < MIN_PART_ROWS:
            check_part_sizes(len(own), len(own), shares, horizon_bars, subject=symbol)
        for collected, part in zip(positions, parts, strict=True):
            collected.append(own[part])
    chosen = [np.concatenate(parts) for parts in positions]
    scaler = Scaler.fit(rows.X[chosen[0]], scaler_kind)
    train, validation, test = (
        DatasetPart(
            X=scaler.transform(rows.X[part]), y=rows.y[part], times=rows.times[part], symbol_ids=rows.symbol_ids[part]
        )
        for part in chosen
    )
    return DataSplit(
        train=train,
        validation=validation,
        test=test,
        feature_names=tuple(feature_names),
        symbols=tuple(symbols),
        scaler=scaler,
        horizon_bars=horizon_bars,
        purged_rows=len(rows) - sum(len(part) for part in chosen),
        warnings=tuple(warnings),
    )
