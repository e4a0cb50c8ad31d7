"""Brings files of bars into a store: read, understood, checked, staged beside it, and published at once.

Nothing of the store changes before `StagedImport.publish`, and each series changes by one rename (`partitions`).
Memory is bounded by a block of a file and a year of a series, not by the size of the files.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from uuid import uuid4

import numpy as np

from ktrdr_core.config.naming import check_name
from ktrdr_core.data.arrow_arrays import to_numpy
from ktrdr_core.data.bar_store import PARTITIONED, DirectoryBarStore
from ktrdr_core.data.bars import BAR_COLUMNS, IntArray, time_text
from ktrdr_core.data.cleaning import check_rows, repair_rows
from ktrdr_core.data.closures import duration_text
from ktrdr_core.data.column_roles import ColumnRoles
from ktrdr_core.data.directory_lock import DirectoryLock
from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.data.local_time import find_zone
from ktrdr_core.data.partitions import (
    ALL_TIMES,
    Manifest,
    Part,
    read_manifest,
    read_parquet_range,
    remove_unnamed,
    write_manifest,
    write_part,
)
from ktrdr_core.data.row_spool import STORED, RowArray, RowSpool, columns_of, make_rows
from ktrdr_core.data.sniffing import FileLayout, refuse_file, sniff_file
from ktrdr_core.data.source_rows import RowReader
from ktrdr_core.data.time_formats import TimeFormat
from ktrdr_core.domain.timeframe import DAY_NS, Timeframe
from ktrdr_core.errors import AlreadyExistsError, InvalidBarsError, InvalidInputError, SeriesNotFoundError

LOCK_FILE = ".import.lock"
STAGING_PREFIX = ".import-"
MAX_SYMBOLS = 1_000
_NUM_BARS_FOR_STEP = 10


class IfExists(StrEnum):
    """What to do with a series that is stored already."""

    REFUSE = "refuse"
    REPLACE = "replace"
    MERGE = "merge"


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import, and how.

    Attributes:
        files: The files; they are one series, or several where they have a column of symbols.
        store: Directory of the store.
        symbol: The series' symbol; of files with a column of symbols the one that is wanted, None for all.
        timeframe: Bar length.
        timezone: IANA name of the zone of times that have none.
        columns: Columns by role, where they are not found by their names.
        scale: Factors by column.
        time_format: How times are written, None to find it.
        is_repair: Repair what can be repaired, instead of refusing the first row that breaks a rule.
        if_exists: What to do with a stored series.
    """

    files: tuple[Path, ...]
    store: Path
    symbol: str | None
    timeframe: str
    timezone: str = "UTC"
    columns: dict[str, str] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    time_format: TimeFormat | None = None
    is_repair: bool = False
    if_exists: IfExists = IfExists.REFUSE


@dataclass(frozen=True, kw_only=True)
class ImportedSeries:
    """One series as it is after the import.

    Attributes:
        symbol, timeframe: Which one.
        num_bars: Bars it has.
        num_stored_before: Bars it had; 0 for a new one.
        first_time, last_time: Open times of its first and last bar, ISO 8601, UTC.
        usual_step: The most common step between bars.
        repairs: What was repaired, with counts.
    """

    symbol: str
    timeframe: str
    num_bars: int
    num_stored_before: int
    first_time: str
    last_time: str
    usual_step: str
    repairs: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class UnderstoodFile:
    """What was understood of a file.

    Attributes:
        path: The file.
        layout: In words.
        columns: Column of each role.
        num_rows: Rows that were read.
        notes: What a person should know.
    """

    path: str
    layout: str
    columns: dict[str, str | None]
    num_rows: int
    notes: tuple[str, ...]


class StagedImport:
    """An import whose files are read and checked, and not yet part of the store.

    Attributes:
        files: What was understood of each file, in the order in which they follow each other in time.
        series: Every series as it will be.
        repairs: Rows that were dropped or changed while files were read, with counts.
        timezone: Zone of times without one; "" where every time names an instant.
    """

    def __init__(self, store: Path, timezone: str) -> None:
        self.files: list[UnderstoodFile] = []
        self.series: list[ImportedSeries] = []
        self.repairs: Counter[str] = Counter()
        self.timezone = timezone
        self._store = store
        self._staged: list[tuple[Path, Manifest]] = []

    def add(self, directory: Path, manifest: Manifest, series: ImportedSeries) -> None:
        """Add a series whose new parts lie in `directory`."""
        self._staged.append((directory, manifest))
        self.series.append(series)

    def parts(self, symbol: str) -> tuple[Part, ...]:
        """Return what a series will be made of."""
        return next(manifest.parts for _, manifest in self._staged if manifest.symbol == symbol)

    def publish(self) -> None:
        """Make every series part of the store, one after another, each by one rename."""
        for directory, manifest in self._staged:
            target = self._store / f"{manifest.symbol}_{manifest.timeframe}"
            target.mkdir(exist_ok=True)
            for path in sorted(directory.iterdir()):
                path.rename(target / path.name)
            fsync_directory(target)
            write_manifest(target, manifest)
            fsync_directory(self._store)
            remove_unnamed(target, manifest)


