"""Rows by symbol and year come back in the order in which they were added, from memory or from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ktrdr_core.data.bars import BAR_COLUMNS
from ktrdr_core.data.row_spool import RowSpool, columns_of, make_rows, years_of
from tests.kit.builders import make_bars


@pytest.mark.parametrize("max_bytes", [0, 2_000, 1 << 30])
def test_rows_come_back_by_symbol_and_year_in_order(tmp_path: Path, max_bytes: int) -> None:
    bars = make_bars(900, timeframe="1d")
    values = np.stack([getattr(bars, name) for name in BAR_COLUMNS], axis=1)
    rows = make_rows(bars.times, values, np.arange(1, 901), file=3)
    spool = RowSpool(tmp_path, max_bytes=max_bytes)
    for start in range(0, 900, 70):
        spool.add("A" if start % 140 else "B", rows[start : start + 70])
    assert spool.series_years() == [(symbol, year) for symbol in "AB" for year in (2017, 2018, 2019)]
    assert bool(list(tmp_path.iterdir())) == (max_bytes < 1 << 30)
    is_a = (np.arange(900) // 70) % 2 == 1
    for symbol, year in spool.series_years():
        expected = rows[(is_a if symbol == "A" else ~is_a) & (years_of(bars.times) == year)]
        assert np.array_equal(spool.take(symbol, year), expected)
    assert spool.series_years() == []
    assert list(tmp_path.iterdir()) == []


def test_columns_are_those_of_the_bars() -> None:
    bars = make_bars(10)
    values = np.stack([getattr(bars, name) for name in BAR_COLUMNS], axis=1)
    columns = columns_of(make_rows(bars.times, values, np.arange(10), 0))
    assert all(np.array_equal(columns[name], getattr(bars, name)) for name in BAR_COLUMNS)


def test_years_are_those_of_utc() -> None:
    texts = ["1969-12-31T23:59:59", "1970-01-01T00:00:00", "2016-12-31T23:59:59", "2017-01-01T00:00:00"]
    times = np.array(texts, dtype="datetime64[ns]").astype(np.int64)
    assert years_of(times).tolist() == [1969, 1970, 2016, 2017]
