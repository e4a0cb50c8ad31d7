"""Turns indicator values and bars into the rows a model sees.

The matrix is allocated once, in float32, at its full width; every step writes its columns in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.alignment import last_closed
from ktrdr_core.data.bars import Bars, FloatArray, IntArray, time_text
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.errors import InvalidIndicatorError, InvalidInputError
from ktrdr_core.features.layout import FeatureColumn, FeatureLayout, build_layout
from ktrdr_core.features.price_context import PRICE_CONTEXT_WARM_UP_BARS, price_context
from ktrdr_core.fuzzy.memberships import write_memberships

__all__ = ["FeatureColumn", "FeatureMatrix", "Memberships", "build_features", "build_memberships", "leading_nan"]

SymbolValues = Mapping[str, Mapping[str, FloatArray]]
"""Indicator values of one symbol, by timeframe and name, each with one value per bar of its timeframe."""

# Rows of a block: a few hundred float32 columns of it stay in the cache.
BLOCK_ROWS = 2_048
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class FeatureMatrix:
    """Features of each bar, not scaled.

    Attributes:
        X: Shape (T, F), float32, C-contiguous; each of the first `warm_up_bars` rows has a NaN, and no other row.
        columns: What each column is, F of them.
        warm_up_bars: Rows at the start that are not complete.
    """

    X: NDArray[np.float32]
    columns: tuple[FeatureColumn, ...]
    warm_up_bars: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True, eq=False)
class Memberships:
    """A feature matrix of which only the memberships of the current bar are written.

    Attributes:
        layout: The columns.
        X: Shape (T, F), float32; memberships in the first `layout.num_memberships` columns, aligned to the base bars,
            NaN where there is none yet. The other columns are not set: `build_features` writes them into this array.
        sources: For each timeframe, which of its bars each base bar sees, see `last_closed`; None for the base one.
        warm_up_bars: Rows at the start of which a membership is NaN.
    """

    layout: FeatureLayout
    X: NDArray[np.float32]
    sources: dict[str, IntArray | None]
    warm_up_bars: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the memberships of the current bar."""
        return tuple(column.name for column in self.layout.columns[: self.layout.num_memberships])


def build_memberships(values: SymbolValues, bars: SymbolBars, strategy: StrategyConfig) -> Memberships:
    """Return the memberships of every fuzzy set, aligned to the base bars.

    Args:
        values: Indicator values on each timeframe, NaN in a leading warm-up only.
        bars: What they were computed from; T base bars.
        strategy: Its `quantile` sets are fitted.

    Returns:
        Memberships; row t depends on bars closed by the close of base bar t.

    Raises:
        InvalidIndicatorError: Values are NaN or infinite after their warm-up.
        InvalidStrategyError: A `quantile` set is not fitted.
    """
    layout = build_layout(strategy)
    X = np.empty((len(bars), len(layout.columns)), dtype=np.float32)
    sources: dict[str, IntArray | None] = {}
    start, warm_up_bars = 0, 0
    for timeframe, sets in layout.sets.items():
        stop = start + len(sets)
        own = bars.at(timeframe)
        source_T = None if own is bars.base else last_closed(bars.base, own)
        sources[timeframe] = source_T
        first = max((leading_nan(values[timeframe][name], name, own) for name in {n.values for n in sets}), default=0)
        if sets:
            warm_up_bars = max(warm_up_bars, _first_row(first, source_T, len(bars)))
            out = X[:, start:stop] if source_T is None else np.empty((len(own), len(sets)), dtype=np.float32)
            write_memberships([(values[timeframe][named.values], named.config) for named in sets], out)
            if source_T is not None:
                _write_aligned(out, source_T, X[:, start:stop])
        start = stop
    return Memberships(layout, X, sources, warm_up_bars)


