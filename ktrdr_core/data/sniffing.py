"""What a file of bars looks like, found from its beginning: delimiter, header, columns, way of writing times."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ktrdr_core.data.column_roles import ColumnRoles, assign_columns
from ktrdr_core.data.time_formats import TimeFormat, detect_time_format, parse_times
from ktrdr_core.errors import InvalidBarsError

# Two weeks of 1m bars: enough to tell days from months.
SAMPLE_BYTES = 2 << 20
MAX_COLUMNS = 200
_NUM_LINES_FOR_DELIMITER = 50
_NUM_SAMPLES = 1_000
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_PARQUET_MAGIC = b"PAR1"
_NUMBER = re.compile(r"\s*[-+]?\d+(?:[.,]\d*)?(?:[eE][-+]?\d+)?\s*", re.ASCII)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?", re.ASCII)
_DAY = re.compile(r"\d{4}[-./]?\d{2}[-./]?\d{2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """How one file is read.

    Attributes:
        path: The file.
        file_format: "csv" or "parquet".
        roles: The columns that are read.
        time_format: How times are written; None where they are Parquet timestamps.
        has_zone: Whether the times name instants; else they are of a local clock.
        first_ns: The first row's time, local or UTC.
        delimiter, encoding, has_header, has_decimal_comma: Of CSV files.
    """

    path: Path
    file_format: str
    roles: ColumnRoles
    time_format: TimeFormat | None
    has_zone: bool
    first_ns: int
    delimiter: str = ","
    encoding: str = "utf-8"
    has_header: bool = True
    has_decimal_comma: bool = False

    def describe(self) -> str:
        """Return one line for people."""
        times = "timestamps" + (" with a zone" if self.has_zone else "")
        times = times if self.time_format is None else str(self.time_format)
        if self.file_format == "parquet":
            return f"Parquet; times are {times}"
        details = [
            f"CSV, {_DELIMITERS[self.delimiter]}",
            "header" if self.has_header else "no header: columns by number",
            *(["decimal comma"] if self.has_decimal_comma else []),
            *([self.encoding] if self.encoding not in ("utf-8", "utf-8-sig") else []),
        ]
        return f"{', '.join(details)}; times are {times}"


def sniff_file(path: Path, *, columns: Mapping[str, str], time_format: TimeFormat | None) -> FileLayout:
    """Return the layout of a CSV or Parquet file.

    Args:
        path: The file; CSV may be compressed (.gz, .bz2, .zst).
        columns: Columns the user named, by role.
        time_format: What the user said of the times; None finds it.

    Raises:
        InvalidBarsError: The file cannot be read, is neither, or leaves a choice open that only a person can make.
    """
    try:
        if not path.is_file():
            raise refuse_file(path, "is no file; give the path of a CSV or Parquet file")
        with path.open("rb") as file:
            head = file.read(4)
        if head == _PARQUET_MAGIC:
            return _sniff_parquet(path, columns, time_format)
        return _sniff_csv(path, _read_sample(path), columns, time_format)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())[:160]
        raise refuse_file(path, f"cannot be read ({reason}); check the file") from error


def refuse_file(path: Path, text: str, row: int | None = None, time: str = "") -> InvalidBarsError:
    """Return the error that refuses a file, or a row of it (counted from 1, the header not counted) with its time."""
    where = path.name if row is None else f"{path.name}, row {row}" + (f" ({time})" if time else "")
    return InvalidBarsError(
        f"{where}: {text}",
        field="file" if row is None else f"row {row}",
        metadata={"source": path.name} | ({"row": str(row)} if row else {}),
    )


def open_stream(path: Path) -> Any:
    """Return an Arrow stream of the file's bytes, decompressed where its name says so."""
    import pyarrow as pa

    return pa.input_stream(str(path), compression="detect")


def _read_sample(path: Path) -> bytes:
    with open_stream(path) as stream:
        return bytes(stream.read(SAMPLE_BYTES))


