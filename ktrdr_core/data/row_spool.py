"""Rows of an import sorted into series and years while files are read, on disk where they are many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.data.bars import BAR_COLUMNS, FloatArray, IntArray

# One row: bar, and where it came from. `file` is the file's index in the import, -1 for bars that were stored before.
ROW = np.dtype([("time", "<i8"), ("values", "<f8", (len(BAR_COLUMNS),)), ("row", "<i8"), ("file", "<i4")])
STORED = -1
MAX_BYTES_IN_MEMORY = 64 << 20
RowArray = NDArray[Any]


def make_rows(times_T: IntArray, values: FloatArray, rows_T: IntArray, file: int) -> RowArray:
    """Return rows of one file; values have shape (T, 5)."""
    made = np.empty(len(times_T), dtype=ROW)
    made["time"], made["values"], made["row"], made["file"] = times_T, values, rows_T, file
    return made


def columns_of(rows: RowArray) -> dict[str, FloatArray]:
    """Return the `BAR_COLUMNS` of rows as contiguous arrays."""
    return {name: np.ascontiguousarray(rows["values"][:, index]) for index, name in enumerate(BAR_COLUMNS)}


def years_of(times_T: IntArray) -> IntArray:
    """Return the UTC year of each time."""
    return times_T.astype("datetime64[ns]").astype("datetime64[Y]").astype(np.int64) + 1970


class RowSpool:
    """Rows by symbol and year, each in the order in which they were added.

    Args:
        directory: Where rows go that do not fit into memory; it exists and is empty.
        max_bytes: How much is kept in memory.
    """

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES_IN_MEMORY) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._pending: dict[tuple[str, int], list[RowArray]] = {}
        self._num_bytes = 0
        self._files: dict[tuple[str, int], Path] = {}

    def add(self, symbol: str, rows: RowArray) -> None:
        """Add rows of one symbol, of any years."""
        years = years_of(rows["time"])
        for year in np.unique(years).tolist():
            part = rows[years == year]
            self._pending.setdefault((symbol, year), []).append(part)
            self._num_bytes += part.nbytes
        if self._num_bytes > self._max_bytes:
            self._flush()

    def series_years(self) -> list[tuple[str, int]]:
        """Return symbols and years that have rows, in order."""
        return sorted(self._pending.keys() | self._files.keys())

    def take(self, symbol: str, year: int) -> RowArray:
        """Return the rows of a symbol's year, and forget them."""
        parts = self._pending.pop((symbol, year), [])
        path = self._files.pop((symbol, year), None)
        if path is not None:
            parts.insert(0, np.fromfile(path, dtype=ROW))
            path.unlink()
        self._num_bytes -= sum(part.nbytes for part in parts)
        return np.concatenate(parts) if parts else np.empty(0, dtype=ROW)

    def _flush(self) -> None:
        for key, parts in self._pending.items():
            path = self._files.setdefault(key, self._directory / f"{len(self._files)}.rows")
            with path.open("ab") as file:
                for part in parts:
                    part.tofile(file)
        self._pending.clear()
        self._num_bytes = 0
