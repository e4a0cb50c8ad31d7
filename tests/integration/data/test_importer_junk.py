"""Laws of imports of junk: an import succeeds or raises one sentence, soon, and the store is whole either way."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.importer import STAGING_PREFIX, IfExists, ImportRequest, stage_import
from ktrdr_core.data.quality import check_stored_series
from ktrdr_core.errors import InternalError, KtrdrError
from tests.kit.builders import bars_csv, make_bars, write_bars_csv

BARS = make_bars(60)
LINES = bars_csv(BARS).splitlines()
LIMIT_S = 5.0
STORE = Path(tempfile.mkdtemp()) / "store"

JUNK_CELLS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "nan", "NaN", "inf", "-inf", "1e400", "-1", "0", "1,5", "null", '"', "'", "\x00", "\ufeff"),
            *("2017-02-30T00:00:00Z", "2017-01-02", "01/02/2017", "1e18", "9" * 20, "9" * 400, "0x10", "٣", "=1+1"),
        ]
    ),
    st.text(max_size=30),
    st.floats().map(repr),
    st.integers(-(10**25), 10**25).map(str),
)
REQUESTS = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(["EURUSD", "GBPUSD", None]),
        "timeframe": st.sampled_from(["1h", "1m", "1d", "1w"]),
        "timezone": st.sampled_from(["UTC", "America/New_York", "Europe/Athens"]),
        "is_repair": st.booleans(),
        "if_exists": st.sampled_from(list(IfExists)),
    }
)


@pytest.fixture(scope="module", autouse=True)
def _stored_series() -> Iterator[None]:
    """A store with one series, in STORE; it is copied for each example."""
    with stage_import(
        ImportRequest(files=(write_bars_csv(STORE.parent, BARS),), store=STORE, symbol="EURUSD", timeframe="1h")
    ) as staged:
        staged.publish()
    yield
    shutil.rmtree(STORE.parent)


def check_import(files: dict[str, bytes], values: dict[str, Any]) -> None:
    """Import files into a store that holds a series; see that it holds the same, or another one that is whole."""
    with tempfile.TemporaryDirectory() as directory:
        root, store = Path(directory), Path(directory) / "store"
        shutil.copytree(STORE, store)
        for name, content in files.items():
            (root / name).write_bytes(content)
        request = ImportRequest(files=tuple(root / name for name in files), store=store, **values)
        expected = {("EURUSD", "1h"): len(BARS)}
        started = time.process_time()
        refusal: KtrdrError | None = None
        try:
            with stage_import(request) as staged:
                staged.publish()
            expected |= {(series.symbol, series.timeframe): series.num_bars for series in staged.series}
        except KtrdrError as error:
            refusal = error
        if refusal is not None:
            assert not isinstance(refusal, InternalError)
            assert 10 < len(refusal.message) < 2000
        assert time.process_time() - started < LIMIT_S
        bars = DirectoryBarStore(store)
        assert {(info.symbol, info.timeframe): info.num_bars for info in bars.list_series()} == expected
        for symbol, timeframe in expected:
            assert len(bars.load(symbol, timeframe)) == expected[symbol, timeframe]
            assert check_stored_series(bars, symbol, timeframe).num_errors == 0
        assert not list(store.glob(f"{STAGING_PREFIX}*"))
        assert not list(store.glob("*/.*"))


@given(content=st.binary(max_size=300), values=REQUESTS)
def test_junk_bytes(content: bytes, values: dict[str, Any]) -> None:
    check_import({"junk.csv": content}, values)


@given(content=st.binary(max_size=300), values=REQUESTS, marks=st.sampled_from([b"PAR1", b"\xff\xfe", b"\xef\xbb\xbf"]))
def test_junk_after_a_mark_of_a_format(content: bytes, values: dict[str, Any], marks: bytes) -> None:
    check_import({"junk.csv": marks + content, "junk.csv.gz": b"\x1f\x8b" + content}, values)


@given(
    rows=st.lists(st.lists(JUNK_CELLS, min_size=1, max_size=8), max_size=12),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    values=REQUESTS,
)
def test_junk_tables(rows: list[list[str]], delimiter: str, end: str, encoding: str, values: dict[str, Any]) -> None:
    header = delimiter.join(["time", "open", "high", "low", "close", "volume"])
    text = end.join([header, *(delimiter.join(row) for row in rows)])
    check_import({"junk.csv": text.encode(encoding, "replace")}, values)


@given(
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5), JUNK_CELLS), min_size=1, max_size=6),
    values=REQUESTS,
)
def test_bars_with_junk_in_some_cells(changes: list[tuple[int, int, str]], values: dict[str, Any]) -> None:
    lines = list(LINES)
    for row, column, cell in changes:
        cells = lines[row].split(",")
        cells[column % len(cells)] = cell
        lines[row] = ",".join(cells)
    check_import({"half.csv": "\n".join(lines).encode("utf-8", "replace")}, values)


@given(
    order=st.permutations(range(1, 61)),
    repeated=st.lists(st.integers(1, 60), max_size=10),
    dropped=st.integers(0, 50),
    cut=st.integers(0, 200),
    values=REQUESTS,
)
def test_bars_shuffled_repeated_and_cut(
    order: list[int], repeated: list[int], dropped: int, cut: int, values: dict[str, Any]
) -> None:
    lines = [LINES[0], *(LINES[row] for row in [*order, *repeated][dropped:])]
    text = "\n".join(lines)
    half = len(lines) // 2
    files = {"a.csv": text[: len(text) - cut], "b.csv": "\n".join([lines[0], *lines[half:]])}
    check_import({name: content.encode() for name, content in files.items()}, values)


@given(
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    filler=st.binary(max_size=8),
    values=REQUESTS,
)
def test_damaged_parquet(cuts: tuple[float, float], filler: bytes, values: dict[str, Any]) -> None:
    content = PARQUET
    first, last = sorted(int(cut * len(content)) for cut in cuts)
    check_import({"cut.parquet": content[:first] + filler + content[first + len(filler) :]}, values)
    check_import({"cut.parquet": content[:first] + filler + content[last:]}, values)


def _parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    from ktrdr_core.data.bars import BAR_COLUMNS

    columns = {"time": pa.array(BARS.times, pa.timestamp("ns", tz="UTC"))}
    columns |= {name: pa.array(getattr(BARS, name)) for name in BAR_COLUMNS}
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


PARQUET = _parquet()


def test_huge_cell_is_refused_soon() -> None:
    cell = "9" * (6 << 20)
    row = ["2017-01-02", "1", "1", "1", "1", "1"]
    for column in range(6):
        cells = [*row[:column], cell, *row[column + 1 :]]
        for lines in (
            [LINES[0], ",".join(cells)],
            [",".join(cells), ",".join(row)],
            [LINES[0], *LINES[1:], ",".join(cells)],
        ):
            check_import(
                {"huge.csv": "\n".join(lines).encode()},
                {"symbol": "EURUSD", "timeframe": "1h", "is_repair": True, "if_exists": IfExists.MERGE},
            )


def test_thousands_of_columns_are_refused_soon() -> None:
    text = ",".join(f"c{index}" for index in range(20_000)) + "\n" + ",".join(["1"] * 20_000)
    check_import({"wide.csv": text.encode()}, {"symbol": "EURUSD", "timeframe": "1h", "if_exists": IfExists.MERGE})


def test_thousands_of_symbols_are_refused_soon() -> None:
    lines = [f"{line},S{index}" for index in range(30) for line in LINES[1:]]
    lines = [f"{line.rpartition(',')[0]},S{index}" for index, line in enumerate(lines)]
    content = "\n".join([LINES[0] + ",symbol", *lines]).encode()
    check_import({"many.csv": content}, {"symbol": None, "timeframe": "1h"})