@contextmanager
def stage_import(request: ImportRequest) -> Iterator[StagedImport]:
    """Read and check an import; what is staged is gone when the block ends, published or not.

    Raises:
        InvalidInputError: The request breaks a rule.
        InvalidBarsError: A file cannot be read, or a row of it breaks a rule of the data.
        AlreadyExistsError: A series is stored already and the request does not say what to do with it; or a stored bar
            of the same time differs.
        IllegalStateError: Another import into this store is running.
    """
    timeframe = Timeframe.parse(request.timeframe, field="--timeframe")
    if request.symbol is not None:
        check_name(request.symbol, field="--symbol", what="--symbol", error_class=InvalidInputError)
    find_zone(request.timezone)
    layouts = [sniff_file(path, columns=request.columns, time_format=request.time_format) for path in request.files]
    if request.symbol is None and any(layout.roles.symbol is None for layout in layouts):
        raise InvalidInputError("--symbol is needed: the file has no column of symbols", field="--symbol")
    layouts.sort(key=lambda layout: layout.first_ns)
    try:
        request.store.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(
            request.store / LOCK_FILE, owner="import", way_out="wait until it has ended, or choose another --bars-dir"
        )
        lock.acquire()
    except OSError as error:
        raise InvalidInputError(
            f"{request.store} cannot be written to ({error.strerror}); choose another --bars-dir", field="--bars-dir"
        ) from error
    staging = request.store / f"{STAGING_PREFIX}{uuid4().hex}"
    try:
        for old in request.store.glob(f"{STAGING_PREFIX}*/"):  # of imports that were killed
            shutil.rmtree(old, ignore_errors=True)
        staging.mkdir()
        yield _Import(request, layouts, timeframe, staging).run()
    except OSError as error:
        raise InvalidInputError(
            f"{request.store} cannot be written to ({error.strerror}); nothing more was imported; free space there or "
            "choose another --bars-dir",
            field="--bars-dir",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        lock.release()


class _Import:
    """One run of an import up to what is staged."""

    def __init__(
        self, request: ImportRequest, layouts: Sequence[FileLayout], timeframe: Timeframe, staging: Path
    ) -> None:
        self._request = request
        self._layouts = layouts
        self._timeframe = timeframe
        self._staging = staging
        (staging / "spool").mkdir()
        self._spool = RowSpool(staging / "spool")
        self._stored: dict[str, Manifest | None] = {}
        self._last_ns: dict[str, int] = {}
        has_local_times = not all(layout.has_zone for layout in layouts)
        self._staged = StagedImport(request.store, request.timezone if has_local_times else "")

    def run(self) -> StagedImport:
        for index in range(len(self._layouts)):
            self._read(index)
        if not self._stored:
            named = f"rows of {self._request.symbol}" if self._request.symbol else "rows"
            raise refuse_file(self._layouts[0].path, f"has no {named}; nothing was imported")
        for symbol in sorted(self._stored):
            self._stage(symbol)
        return self._staged

    def _read(self, index: int) -> None:
        layout, request = self._layouts[index], self._request
        reader = RowReader(
            layout,
            zone=find_zone(request.timezone),
            scale=request.scale,
            repairs=self._staged.repairs if request.is_repair else None,
        )
        num_rows = 0
        for block in reader.blocks():
            num_rows += len(block.times)
            rows = make_rows(block.times, block.values, block.rows, index)
            if block.symbols is None:
                self._add(str(request.symbol), rows)
                continue
            found, codes = np.unique(block.symbols.astype(str), return_inverse=True)
            for code, symbol in enumerate(found.tolist()):
                if request.symbol in (None, symbol):
                    self._add(symbol, rows[codes == code])
        roles: ColumnRoles = layout.roles
        self._staged.files.append(
            UnderstoodFile(
                path=str(layout.path),
                layout=layout.describe(),
                columns=roles.to_dict(),
                num_rows=num_rows,
                notes=roles.notes,
            )
        )

    def _add(self, symbol: str, rows: RowArray) -> None:
        if not len(rows):
            return
        if symbol not in self._stored:
            if len(self._stored) == MAX_SYMBOLS:
                raise InvalidBarsError(
                    f"an import may have {MAX_SYMBOLS} symbols, this one has more; is the column of symbols right?",
                    field="symbol",
                )
            self._stored[symbol] = self._find_stored(symbol)
        if not self._request.is_repair:
            last = self._last_ns.get(symbol)
            times = rows["time"]
            is_back = np.diff(times, prepend=times[0] if last is None else last) < 0
            if is_back.any():
                raise self._refuse(
                    rows,
                    int(np.argmax(is_back)),
                    "time is before that of the row before; times must increase (--repair sorts them)",
                )
            self._last_ns[symbol] = int(times[-1])
        self._spool.add(symbol, rows)

    def _find_stored(self, symbol: str) -> Manifest | None:
        """Return the manifest of the series as it is stored, None if it is not or will be replaced."""
        request, timeframe = self._request, self._request.timeframe
        try:
            info, path = DirectoryBarStore(request.store).find(symbol, timeframe)
        except SeriesNotFoundError:
            return None
        if info.file_format != PARTITIONED:
            raise AlreadyExistsError(
                f"{path} already holds {symbol} {timeframe}; it was put there by hand and an import does not touch it: "
                "move it away, or choose another --bars-dir",
                metadata={"symbol": symbol, "timeframe": timeframe},
            )
        if request.if_exists is IfExists.REFUSE:
            raise AlreadyExistsError(
                f"{symbol} {timeframe} is already stored in {request.store}; --merge adds the new bars to it, "
                "--replace puts them in its place",
                metadata={"symbol": symbol, "timeframe": timeframe},
            )
        return read_manifest(path) if request.if_exists is IfExists.MERGE else None

    def _stage(self, symbol: str) -> None:
        stored = self._stored[symbol]
        directory = self._staging / symbol
        directory.mkdir()
        old_parts = {part.year: part for part in stored.parts} if stored else {}
        new_years = {year for key, year in self._spool.series_years() if key == symbol}
        repairs: Counter[str] = Counter()
        steps: Counter[int] = Counter()
        parts: list[Part] = []
        for year in sorted(new_years | old_parts.keys()):
            previous_ns = parts[-1].last_ns if parts else None
            if year not in new_years and not self._is_overlapped(old_parts[year], previous_ns):
                parts.append(old_parts[year])
                continue
            rows = self._spool.take(symbol, year)
            if year in old_parts:
                rows = np.concatenate([self._stored_rows(symbol, old_parts[year]), rows])
            if self._request.is_repair:
                rows = repair_rows(rows, self._timeframe, previous_ns, repairs)
            else:
                rows = check_rows(rows, self._timeframe, previous_ns, self._refuse)
            if not len(rows):
                continue
            times = np.ascontiguousarray(rows["time"])
            _count_steps(times, previous_ns, steps)
            parts.append(write_part(directory, times, columns_of(rows)))
        if not parts:
            raise refuse_file(self._layouts[0].path, f"leaves no bar of {symbol} after repair; nothing was imported")
        manifest = Manifest(symbol, self._request.timeframe, tuple(parts))
        step_ns = self._check_step(symbol, manifest, steps)
        self._staged.add(
            directory,
            manifest,
            ImportedSeries(
                symbol=symbol,
                timeframe=self._request.timeframe,
                num_bars=manifest.num_bars,
                num_stored_before=stored.num_bars if stored else 0,
                first_time=time_text(parts[0].first_ns),
                last_time=time_text(parts[-1].last_ns),
                usual_step=duration_text(step_ns),
                repairs=dict(repairs),
            ),
        )

    def _is_overlapped(self, part: Part, previous_ns: int | None) -> bool:
        """Return whether a stored year begins before the year before has closed, so that it needs a look."""
        return previous_ns is not None and part.first_ns - previous_ns < self._timeframe.duration_ns

    def _stored_rows(self, symbol: str, part: Part) -> RowArray:
        import pyarrow as pa

        path = self._request.store / f"{symbol}_{self._request.timeframe}" / part.file
        try:
            table = read_parquet_range(path, ("time",), *ALL_TIMES, page_checksum_verification=True)
            times = to_numpy(table.column("time").cast(pa.int64()))
            values = np.stack([to_numpy(table.column(name)) for name in BAR_COLUMNS], axis=1)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise refuse_file(path, "is damaged; import the whole series again with --replace") from error
        return make_rows(times, values, np.arange(1, len(times) + 1), STORED)

    def _check_step(self, symbol: str, manifest: Manifest, steps: Counter[int]) -> int:
        """Return the most common step; refuse it where it is another timeframe's."""
        if not steps:
            return self._timeframe.duration_ns
        step_ns = steps.most_common(1)[0][0]
        # Days and weeks that begin at a local midnight are an hour shorter or longer twice a year.
        slack_ns = 0 if self._timeframe.duration_ns < DAY_NS else DAY_NS // 4
        if manifest.num_bars >= _NUM_BARS_FOR_STEP and abs(step_ns - self._timeframe.duration_ns) > slack_ns:
            raise InvalidBarsError(
                f"{symbol}: the most common step between bars is {duration_text(step_ns)}, not "
                f"{self._timeframe}; give the --timeframe the bars have",
                field="--timeframe",
            )
        return step_ns

    def _refuse(self, rows: RowArray, index: int, reason: str) -> InvalidBarsError:
        file, row = int(rows["file"][index]), int(rows["row"][index])
        time = time_text(int(rows["time"][index]))
        if file == STORED:
            return InvalidBarsError(
                f"stored bar of {time}: {reason}; import the whole series again with --replace", field="bars"
            )
        return refuse_file(self._layouts[file].path, reason, row, time)


def _count_steps(times_T: IntArray, previous_ns: int | None, steps: Counter[int]) -> None:
    found = np.diff(times_T) if previous_ns is None else np.diff(times_T, prepend=previous_ns)
    lengths, counts = np.unique(found, return_counts=True)
    steps.update(dict(zip(lengths.tolist(), counts.tolist(), strict=True)))
