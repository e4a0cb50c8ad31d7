"""Reads files of bars. Nothing is guessed: a file that is not as described is refused."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ktrdr_core.data.arrow_arrays import null_rows, to_numpy
from ktrdr_core.data.bars import BAR_COLUMNS, Bars, FloatArray, IntArray, validate_bars
from ktrdr_core.data.parquet_bars import group_bounds_ns
from ktrdr_core.data.partitions import ALL_TIMES, read_parquet_range, time_bounds
from ktrdr_core.errors import InvalidBarsError

if TYPE_CHECKING:
    import pyarrow as pa

TIME_COLUMNS = ("timestamp", "time")
FILE_FORMATS = ("csv", "parquet")
_ARROW_ROW = re.compile(r"Row #(\d+)")
_ARROW_CONVERSION = re.compile(r"In CSV column #(\d+): .*conversion error to (\w+).*?: invalid value (.*)")
_KIND_RULES = {"double": "a number", "timestamp": "an ISO 8601 time with its zone, such as 2017-01-01T22:00:00Z"}


def load_bars(path: Path, *, symbol: str, timeframe: str, start: date | None = None, end: date | None = None) -> Bars:
    """Return the validated bars of a CSV or Parquet file that open on days `start` to `end`; may be empty.

    The file has exactly the columns timestamp (or time), open, high, low, close, volume, in any order. CSV times are
    ISO 8601 with a zone (`2017-01-01T22:00:00Z`); Parquet times are timestamps with a zone. Of a Parquet file only the
    row groups that may hold bars of these days are read, so that rows of messages are counted from the first of them.

    Raises:
        InvalidBarsError: The file cannot be read, or breaks a rule; file, row (from 1, the header not counted) and
            reason are named.
    """
    first_ns, last_ns = time_bounds(start, end)
    times, columns = read_columns(path, first_ns, last_ns)
    if not len(times) and (start or end) and path.suffix != ".csv":
        return Bars(symbol, timeframe, times, **columns)  # no row group holds any of these days
    bars = validate_bars(symbol=symbol, timeframe=timeframe, times=times, source=path.name, **columns)
    return bars.between(start, end)


def read_columns(
    path: Path, first_ns: int = ALL_TIMES[0], last_ns: int = ALL_TIMES[1]
) -> tuple[IntArray, dict[str, FloatArray]]:
    """Return times (ns since 1970 UTC) and values of a file as they stand there, rules of the data not checked.

    Args:
        path: CSV or Parquet file as `load_bars` reads it.
        first_ns, last_ns: Row groups of a Parquet file outside these times are left out.

    Raises:
        InvalidBarsError: The file cannot be read; row and reason are named.
    """
    table = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path, first_ns, last_ns)
    time_column = _check_columns(table.column_names, path)
    columns = {name: _floats(table, name, path) for name in BAR_COLUMNS}
    return _times(table, time_column, path), columns


def parquet_facts(path: Path) -> tuple[int, int, int] | None:
    """Return number of bars, first and last time (ns) of a Parquet file by its footer; None where it does not tell."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = [name for name in file.schema_arrow.names if name in TIME_COLUMNS]
            groups = range(file.metadata.num_row_groups)
            bounds = [group_bounds_ns(file, group, names[0]) for group in groups] if names else []
            known = [each for each in bounds if each is not None]
            if not known or len(known) != len(bounds):
                return None
            return int(file.metadata.num_rows), min(low for low, _ in known), max(high for _, high in known)
    except (pa.ArrowException, OSError):
        return None


def _refuse(path: Path, text: str, row: int | None = None) -> InvalidBarsError:
    where = path.name if row is None else f"{path.name}, row {row}"
    field = "bars" if row is None else f"row {row}"
    return InvalidBarsError(
        f"{where}: {text}", field=field, metadata={"source": path.name} | ({"row": str(row)} if row else {})
    )


def _read_csv(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    types: dict[str, Any] = dict.fromkeys(BAR_COLUMNS, pa.float64())
    types |= dict.fromkeys(TIME_COLUMNS, pa.timestamp("ns", tz="UTC"))
    try:
        return csv.read_csv(
            path,
            # One thread: only then do errors name the row.
            read_options=csv.ReadOptions(use_threads=False),
            convert_options=csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        text = " ".join(str(error).split())
        match = _ARROW_ROW.search(text)
        # Arrow counts the header as row 1.
        raise _refuse(path, _csv_reason(text, path)[:200], int(match[1]) - 1 if match else None) from error


def _csv_reason(arrow_text: str, path: Path) -> str:
    """Return what Arrow found wrong, in words of the file."""
    if arrow_text == "Empty CSV file":
        return f"is empty; its first line must be timestamp,{','.join(BAR_COLUMNS)}"
    conversion = _ARROW_CONVERSION.search(arrow_text)
    if conversion is None:
        return re.sub(r"^.*Row #\d+: ", "", arrow_text)
    with path.open(encoding="utf-8", errors="replace") as file:
        header = next((line for line in file if line.strip()), "").strip().split(",")
    index = int(conversion[1])
    column = header[index].strip('"') if index < len(header) else f"column {index + 1}"
    return f"{column} must be {_KIND_RULES.get(conversion[2], conversion[2])}, was {conversion[3]}"


def _read_parquet(path: Path, first_ns: int, last_ns: int) -> pa.Table:
    import pyarrow as pa

    try:
        return read_parquet_range(path, TIME_COLUMNS, first_ns, last_ns)
    except (pa.ArrowException, OSError) as error:
        raise _refuse(path, f"no readable Parquet file: {' '.join(str(error).split())[:200]}") from error


def _check_columns(names: list[str], path: Path) -> str:
    """Return the name of the time column."""
    times = [name for name in names if name in TIME_COLUMNS]
    missing = [name for name in BAR_COLUMNS if name not in names] + ([] if times else ["timestamp"])
    if missing:
        raise _refuse(path, f"has no column {', '.join(missing)}; its columns are {', '.join(names) or 'none'}")
    surplus = [name for name in names if name not in (*BAR_COLUMNS, times[0])]
    if surplus or len(names) != len(set(names)):
        raise _refuse(
            path, f"must have the columns timestamp, {', '.join(BAR_COLUMNS)} and no other; has {', '.join(names)}"
        )
    return times[0]


def _floats(table: pa.Table, name: str, path: Path) -> Any:
    import pyarrow as pa

    column = table.column(name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise _refuse(path, f"column {name} must be numbers, is {column.type}")
    _refuse_nulls(column, name, path)
    return np.asarray(to_numpy(column), dtype=np.float64)


def _times(table: pa.Table, name: str, path: Path) -> Any:
    import pyarrow as pa

    column = table.column(name)
    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        raise _refuse(path, f"column {name} must be times with a zone (UTC), is {column.type}")
    _refuse_nulls(column, name, path)
    try:
        return to_numpy(column.cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64()))
    except pa.ArrowInvalid as error:
        raise _refuse(path, f"column {name} has a time outside 1677 to 2262") from error


def _refuse_nulls(column: Any, name: str, path: Path) -> None:
    if column.null_count:
        raise _refuse(path, f"{name} is missing", int(null_rows(column)[0]) + 1)
