"""Rows for tests of splits, made without indicators: their spans end anywhere, their symbols can be told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ktrdr_core.data.bars import Bars
from ktrdr_core.datasets.rows import Rows, build_rows
from ktrdr_core.features.engineer import FeatureColumn, FeatureMatrix
from ktrdr_core.labels.labels import NO_END, NO_LABEL, Labels
from tests.kit.builders import make_bars


def column(name: str, indicator: str | None = None) -> FeatureColumn:
    return FeatureColumn(name=name, indicator=indicator or name, timeframe="1h")


def planted_features(num_bars: int, symbol_id: int, *, warm_up_bars: int = 5, num_random: int = 1) -> FeatureMatrix:
    """Return columns that say whose they are: the symbol's index, the bar's index, then random numbers."""
    rng = np.random.default_rng(symbol_id)
    X = np.empty((num_bars, 2 + num_random), dtype=np.float32)
    X[:, 0], X[:, 1] = symbol_id, np.arange(num_bars)
    X[:, 2:] = rng.normal(symbol_id, 1 + symbol_id, (num_bars, num_random))
    X[:warm_up_bars] = np.nan
    columns = (column("symbol.id", "symbol"), column("bar"), *(column(f"random_{i}") for i in range(num_random)))
    return FeatureMatrix(X, columns, min(warm_up_bars, num_bars))


def planted_labels(num_bars: int, symbol_id: int, *, horizon_bars: int = 10, gap_share: float = 0.1) -> Labels:
    """Return labels that end 1 to `horizon_bars` bars ahead, with gaps; `targets` say symbol and bar."""
    rng = np.random.default_rng(100 + symbol_id)
    bars = np.arange(num_bars)
    has_label = (bars + horizon_bars < num_bars) & (rng.random(num_bars) >= gap_share)
    ends = np.where(has_label, bars + rng.integers(1, horizon_bars + 1, num_bars), NO_END)
    y = np.where(has_label, rng.integers(0, 3, num_bars), NO_LABEL)
    targets = np.where(has_label, symbol_id * 10_000 + bars, np.nan).astype(np.float32)
    return Labels(y, ends, horizon_bars, targets)


def planted_series(
    lengths: Sequence[int], *, horizon_bars: int = 10, gap_share: float = 0.1, warm_up_bars: int = 5
) -> tuple[list[FeatureMatrix], list[Labels], list[Bars]]:
    """Return features, labels and bars of symbols S0, S1, ... of these numbers of bars."""
    ids = range(len(lengths))
    return (
        [planted_features(n, i, warm_up_bars=warm_up_bars + i) for i, n in zip(ids, lengths, strict=True)],
        [
            planted_labels(n, i, horizon_bars=horizon_bars, gap_share=gap_share)
            for i, n in zip(ids, lengths, strict=True)
        ],
        [make_bars(n, i, symbol=f"S{i}") for i, n in zip(ids, lengths, strict=True)],
    )


def planted_rows(
    lengths: Sequence[int], *, horizon_bars: int = 10, gap_share: float = 0.1, window_bars: int = 1
) -> tuple[Rows, list[Labels]]:
    """Return the rows of `planted_series`, and its labels."""
    features, labels, bars = planted_series(lengths, horizon_bars=horizon_bars, gap_share=gap_share)
    symbols = [own.symbol for own in bars]
    return build_rows(features, labels, bars, symbols=symbols, window_bars=window_bars), labels


COLUMNS = planted_features(1, 0).columns
