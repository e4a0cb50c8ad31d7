"""Where bars come from: the port, and a directory of files as its first implementation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ktrdr_core.config.naming import check_name, is_name
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.files import FILE_FORMATS, load_bars
from ktrdr_core.data.timeframe import Timeframe
from ktrdr_core.errors import InvalidBarsError, InvalidInputError, SeriesNotFoundError


@dataclass(frozen=True, slots=True, order=True)
class SeriesInfo:
    """A series that exists; `file_format` is "csv" or "parquet"."""

    symbol: str
    timeframe: str
    file_format: str


class BarStore(Protocol):
    """Serves series of bars."""

    def list_series(self) -> list[SeriesInfo]:
        """Return every series there is, in order of symbol and timeframe."""

    def load(self, symbol: str, timeframe: str) -> Bars:
        """Return a whole series.

        Raises:
            SeriesNotFoundError: There is no such series; those that exist are named.
            InvalidBarsError: Its bars break a rule of the data.
        """


class DirectoryBarStore:
    """A directory of files `<SYMBOL>_<timeframe>.csv` or `.parquet`; files of other names are left alone."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list_series(self) -> list[SeriesInfo]:
        return sorted(self._paths())

    def load(self, symbol: str, timeframe: str) -> Bars:
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
        (path,) = paths.values()
        return load_bars(path, symbol=symbol, timeframe=timeframe)

    def _paths(self) -> dict[SeriesInfo, Path]:
        found: dict[SeriesInfo, Path] = {}
        for path in self._root.iterdir() if self._root.is_dir() else ():
            symbol, _, timeframe = path.stem.rpartition("_")
            file_format = path.suffix.removeprefix(".")
            if file_format in FILE_FORMATS and is_name(symbol) and _is_timeframe(timeframe) and path.is_file():
                found[SeriesInfo(symbol, timeframe, file_format)] = path
        return found

    def _what_exists(self, symbol: str, timeframe: str) -> str:
        series = self.list_series()
        if not series:
            return "it holds no series; put a file such as EURUSD_1h.csv there"
        timeframes = sorted({info.timeframe for info in series if info.symbol == symbol})
        if timeframes:
            return f"{symbol} exists in {', '.join(timeframes)}"
        return "these exist: " + ", ".join(f"{info.symbol} {info.timeframe}" for info in series[:20])


def _is_timeframe(text: str) -> bool:
    try:
        Timeframe.parse(text)
    except InvalidInputError:
        return False
    return True
