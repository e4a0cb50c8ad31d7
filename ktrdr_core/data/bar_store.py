"""Where bars come from: the port, and a directory of files as its first implementation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Protocol

from ktrdr_core.config.naming import check_name, is_name
from ktrdr_core.data.bars import Bars, day_of
from ktrdr_core.data.files import FILE_FORMATS, load_bars, parquet_facts
from ktrdr_core.data.partitions import MANIFEST, load_partitions, read_manifest
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidBarsError, InvalidInputError, SeriesNotFoundError

PARTITIONED = "partitioned"


@dataclass(frozen=True, slots=True, order=True)
class SeriesInfo:
    """A series that exists.

    Attributes:
        symbol, timeframe: Which one.
        file_format: "csv" or "parquet" (one file), or "partitioned" (imported: one Parquet file a year).
        num_bars: How many bars there are; None where it is not known without reading them (CSV files).
        first_ns, last_ns: Open times of the first and the last one, ns since 1970; None likewise.
    """

    symbol: str
    timeframe: str
    file_format: str
    num_bars: int | None = field(default=None, compare=False)
    first_ns: int | None = field(default=None, compare=False)
    last_ns: int | None = field(default=None, compare=False)

    @property
    def first_day(self) -> date | None:
        return None if self.first_ns is None else day_of(self.first_ns)

    @property
    def last_day(self) -> date | None:
        return None if self.last_ns is None else day_of(self.last_ns)


class BarStore(Protocol):
    """Serves series of bars."""

    def list_series(self) -> list[SeriesInfo]:
        """Return every series there is, in order of symbol and timeframe."""

    def load(self, symbol: str, timeframe: str, start: date | None = None, end: date | None = None) -> Bars:
        """Return the bars of a series that open on days `start` to `end`, both included, UTC; None is open-ended.

        They may be none. No more of the series is read than these days need, where its format allows that.

        Raises:
            SeriesNotFoundError: There is no such series; those that exist are named.
            InvalidBarsError: Its bars break a rule of the data.
        """


class DirectoryBarStore:
    """A directory of series; entries of other names are left alone.

    A series is a file `<SYMBOL>_<timeframe>.csv` or `.parquet` that someone put there, or a directory
    `<SYMBOL>_<timeframe>` that an import made (`partitions`).
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def list_series(self) -> list[SeriesInfo]:
        return sorted(_with_facts(info, path) for info, path in self._paths().items())

    def load(self, symbol: str, timeframe: str, start: date | None = None, end: date | None = None) -> Bars:
        info, path = self.find(symbol, timeframe)
        read = load_partitions if info.file_format == PARTITIONED else load_bars
        return read(path, symbol=symbol, timeframe=timeframe, start=start, end=end)

    def find(self, symbol: str, timeframe: str) -> tuple[SeriesInfo, Path]:
        """Return a series and where it is.

        Raises:
            SeriesNotFoundError: There is no such series; those that exist are named.
            InvalidBarsError: There are two.
        """
        check_name(symbol, field="symbol", what="symbol", error_class=InvalidInputError)
        Timeframe.parse(timeframe)
        paths = {
            info: path for info, path in self._paths().items() if (info.symbol, info.timeframe) == (symbol, timeframe)
        }
        if not paths:
            raise SeriesNotFoundError(
                f"no bars for {symbol} {timeframe} in {self._root}; {self._what_exists(symbol, timeframe)}",
                metadata={"symbol": symbol, "timeframe": timeframe},
            )
        if len(paths) > 1:
            names = " and ".join(sorted(path.name for path in paths.values()))
            raise InvalidBarsError(f"{names} both hold {symbol} {timeframe}; remove one", field="bars")
        return next(iter(paths.items()))

    def _paths(self) -> dict[SeriesInfo, Path]:
        found: dict[SeriesInfo, Path] = {}
        for path in self._root.iterdir() if self._root.is_dir() else ():
            file_format = path.suffix.removeprefix(".")
            if file_format in FILE_FORMATS and path.is_file():
                name = path.stem
            elif (path / MANIFEST).is_file():
                name, file_format = path.name, PARTITIONED
            else:
                continue
            symbol, _, timeframe = name.rpartition("_")
            if is_name(symbol) and _is_timeframe(timeframe):
                found[SeriesInfo(symbol, timeframe, file_format)] = path
        return found

    def _what_exists(self, symbol: str, timeframe: str) -> str:
        series = sorted(self._paths())
        if not series:
            return "it holds no series; put a file such as EURUSD_1h.csv there, or import one with `ktrdr data import`"
        timeframes = sorted({info.timeframe for info in series if info.symbol == symbol})
        if timeframes:
            return f"{symbol} exists in {', '.join(timeframes)}"
        return "these exist: " + ", ".join(f"{info.symbol} {info.timeframe}" for info in series[:20])


def _with_facts(info: SeriesInfo, path: Path) -> SeriesInfo:
    """Return the series with what is known of it without reading its bars; a damaged one is listed without."""
    facts: tuple[int, int, int] | None = None
    if info.file_format == PARTITIONED:
        try:
            manifest = read_manifest(path)
        except InvalidBarsError:
            return info
        facts = manifest.num_bars, manifest.parts[0].first_ns, manifest.parts[-1].last_ns
    elif info.file_format == "parquet":
        facts = parquet_facts(path)
    if facts is None:
        return info
    return SeriesInfo(info.symbol, info.timeframe, info.file_format, *facts)


def _is_timeframe(text: str) -> bool:
    try:
        Timeframe.parse(text)
    except InvalidInputError:
        return False
    return True
