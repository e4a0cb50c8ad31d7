"""Bars as files: a stored series, and one Parquet file as it travels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.data.parquet_bars import table_of, write_bars
from ktrdr_core.data.partitions import Manifest, write_manifest, write_part
from ktrdr_core.data.row_spool import years_of


def write_series(store: Path, bars: Bars) -> Path:
    """Write bars as an import does; return the directory of the series."""
    directory = store / f"{bars.symbol}_{bars.timeframe}"
    directory.mkdir(parents=True, exist_ok=True)
    years = years_of(bars.times)
    parts = []
    for year in np.unique(years).tolist():
        rows = years == year
        parts.append(write_part(directory, bars.times[rows], {name: getattr(bars, name)[rows] for name in BAR_COLUMNS}))
    write_manifest(directory, Manifest(bars.symbol, bars.timeframe, tuple(parts)))
    return directory


def bars_parquet(bars: Bars) -> bytes:
    """Return bars as the bytes of one Parquet file."""
    sink = io.BytesIO()
    write_bars([table_of(bars.times, {name: getattr(bars, name) for name in BAR_COLUMNS})], sink)
    return sink.getvalue()
