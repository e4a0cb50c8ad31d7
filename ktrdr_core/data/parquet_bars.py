"""Bars as the bytes of one Parquet file: always the same bytes for the same bars, written and read block by block.

Whoever stores or sends bars writes them here, so that equal bars have equal digests wherever they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ktrdr_core.data.arrow_arrays import to_numpy
from ktrdr_core.data.bars import BAR_COLUMNS, FloatArray, IntArray, begin_digest

TIME_COLUMN = "time"
COLUMNS = (TIME_COLUMN, *BAR_COLUMNS)
# A year of 1h bars is one row group, a year of 1m bars about twelve: a range reads a month, not a year.
ROW_GROUP_BARS = 32_768
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BarsFile:
    """What is in a file of bars.

    Attributes:
        num_bars: How many, at least 1.
        first_ns, last_ns: Open times of the first and the last bar, ns since 1970.
        size_bytes: Size of the file.
        sha256: Digest of the file, hex.
    """

    num_bars: int
    first_ns: int
    last_ns: int
    size_bytes: int
    sha256: str


def table_of(times_T: IntArray, columns: dict[str, FloatArray]) -> Any:
    """Return the Arrow table of bars.

    Args:
        times_T: Open times, ns since 1970 UTC, shape (T,).
        columns: The `BAR_COLUMNS`, shape (T,) each.
    """
    import pyarrow as pa

    times = pa.array(times_T, pa.timestamp("ns", tz="UTC"))
    return pa.table({TIME_COLUMN: times} | {name: pa.array(columns[name]) for name in BAR_COLUMNS})


def write_bars(tables: Iterable[Any], sink: Any) -> None:
    """Write tables of `table_of`, in order of time, to `sink`: a path or anything Arrow writes to.

    How the bars are cut into tables makes no difference to the bytes.
    """
    with _open_writer(sink) as writer:
        for group in _row_groups(tables):
            writer.write_table(group, row_group_size=ROW_GROUP_BARS)


def read_bars(file: BinaryIO, first_ns: int, last_ns: int) -> Iterator[Any]:
    """Yield the bars that open in [first_ns, last_ns] as tables, at most a row group each.

    Args:
        file: A file that `write_bars` wrote.
        first_ns, last_ns: What is wanted, ns since 1970.

    Raises:
        pyarrow.ArrowException, OSError: It cannot be read.
    """
    import pyarrow as pa

    with _open_reader(file) as source:
        for group in range(source.metadata.num_row_groups):
            bounds = group_bounds_ns(source, group, TIME_COLUMN)
            if bounds is not None and (bounds[0] > last_ns or bounds[1] < first_ns):
                continue
            table = source.read_row_group(group, columns=list(COLUMNS), use_threads=False)
            times_T = to_numpy(table.column(TIME_COLUMN).cast(pa.int64()))
            start = int(np.searchsorted(times_T, first_ns, side="left"))
            stop = int(np.searchsorted(times_T, last_ns, side="right"))
            if stop > start:
                yield table.slice(start, stop - start)


def encode_range(files: Sequence[BinaryIO], target: BinaryIO, first_ns: int, last_ns: int) -> BarsFile | None:
    """Write the bars of some files that open in [first_ns, last_ns] to `target` as one file; None if there are none.

    Args:
        files: Files of one series in order of time, as `write_bars` wrote them.
        target: Where the bytes go; empty, open for writing and reading.
        first_ns, last_ns: What is wanted, ns since 1970.
    """
    num_bars, bounds = 0, (0, 0)

    def tables() -> Iterator[Any]:
        nonlocal num_bars, bounds
        for file in files:
            for table in read_bars(file, first_ns, last_ns):
                times = table.column(TIME_COLUMN)
                bounds = (bounds[0] if num_bars else times[0].value, times[-1].value)
                num_bars += len(table)
                yield table

    write_bars(tables(), target)
    if not num_bars:
        return None
    sha256 = file_digest(target)
    return BarsFile(num_bars, *bounds, target.seek(0, 2), sha256)


def bars_digest(symbol: str, timeframe: str, files: Sequence[BinaryIO]) -> str:
    """Return `Bars.digest` of the bars in some files, hex, without holding more than a row group of a column.

    Args:
        symbol, timeframe: Whose bars they are.
        files: Files of the series in order of time, as `write_bars` wrote them.
    """
    import pyarrow as pa

    num_bars = 0
    for file in files:
        with _open_reader(file) as source:
            num_bars += source.metadata.num_rows
    digest = begin_digest(symbol, timeframe, num_bars)
    for name in COLUMNS:
        for file in files:
            with _open_reader(file) as source:
                for group in range(source.metadata.num_row_groups):
                    column = source.read_row_group(group, columns=[name], use_threads=False).column(0)
                    values = column.cast(pa.int64()) if name == TIME_COLUMN else column
                    digest.update(np.ascontiguousarray(to_numpy(values), dtype=_DIGEST_TYPES[name]).data)
    return digest.hexdigest()


def file_digest(file: BinaryIO) -> str:
    """Return the SHA-256 of a whole file, hex; its position is at the end then."""
    file.seek(0)
    digest = hashlib.sha256()
    while data := file.read(_READ_BYTES):
        digest.update(data)
    return digest.hexdigest()


def group_bounds_ns(file: Any, group: int, time_column: str) -> tuple[int, int] | None:
    """Return the least and the greatest time of a row group in ns, None where its statistics do not tell."""
    import pyarrow as pa

    index = file.schema_arrow.names.index(time_column)
    field = file.schema_arrow.field(index)
    if file.metadata.num_columns != len(file.schema_arrow.names) or not pa.types.is_timestamp(field.type):
        return None
    statistics = file.metadata.row_group(group).column(index).statistics
    if statistics is None or not statistics.has_min_max:
        return None
    # Parquet has no seconds: they are stored, and read back, as milliseconds.
    unit_ns = {"s": 10**6, "ms": 10**6, "us": 10**3, "ns": 1}[field.type.unit]
    return int(statistics.min_raw) * unit_ns, int(statistics.max_raw) * unit_ns


_DIGEST_TYPES = {TIME_COLUMN: "<i8"} | dict.fromkeys(BAR_COLUMNS, "<f8")


@contextmanager
def _open_writer(sink: Any) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(TIME_COLUMN, pa.timestamp("ns", tz="UTC")), *((name, pa.float64()) for name in BAR_COLUMNS)])
    with parquet.ParquetWriter(
        sink, schema, compression="zstd", compression_level=1, write_page_checksum=True
    ) as writer:
        yield writer


@contextmanager
def _open_reader(file: BinaryIO) -> Iterator[Any]:
    from pyarrow import parquet

    file.seek(0)
    with parquet.ParquetFile(file, pre_buffer=False, page_checksum_verification=True) as source:
        yield source


def _row_groups(tables: Iterable[Any]) -> Iterator[Any]:
    """Yield the rows of tables cut anew into whole row groups, the last one shorter; each in one piece of memory."""
    import pyarrow as pa

    pending: list[Any] = []
    num_pending = 0
    for table in tables:
        pending.append(table)
        num_pending += len(table)
        if num_pending < ROW_GROUP_BARS:
            continue
        joined = pa.concat_tables(pending)
        num_whole = num_pending - num_pending % ROW_GROUP_BARS
        for start in range(0, num_whole, ROW_GROUP_BARS):
            yield joined.slice(start, ROW_GROUP_BARS).combine_chunks()
        pending, num_pending = [joined.slice(num_whole)], num_pending - num_whole
    if num_pending:
        yield pa.concat_tables(pending).combine_chunks()
