"""Bars as a Parquet file: equal bars have equal bytes however they are cut, and every range is exactly its bars."""

from __future__ import annotations

import hashlib
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.data.files import load_bars
from ktrdr_core.data.parquet_bars import (
    ROW_GROUP_BARS,
    bars_digest,
    encode_range,
    file_digest,
    table_of,
    write_bars,
)
from ktrdr_core.data.partitions import ALL_TIMES
from tests.kit.builders import make_bars

BARS = make_bars(3 * ROW_GROUP_BARS + 17, timeframe="1m")
SMALL = make_bars(50)


def table(bars: Bars) -> object:
    return table_of(bars.times, {name: getattr(bars, name) for name in BAR_COLUMNS})


def file_of(bars: Bars, *cuts: int) -> io.BytesIO:
    """Return the file of bars that come in several tables."""
    sink = io.BytesIO()
    bounds = [0, *sorted(cuts), len(bars)]
    pieces = [bars.rows(slice(start, stop)) for start, stop in pairwise(bounds)]
    write_bars([table(piece) for piece in pieces], sink)
    return sink


@pytest.mark.parametrize("cuts", [(1,), (ROW_GROUP_BARS,), (5, 6, ROW_GROUP_BARS + 1, 2 * ROW_GROUP_BARS + 9), (0, 0)])
def test_bytes_do_not_depend_on_how_bars_were_cut(cuts: tuple[int, ...]) -> None:
    assert file_of(BARS, *cuts).getvalue() == file_of(BARS).getvalue()


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 50))
def test_range_is_exactly_its_bars(first: int, length: int, cut: int) -> None:
    hour = 3600 * 10**9
    first_ns = int(SMALL.times[0]) + (first - 5) * hour
    last_ns = first_ns + length * hour
    files = [file_of(part) for part in (SMALL.head(cut), SMALL.rows(slice(cut, None))) if len(part)]
    target = io.BytesIO()
    found = encode_range(files, target, first_ns, last_ns)
    wanted = SMALL.rows(slice(*np.searchsorted(SMALL.times, [first_ns, last_ns + 1]).tolist()))
    if not len(wanted):
        assert found is None
        return
    assert found is not None
    assert target.getvalue() == file_of(wanted).getvalue()
    assert (found.num_bars, found.first_ns, found.last_ns) == (len(wanted), wanted.times[0], wanted.times[-1])
    assert found.sha256 == hashlib.sha256(target.getvalue()).hexdigest()
    assert found.size_bytes == len(target.getvalue())


def test_file_is_read_by_the_reader_of_parquet_files(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD_1m.parquet"
    path.write_bytes(file_of(BARS).getvalue())
    assert load_bars(path, symbol="EURUSD", timeframe="1m").digest() == BARS.digest()


@pytest.mark.parametrize("cut", [1, ROW_GROUP_BARS + 5])
def test_digest_of_files_is_that_of_the_bars(cut: int) -> None:
    files = [file_of(BARS.head(cut)), file_of(BARS.rows(slice(cut, None)))]
    assert bars_digest("EURUSD", "1m", files) == BARS.digest()
    assert bars_digest("EURUSD", "5m", files) != BARS.digest()


def test_digest_of_a_file_starts_at_its_beginning_wherever_it_was_read_to() -> None:
    file = io.BytesIO(b"x" * (3 << 20))
    file.seek(77)
    assert file_digest(file) == hashlib.sha256(file.getvalue()).hexdigest()


def test_no_bars_are_no_file() -> None:
    assert encode_range([], io.BytesIO(), *ALL_TIMES) is None