def _sniff_csv(path: Path, sample: bytes, columns: Mapping[str, str], time_format: TimeFormat | None) -> FileLayout:
    encoding = _encoding(path, sample)
    lines = _lines(path, sample, encoding)
    delimiter = _delimiter(path, lines)
    table = _split(path, lines, delimiter)
    has_header = not any(_NUMBER.fullmatch(cell) for cell in table[0])
    names = [cell.strip() for cell in table[0]] if has_header else [str(n + 1) for n in range(len(table[0]))]
    if len(names) > MAX_COLUMNS:
        raise refuse_file(path, f"has {len(names)} columns; a file of bars has at most {MAX_COLUMNS}")
    rows = [row for row in table[has_header:] if len(row) == len(names)]
    if not rows:
        raise refuse_file(path, f"has no row of {len(names)} values below its header")
    if not has_header and not columns:
        columns = _positions(path, rows[0])
    if has_header and len(set(table[0])) == len(table[0]):
        names = table[0]  # as Arrow reads them
    roles = assign_columns(names, columns, source=path.name)
    rows = rows[:: max(1, len(rows) // _NUM_SAMPLES)]  # spread over the sample, so over its days
    cells = {name: [row[names.index(name)] for row in rows] for name in roles.names}
    samples = [
        " ".join(part.strip() for part in parts) for parts in zip(*(cells[name] for name in roles.time), strict=True)
    ]
    found = _time_format(path, samples, time_format)
    has_decimal_comma = delimiter != "," and any("," in cell for cell in cells[roles.prices[3]])
    return FileLayout(
        path=path,
        file_format="csv",
        roles=roles,
        time_format=found,
        has_zone=found.is_absolute,
        first_ns=_first_ns(samples, found),
        delimiter=delimiter,
        encoding=encoding,
        has_header=has_header,
        has_decimal_comma=has_decimal_comma,
    )


def _encoding(path: Path, sample: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if sample.startswith(mark):
            return encoding
    if b"\0" in sample:
        raise refuse_file(path, "holds NUL bytes, so it is no CSV text; give a CSV or Parquet file")
    return "utf-8"


def _lines(path: Path, sample: bytes, encoding: str) -> list[str]:
    is_whole = len(sample) < SAMPLE_BYTES
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample, final=is_whole)
    except UnicodeDecodeError as error:
        raise refuse_file(path, f"is no {encoding} text from byte {error.start} on; save it as UTF-8") from error
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not is_whole and len(lines) > 1:
        lines.pop()  # it may be cut
    if not lines:
        raise refuse_file(path, "is empty; a file of bars has a row for each bar")
    return lines


def _delimiter(path: Path, lines: Sequence[str]) -> str:
    """Return the delimiter that splits the most lines alike the first, into the most columns."""
    first = lines[:_NUM_LINES_FOR_DELIMITER]

    def fit(delimiter: str) -> tuple[bool, int, int]:
        num_columns = first[0].count(delimiter) + 1
        return num_columns >= 5, sum(line.count(delimiter) + 1 == num_columns for line in first), num_columns

    best = max(_DELIMITERS, key=fit)
    if not fit(best)[0]:
        raise refuse_file(
            path,
            "is no table of bars: comma, semicolon, tab and bar all give its first line less than the 5 columns time, "
            "open, high, low and close need",
        )
    return best


def _split(path: Path, lines: Sequence[str], delimiter: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=delimiter))
    except csv.Error as error:
        raise refuse_file(path, f"cannot be read as CSV ({error})") from error


def _positions(path: Path, row: Sequence[str]) -> dict[str, str]:
    """Return the columns of a file without a header: time, or day and clock, then open, high, low, close, volume."""
    cells = [cell.strip() for cell in row]
    has_split_time = _DAY.fullmatch(cells[0]) is not None and (
        _CLOCK.fullmatch(cells[1]) is not None or re.fullmatch(r"\d{4}(\d{2})?", cells[1], re.ASCII) is not None
    )
    num_times = 2 if has_split_time else 1
    num_values = len(cells) - num_times
    if num_values not in (4, 5):
        raise refuse_file(
            path,
            f"has no header and {len(cells)} columns, so that their meaning is open; say it with --columns and the "
            "columns' numbers, such as time=1,open=2,high=3,low=4,close=5,volume=6",
        )
    roles = ("open", "high", "low", "close", "volume")[:num_values]
    return {"time": "1+2" if has_split_time else "1"} | {
        role: str(number) for number, role in enumerate(roles, start=num_times + 1)
    }


def _time_format(path: Path, samples: Sequence[str], given: TimeFormat | None) -> TimeFormat:
    if given is None:
        return detect_time_format(samples, source=path.name)
    if given.text != "iso":
        return given
    found = detect_time_format(samples, source=path.name)
    if found.text != "iso":
        raise refuse_file(path, f"times are not ISO 8601 but {found}; change --time-format or leave it out")
    return found


def _first_ns(samples: Sequence[str], time_format: TimeFormat) -> int:
    """Return the first time, 0 where it cannot be read: reading the rows names it then."""
    import pyarrow as pa

    try:
        return int(parse_times(pa.array(samples[:1], pa.string()), time_format)[0].as_py())
    except pa.ArrowInvalid:
        return 0


def _sniff_parquet(path: Path, columns: Mapping[str, str], time_format: TimeFormat | None) -> FileLayout:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            names = list(file.schema_arrow.names)
            if len(names) > MAX_COLUMNS:
                raise refuse_file(path, f"has {len(names)} columns; a file of bars has at most {MAX_COLUMNS}")
            roles = assign_columns(names, columns, source=path.name)
            batch = next(file.iter_batches(10_000, columns=list(roles.names), use_threads=False), None)
    except (pa.ArrowException, OSError) as error:
        raise refuse_file(path, f"is no readable Parquet file ({' '.join(str(error).split())[:160]})") from error
    if batch is None or not len(batch):
        raise refuse_file(path, "is empty; a file of bars has a row for each bar")
    layout = FileLayout(
        path=path, file_format="parquet", roles=roles, time_format=None, has_zone=True, first_ns=0, has_header=True
    )
    kind = batch.column(roles.time[0]).type
    if len(roles.time) == 1 and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        first = batch.column(roles.time[0])[0]
        has_zone = pa.types.is_timestamp(kind) and kind.tz is not None
        return replace(layout, has_zone=has_zone, first_ns=_timestamp_ns(first))
    texts = [column_texts(path, batch, name) for name in roles.time]
    samples = [" ".join(parts) for parts in zip(*texts, strict=True) if None not in parts]
    if not samples:
        raise refuse_file(path, f"column {roles.time[0]} has no time in its first rows")
    found = _time_format(path, samples, time_format)
    return replace(layout, time_format=found, has_zone=found.is_absolute, first_ns=_first_ns(samples, found))


def column_texts(path: Path, batch: Any, name: str) -> list[str]:
    """Return a column of text or whole numbers as texts.

    Raises:
        InvalidBarsError: It is of another kind.
    """
    import pyarrow as pa

    column = batch.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise refuse_file(path, f"column {name} must be times, whole numbers or text, is {column.type}")
    texts: list[str] = column.cast(pa.string()).to_pylist()
    return texts


def _timestamp_ns(scalar: Any) -> int:
    import pyarrow as pa

    try:
        return int(scalar.cast(pa.timestamp("ns", tz=getattr(scalar.type, "tz", None))).value or 0)
    except pa.ArrowInvalid:
        return 0
