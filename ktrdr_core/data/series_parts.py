"""A series as parts that travel and are kept on their own: one Parquet file a year, named by its digest.

An imported series is made of such parts. Of a file that someone put into the store by hand, parts are made once, kept
aside, and made again when the file changes.
"""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from ktrdr_core.data.bar_store import PARTITIONED, DirectoryBarStore
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.data.durable import fsync_directory, write_durably
from ktrdr_core.data.files import load_bars
from ktrdr_core.data.parquet_bars import file_digest
from ktrdr_core.data.partitions import (
    ALL_TIMES,
    Manifest,
    Part,
    damaged_parts,
    read_manifest,
    remove_unnamed,
    write_manifest,
    write_part,
)
from ktrdr_core.data.row_spool import years_of
from ktrdr_core.errors import InvalidBarsError, StorageError, UnavailableError

SOURCE_FILE = "source.json"
_NUM_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class SeriesSnapshot:
    """A series as it is at one moment.

    Attributes:
        symbol, timeframe: Which one.
        parts: What it is made of, in order of time; at least one.
        directory: Where the parts' files are. A later import removes those it replaces.
    """

    symbol: str
    timeframe: str
    parts: tuple[Part, ...]
    directory: Path

    @property
    def num_bars(self) -> int:
        return sum(part.num_bars for part in self.parts)

    @property
    def first_ns(self) -> int:
        return self.parts[0].first_ns

    @property
    def last_ns(self) -> int:
        return self.parts[-1].last_ns

    def between(self, first_ns: int, last_ns: int) -> tuple[Part, ...]:
        """Return the parts that may have bars which open in [first_ns, last_ns]."""
        return tuple(part for part in self.parts if part.first_ns <= last_ns and part.last_ns >= first_ns)


class OpenParts:
    """Parts of a series whose files are open: an import that replaces the series does not disturb their reader.

    Attributes:
        snapshot: The series.
        parts: The parts that are open.
        files: Their files, checked against their digests; they belong to one reader at a time.
    """

    def __init__(self, snapshot: SeriesSnapshot, parts: tuple[Part, ...], files: tuple[BinaryIO, ...]) -> None:
        self.snapshot = snapshot
        self.parts = parts
        self.files = files
        self._given: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def give_away(self, index: int) -> BinaryIO:
        """Return one of the files; from now on it is the caller's, who closes it."""
        file = self.files[index]
        self._given.add(index)
        return file

    def close(self) -> None:
        """Close the files that were not given away."""
        for index, file in enumerate(self.files):
            if index not in self._given:
                file.close()


