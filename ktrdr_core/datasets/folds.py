"""Folds: further splits of the rows before the test part, by which a strategy is judged again and again.

Rows of a symbol take part if they stand before its test part and their labels do too. They are cut into stretches of
equal numbers of rows, and each fold judges one of them:

- `walk_forward` with K folds cuts K + 1 stretches. Fold k judges stretch k + 1 and trains on all before it
  (`expanding`), or on as many rows right before it as the first stretch has (`rolling`).
- `purged_k_fold` cuts K stretches. Fold k judges stretch k and trains on all others, on both sides.
- `repeated_seeds` is the main split itself, K times.

Of the rows to train on, those before the judged stretch are purged if their label reaches its first bar; those after it
if a label of the stretch has seen their bar, and they are embargoed for another `embargo_bars` bars of the validation
section. The chronologically last of what is left, in the proportion of the main split's validation to training part,
become the fold's own validation part; training rows whose label reaches its first bar are purged. The main split's own
`embargo_bars` hold here too: that many bars are left out at the start of a fold's validation part, and of a judged
stretch that has rows to train on before it.

Stretches are cut per symbol, as the parts of the main split are; symbols with unlike ranges are judged at unlike times.

Source: M. Lopez de Prado, Advances in Financial Machine Learning, 2018, sections 7.4 (purged k-fold) and 12.2 (walk
forward).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ktrdr_core.config.strategy import DataSplitConfig, ValidationConfig
from ktrdr_core.data.bars import IntArray
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.datasets.rows import Rows
from ktrdr_core.datasets.split import PartRows, assemble_split, part_bounds, require_rows, split_rows, split_series
from ktrdr_core.features.engineer import FeatureColumn
from ktrdr_core.features.scaler import ScalerKind


def build_folds(
    rows: Rows,
    *,
    columns: Sequence[FeatureColumn],
    shares: DataSplitConfig,
    validation: ValidationConfig,
    scaling: ScalerKind = "standard",
    main: DataSplit | None = None,
) -> tuple[DataSplit, ...]:
    """Return the folds, in the order of the stretches they judge; `.test` is the judged stretch.

    Args:
        rows: Rows of every symbol.
        columns: See `split_rows`.
        shares: Of the main split.
        validation: Method and number of folds.
        scaling: Kind of scaler; each fold has its own, fitted on its own training rows. Unless it is "none", each has a
            scaled copy of the bars that it uses.
        main: The main split, for `repeated_seeds`; None makes it.

    Raises:
        TooFewBarsError: A part of a fold has too few rows of a symbol; fold and symbol are named.
    """
    if validation.method == "repeated_seeds":
        split = main or split_rows(rows, columns=columns, shares=shares, scaling=scaling)
        return (split,) * validation.folds
    return tuple(
        assemble_split(rows, planned, columns=columns, scaling=scaling, is_trimmed=True)
        for planned in _planned(rows, shares, validation)
    )


def build_fold(
    rows: Rows,
    index: int,
    *,
    columns: Sequence[FeatureColumn],
    shares: DataSplitConfig,
    validation: ValidationConfig,
    scaling: ScalerKind = "standard",
) -> DataSplit:
    """Return entry `index` of `build_folds` alone, for rows that are made anew for each stretch."""
    planned = next(itertools.islice(_planned(rows, shares, validation), index, None))
    return assemble_split(rows, planned, columns=columns, scaling=scaling, is_trimmed=True)


def _planned(rows: Rows, shares: DataSplitConfig, validation: ValidationConfig) -> Iterator[tuple[PartRows, ...]]:
    """Yield the parts of each symbol, fold by fold; a fold without enough rows is refused when it is its turn."""
    slices = [rows.slice_of(symbol_id) for symbol_id in range(len(rows.symbols))]
    by_symbol = [plan_folds(rows.bar_indices[own], rows.ends[own], shares, validation) for own in slices]
    for number, planned in enumerate(zip(*by_symbol, strict=True), start=1):
        for parts, counts in zip(planned, rows.counts, strict=True):
            _require_fold(number, parts, counts.bars, shares, validation, rows.horizon_bars, counts.symbol)
        yield planned


def check_fold_sizes(
    num_bars: int,
    num_rows: int,
    shares: DataSplitConfig,
    validation: ValidationConfig,
    horizon_bars: int,
    *,
    subject: str,
) -> None:
    """Refuse a series of which too little is left for a part of a fold; see `check_part_sizes` for the arguments.

    Raises:
        TooFewBarsError: A part of a fold has too few rows; the fold is named.
    """
    rows = np.arange(max(num_rows, 0), dtype=np.int64)
    for number, parts in enumerate(plan_folds(rows, rows + horizon_bars, shares, validation), start=1):
        _require_fold(number, parts, num_bars, shares, validation, horizon_bars, subject)


def plan_folds(
    bar_indices: IntArray, ends: IntArray, shares: DataSplitConfig, validation: ValidationConfig
) -> Iterator[PartRows]:
    """Yield the parts of each fold of one symbol by the rules at the top of this module.

    Args:
        bar_indices: Bar of each row, shape (N,), increasing.
        ends: Last bar that each row's label has seen, shape (N,).
        shares: Of the main split.
        validation: Method and number of folds.

    Yields:
        Row numbers in [0, N). Of the rows that a fold could have used, it counts those it purged and embargoed.
    """
    if validation.method == "repeated_seeds":
        yield from itertools.repeat(split_series(bar_indices, ends, shares), validation.folds)
        return
    _, test = part_bounds(len(bar_indices), shares)
    used = np.arange(test)
    if test < len(bar_indices):
        used = used[ends[:test] < bar_indices[test]]
    is_walk = validation.method == "walk_forward"
    num_stretches = validation.folds + 1 if is_walk else validation.folds
    bounds = [round(len(used) * index / num_stretches) for index in range(num_stretches + 1)]
    for start, stop in list(itertools.pairwise(bounds))[-validation.folds :]:
        before, judged, after = used[:start], used[start:stop], used[stop:]
        if is_walk:
            after = after[:0]
            if validation.window == "rolling":
                before = before[start - bounds[1] :]
        yield _plan_fold(before, judged, after, bar_indices, ends, shares, validation.embargo_bars)


def _plan_fold(
    before: IntArray,
    judged: IntArray,
    after: IntArray,
    bar_indices: IntArray,
    ends: IntArray,
    shares: DataSplitConfig,
    embargo_bars: int,
) -> PartRows:
    """Return the parts of the fold that judges the rows `judged`."""
    num_rows = len(before) + len(judged) + len(after)
    num_embargoed = 0
    if len(judged) and len(before):
        first_bar = bar_indices[judged[0]]
        before = before[ends[before] < first_bar]
        judged, num_embargoed = _after_embargo(judged, bar_indices, first_bar + shares.embargo_bars)
    if len(judged):
        last_seen = ends[judged].max()
        after = after[bar_indices[after] > last_seen]
        after, num_left_out = _after_embargo(after, bar_indices, last_seen + 1 + embargo_bars)
        num_embargoed += num_left_out
    pool = np.concatenate((before, after))
    first = len(pool) - round(len(pool) * shares.validation / (shares.train + shares.validation))
    train, validated = pool[:first], pool[first:]
    if len(validated):
        first_bar = bar_indices[validated[0]]
        train = train[ends[train] < first_bar]
        validated, num_left_out = _after_embargo(validated, bar_indices, first_bar + shares.embargo_bars)
        num_embargoed += num_left_out
    num_purged = num_rows - len(train) - len(validated) - len(judged) - num_embargoed
    return PartRows(train, validated, judged, num_purged, num_embargoed)


def _after_embargo(rows: IntArray, bar_indices: IntArray, first_bar: int) -> tuple[IntArray, int]:
    """Return the rows from `first_bar` on, and the number of those before."""
    num_before = int(np.searchsorted(bar_indices[rows], first_bar))
    return rows[num_before:], num_before


def _require_fold(
    number: int,
    parts: PartRows,
    num_bars: int,
    shares: DataSplitConfig,
    validation: ValidationConfig,
    horizon_bars: int,
    subject: str,
) -> None:
    embargo_bars = max(shares.embargo_bars, validation.embargo_bars)
    name = f"fold {number} of {validation.folds} ({validation.method}): {subject}"
    require_rows(parts, num_bars, embargo_bars, horizon_bars, name, or_else=", or fewer folds")