def build_features(memberships: Memberships, values: SymbolValues, bars: SymbolBars) -> FeatureMatrix:
    """Complete the matrix that `build_memberships` began, in place.

    Args:
        memberships: Of these values and bars; used up, for the matrix is its array.
        values: Indicator values, for the raw columns.
        bars: T base bars, for the price context, and their symbol.

    Returns:
        The matrix; row t depends on bars closed by the close of base bar t. Lags are taken of the aligned memberships,
        so lag k is what the base bar k before saw.

    Raises:
        InvalidInputError: The model has symbol identities, and the symbol is none of them.
    """
    layout, X = memberships.layout, memberships.X
    _check_symbol(bars.symbol, layout.symbols)
    _write_lags(X, layout.num_memberships, layout.num_lags)
    raw = []
    for timeframe, name in layout.raw:
        source_T = memberships.sources[timeframe]
        own = values[timeframe][name]
        raw.append(own if source_T is None else _aligned(own, source_T))
    _write_columns(raw, X[:, layout.first_raw : layout.first_context])
    context = list(price_context(bars.base).values()) if layout.has_price_context else []
    _write_columns(context, X[:, layout.first_context : layout.first_symbol])
    for column, symbol in enumerate(layout.symbols, start=layout.first_symbol):
        X[:, column] = symbol == bars.symbol
    warm_up_bars = memberships.warm_up_bars + layout.num_lags
    if context:
        warm_up_bars = max(warm_up_bars, PRICE_CONTEXT_WARM_UP_BARS)
    return FeatureMatrix(X, layout.columns, min(warm_up_bars, len(X)))


def leading_nan(values: FloatArray, name: str, bars: Bars) -> int:
    """Return how many values at the start are NaN: the warm-up, the length of the series if there is nothing else.

    Raises:
        InvalidIndicatorError: A value is NaN after the warm-up, or infinite, or beyond float32.
    """
    if len(values) != len(bars):
        raise InvalidInputError(f"{name} has {len(values)} values for {len(bars)} bars; give one a bar", field=name)
    is_usable = np.abs(values) <= _LARGEST  # false for NaN too
    first = int(np.argmax(is_usable)) if is_usable.any() else len(values)
    is_broken = ~is_usable
    is_broken[:first] = ~np.isnan(values[:first])
    if is_broken.any():
        bar = int(np.argmax(is_broken))
        raise InvalidIndicatorError(
            f"{name} of {bars.symbol} {bars.timeframe} is {values[bar]:g} at bar {bar} "
            f"({time_text(int(bars.times[bar]))}), after its warm-up of {min(first, bar)} bars; its formula has no "
            "value there, so change its parameters or leave it out",
            field=name,
            metadata={"feature": name, "bar": str(bar)},
        )
    return first


def _check_symbol(symbol: str, symbols: Sequence[str]) -> None:
    if symbols and symbol not in symbols:
        raise InvalidInputError(
            f"symbol {symbol} is none of those this model knows by an identity ({', '.join(symbols)}); use one of "
            "them, or train without symbol_embedding_dim",
            field="symbol",
        )


def _first_row(first: int, source_T: IntArray | None, num_rows: int) -> int:
    """Return the first base row that sees bar `first` of a timeframe."""
    if source_T is None:
        return min(first, num_rows)
    return int(np.searchsorted(source_T, first))


def _aligned(values: FloatArray, source_T: IntArray) -> FloatArray:
    aligned_T = np.full(len(source_T), np.nan)
    first = int(np.searchsorted(source_T, 0))
    aligned_T[first:] = values[source_T[first:]]
    return aligned_T


def _write_aligned(values: NDArray[np.float32], source_T: IntArray, out: NDArray[np.float32]) -> None:
    first = int(np.searchsorted(source_T, 0))
    out[:first] = np.nan
    for start in range(first, len(out), BLOCK_ROWS):
        out[start : start + BLOCK_ROWS] = values[source_T[start : start + BLOCK_ROWS]]


def _write_lags(X: NDArray[np.float32], num_memberships: int, num_lags: int) -> None:
    """Write the first columns again, each time one row lower; block by block, while they are in the cache."""
    for start in range(0, len(X), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(X))
        for lag in range(1, num_lags + 1):
            first = min(max(start, lag), stop)
            columns = slice(lag * num_memberships, (lag + 1) * num_memberships)
            X[start:first, columns] = np.nan
            X[first:stop, columns] = X[first - lag : stop - lag, :num_memberships]


def _write_columns(columns: Sequence[FloatArray], out: NDArray[np.float32]) -> None:
    block = np.empty((len(columns), BLOCK_ROWS), dtype=np.float32)
    for start in range(0, len(out) if columns else 0, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(out)))
        size = rows.stop - rows.start
        for index, values in enumerate(columns):
            block[index, :size] = values[rows]
        out[rows] = block[:, :size].T