class SeriesSnapshots:
    """Takes snapshots of the series of a store. Blocking; threads may share it.

    Args:
        bar_store: The store.
        cache_dir: Where parts of CSV and Parquet files are kept; made if missing.
    """

    def __init__(self, bar_store: DirectoryBarStore, cache_dir: Path) -> None:
        self._bar_store = bar_store
        self._cache_dir = cache_dir
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._sound: dict[str, tuple[_Source, tuple[Part, ...]]] = {}

    def take(self, symbol: str, timeframe: str) -> SeriesSnapshot:
        """Return a series as it is now.

        Raises:
            SeriesNotFoundError: There is no such series; those that exist are named.
            InvalidInputError: `symbol` or `timeframe` is none.
            InvalidBarsError: Its bars break a rule of the data, or its files are damaged.
            UnavailableError: Its file changes all the time.
            StorageError: Its parts cannot be kept.
        """
        info, path = self._bar_store.find(symbol, timeframe)
        if info.file_format == PARTITIONED:
            return SeriesSnapshot(symbol, timeframe, read_manifest(path).parts, path)
        directory = self._cache_dir / f"{symbol}_{timeframe}"
        with self._lock(directory.name):
            parts = self._keep_parts(directory, path, symbol, timeframe)
        return SeriesSnapshot(symbol, timeframe, parts, directory)

    def open(self, symbol: str, timeframe: str, first_ns: int = ALL_TIMES[0], last_ns: int = ALL_TIMES[1]) -> OpenParts:
        """Take a snapshot and open those of its parts that may have bars which open in [first_ns, last_ns].

        Raises:
            See `take`; InvalidBarsError also where a file is missing or differs from its digest.
        """
        problem = ""
        for _ in range(_NUM_ATTEMPTS):
            snapshot = self.take(symbol, timeframe)
            parts = snapshot.between(first_ns, last_ns)
            with ExitStack() as opened:
                try:
                    files = tuple(opened.enter_context((snapshot.directory / part.file).open("rb")) for part in parts)
                except FileNotFoundError as error:  # replaced since the snapshot was taken
                    problem = f"{Path(error.filename).name} is missing"
                    continue
                differing = [
                    part.file for part, file in zip(parts, files, strict=True) if file_digest(file) != part.sha256
                ]
                if not differing:
                    opened.pop_all()
                    return OpenParts(snapshot, parts, files)
                problem = f"{differing[0]} differs from its digest"
            with self._guard:
                self._sound.pop(snapshot.directory.name, None)  # parts that were made here are made again
        raise InvalidBarsError(
            f"{symbol} {timeframe} is damaged: {problem}; import the series again in the place of the stored one",
            field="bars",
            metadata={"symbol": symbol, "timeframe": timeframe},
        )

    def remove_stale(self) -> None:
        """Remove kept parts of files that are gone."""
        if not self._cache_dir.is_dir():
            return
        files = {
            f"{info.symbol}_{info.timeframe}"
            for info in self._bar_store.list_series()
            if info.file_format != PARTITIONED
        }
        for directory in self._cache_dir.iterdir():
            if directory.name not in files:
                with self._lock(directory.name):
                    shutil.rmtree(directory, ignore_errors=True)

    def _lock(self, name: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())

    def _keep_parts(self, directory: Path, path: Path, symbol: str, timeframe: str) -> tuple[Part, ...]:
        """Return the parts of the file at `path`, made if they are not kept in `directory` sound and of this file."""
        for _ in range(_NUM_ATTEMPTS):
            source = _Source.of(path)
            parts = self._find_kept(directory, source)
            if parts is None:
                bars = load_bars(path, symbol=symbol, timeframe=timeframe)
                if _Source.of(path) != source:
                    continue
                try:
                    parts = _write_parts(directory, bars, source)
                except OSError as error:
                    raise StorageError(
                        f"the parts of {path.name} cannot be kept in {directory}: {error}; free space there"
                    ) from error
            with self._guard:
                self._sound[directory.name] = (source, parts)
            return parts
        raise UnavailableError(f"{path.name} is being written to; try again once it is whole")

    def _find_kept(self, directory: Path, source: _Source) -> tuple[Part, ...] | None:
        """Return the parts kept of exactly this file; None if they are not, not all there, or damaged."""
        with self._guard:
            known = self._sound.get(directory.name)
        if known is not None and known[0] == source:
            parts = known[1]
            return parts if all(_has_size(directory / part.file, part.size_bytes) for part in parts) else None
        try:
            if json.loads((directory / SOURCE_FILE).read_bytes()) != asdict(source):
                return None
            manifest = read_manifest(directory)
        except (OSError, ValueError):  # InvalidBarsError is one
            return None
        return None if damaged_parts(directory, manifest) else manifest.parts


@dataclass(frozen=True, slots=True)
class _Source:
    """Which file, in which state, parts were made of."""

    file: str
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        found = path.stat()
        return cls(path.name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _write_parts(directory: Path, bars: Bars, source: _Source) -> tuple[Part, ...]:
    """Write the parts of `bars`, then what they are made of: without it they do not count."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SOURCE_FILE).unlink(missing_ok=True)
    fsync_directory(directory)
    years = years_of(bars.times)
    first = np.concatenate([[0], np.flatnonzero(np.diff(years)) + 1])
    parts: list[Part] = []
    for start, stop in zip(first.tolist(), [*first[1:].tolist(), len(bars)], strict=True):
        rows = bars.rows(slice(start, stop))
        columns = {name: getattr(rows, name) for name in BAR_COLUMNS}
        parts.append(write_part(directory, rows.times, columns))
    manifest = Manifest(bars.symbol, bars.timeframe, tuple(parts))
    write_manifest(directory, manifest)
    remove_unnamed(directory, manifest)
    write_durably(directory / SOURCE_FILE, json.dumps(asdict(source)).encode())
    return manifest.parts


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False
