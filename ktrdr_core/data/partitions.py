"""A stored series as one Parquet file a year, and the manifest that names them.

```
EURUSD_1h/  manifest.json  2016-9b1c60d2a4f7.parquet  2017-03a2f1c0d9e8.parquet
```

The manifest is the series: a file it does not name is not part of it. It is replaced by one rename, after the files it
names are on disk under names made of their content, so a reader sees the series before or after, never between, and a
crash leaves at most files that the next import removes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ktrdr_core.data.arrow_arrays import to_numpy
from ktrdr_core.data.bars import BAR_COLUMNS, Bars, FloatArray, IntArray, day_of, day_start_ns, validate_bars
from ktrdr_core.data.durable import fsync_directory, write_durably
from ktrdr_core.data.parquet_bars import group_bounds_ns, table_of, write_bars
from ktrdr_core.domain.timeframe import DAY_NS
from ktrdr_core.errors import InvalidBarsError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
_PART_NAME = re.compile(r"\d{4}-[0-9a-f]{12}\.parquet", re.ASCII)
ALL_TIMES = (-(2**63), 2**63 - 1)
_NUM_READ_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Part:
    """The bars of one year (UTC).

    Attributes:
        file: Name of the file, beside the manifest.
        num_bars: How many, at least 1.
        first_ns, last_ns: Open times of the first and the last bar, ns since 1970.
        size_bytes: Size of the file.
        sha256: Digest of the file, hex.
    """

    file: str
    num_bars: int
    first_ns: int
    last_ns: int
    size_bytes: int
    sha256: str

    @property
    def year(self) -> int:
        return int(self.file[:4])


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a series is made of; parts are in order of time."""

    symbol: str
    timeframe: str
    parts: tuple[Part, ...]

    @property
    def num_bars(self) -> int:
        return sum(part.num_bars for part in self.parts)


def time_bounds(start: date | None, end: date | None) -> tuple[int, int]:
    """Return the first and the last ns of days `start` to `end`, both included, UTC; None is open-ended."""
    first = ALL_TIMES[0] if start is None else day_start_ns(start)
    last = ALL_TIMES[1] if end is None else day_start_ns(end) + DAY_NS - 1
    return first, last


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of the series in `directory`.

    Raises:
        InvalidBarsError: It is missing or damaged.
    """
    try:
        raw = json.loads((directory / MANIFEST).read_bytes())
        if raw["format"] != MANIFEST_FORMAT:
            raise _damaged(directory, f"{MANIFEST} is of format {raw['format']}, this version reads {MANIFEST_FORMAT}")
        parts = tuple(Part(**part) for part in raw["parts"])
        manifest = Manifest(raw["symbol"], raw["timeframe"], parts)
        if (
            not parts
            or not all(_is_sound(part) for part in parts)
            or f"{manifest.symbol}_{manifest.timeframe}" != (directory.name)
        ):
            raise ValueError("fields")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, InvalidBarsError):
            raise
        raise _damaged(directory, f"{MANIFEST} is missing or damaged") from error
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Make `manifest` the truth about the series in `directory`, by one rename; its files are there already."""
    content = {"format": MANIFEST_FORMAT, **asdict(manifest)}
    write_durably(directory / MANIFEST, json.dumps(content, indent=1).encode())


def part_file_name(first_ns: int, sha256: str) -> str:
    """Return the name of a part's file, by the year (UTC) of its bars and its digest, hex."""
    return f"{day_of(first_ns).year:04d}-{sha256[:12]}.parquet"


def write_part(directory: Path, times_T: IntArray, columns: dict[str, FloatArray]) -> Part:
    """Write the bars of one year to `directory` and return what the manifest says of them.

    Args:
        directory: Where the file goes.
        times_T: Open times, ns since 1970 UTC, increasing, all of one year, shape (T,).
        columns: The `BAR_COLUMNS`, shape (T,) each.
    """
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    write_bars([table_of(times_T, columns)], sink)
    content = sink.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    name = part_file_name(int(times_T[0]), digest)
    write_durably(directory / name, memoryview(content))
    return Part(name, len(times_T), int(times_T[0]), int(times_T[-1]), content.size, digest)


def load_partitions(directory: Path, *, symbol: str, timeframe: str, start: date | None, end: date | None) -> Bars:
    """Return the bars of a stored series that open on days `start` to `end`; may be empty.

    Only files and row groups that hold such bars are read. What is read is checked again: rules of the data, and the
    checksums of its pages.

    Raises:
        InvalidBarsError: A file is missing or damaged.
    """
    manifest = read_manifest(directory)
    for _ in range(_NUM_READ_ATTEMPTS):
        try:
            return _load(directory, manifest, symbol, timeframe, start, end)
        except FileNotFoundError as error:
            # An import replaced the series between our reading of the manifest and of its files.
            previous, manifest = manifest, read_manifest(directory)
            if manifest == previous:
                raise _damaged(directory, f"{Path(error.filename or '').name} is missing") from error
    raise _damaged(directory, "it is being replaced again and again")


def remove_unnamed(directory: Path, manifest: Manifest) -> None:
    """Remove the files in `directory` that the manifest does not name: those of older versions and of crashes."""
    named = {part.file for part in manifest.parts}
    for path in directory.iterdir():
        is_ours = _PART_NAME.fullmatch(path.name) or path.name.startswith(".")
        if is_ours and path.name not in named and path.is_file():
            path.unlink(missing_ok=True)
    fsync_directory(directory)


def damaged_parts(directory: Path, manifest: Manifest) -> list[str]:
    """Return the files that are missing or whose bytes differ from their digest."""
    found = []
    for part in manifest.parts:
        try:
            with (directory / part.file).open("rb") as file:
                is_whole = hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
        except OSError:
            is_whole = False
        if not is_whole:
            found.append(part.file)
    return found


def read_parquet_range(path: Path, time_columns: Sequence[str], first_ns: int, last_ns: int, **options: Any) -> Any:
    """Return the table of a Parquet file's row groups that may hold times in [first_ns, last_ns], by their statistics.

    Args:
        path: The file.
        time_columns: Names the time column may have.
        first_ns, last_ns: What is wanted, ns since 1970.
        options: Passed on to `pyarrow.parquet.ParquetFile`.

    Raises:
        FileNotFoundError: There is no such file.
        pyarrow.ArrowInvalid, OSError: It cannot be read.
    """
    from pyarrow import parquet

    with path.open("rb") as raw, parquet.ParquetFile(raw, pre_buffer=False, **options) as file:
        groups = list(range(file.metadata.num_row_groups))
        names = [name for name in file.schema_arrow.names if name in time_columns]
        if names:
            groups = [group for group in groups if _may_hold(file, group, names[0], first_ns, last_ns)]
        return file.read_row_groups(groups, use_threads=False)


def _may_hold(file: Any, group: int, time_column: str, first_ns: int, last_ns: int) -> bool:
    bounds = group_bounds_ns(file, group, time_column)
    return bounds is None or (bounds[0] <= last_ns and bounds[1] >= first_ns)


def _load(
    directory: Path, manifest: Manifest, symbol: str, timeframe: str, start: date | None, end: date | None
) -> Bars:
    import pyarrow as pa

    first_ns, last_ns = time_bounds(start, end)
    wanted = [part for part in manifest.parts if part.first_ns <= last_ns and part.last_ns >= first_ns]
    tables = []
    for part in wanted:
        try:
            tables.append(
                read_parquet_range(
                    directory / part.file, ("time",), first_ns, last_ns, page_checksum_verification=True
                ).select(["time", *BAR_COLUMNS])
            )
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _damaged(directory, f"{part.file} is damaged: {' '.join(str(error).split())[:160]}") from error
    if not sum(len(table) for table in tables):
        return _no_bars(symbol, timeframe)
    table = pa.concat_tables(tables)
    bars = validate_bars(
        symbol=symbol,
        timeframe=timeframe,
        times=to_numpy(table.column("time").cast(pa.int64())),
        source=directory.name,
        **{name: to_numpy(table.column(name)) for name in BAR_COLUMNS},
    )
    return bars.between(start, end)


def _no_bars(symbol: str, timeframe: str) -> Bars:
    empty = np.empty(0)
    return Bars(symbol, timeframe, np.empty(0, dtype=np.int64), *([empty] * len(BAR_COLUMNS)))


def _is_sound(part: Part) -> bool:
    numbers: Sequence[object] = (part.num_bars, part.first_ns, part.last_ns, part.size_bytes)
    return (
        isinstance(part.file, str)
        and _PART_NAME.fullmatch(part.file) is not None
        and all(isinstance(number, int) for number in numbers)
        and part.num_bars > 0
        and isinstance(part.sha256, str)
    )


def _damaged(directory: Path, text: str) -> InvalidBarsError:
    return InvalidBarsError(
        f"{directory.name}: {text}; import the series again with --replace",
        field="bars",
        metadata={"source": directory.name},
    )
