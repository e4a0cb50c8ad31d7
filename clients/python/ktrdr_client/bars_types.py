"""What the client answers about stored bars. Times are timezone-aware, UTC; None means the service left it unset."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ImportMode(StrEnum):
    """What an import does where the backend has the series already."""

    CREATE = "create"
    APPEND = "append"
    REPLACE = "replace"


@dataclass(frozen=True, kw_only=True)
class SeriesPart:
    """Bars of one year (UTC) of a series, as one Parquet file.

    Attributes:
        start_time, end_time: Open times of the first and the last bar.
        num_bars: How many.
        size_bytes: Size of the file.
        sha256: SHA-256 of the file, hex.
    """

    start_time: datetime
    end_time: datetime
    num_bars: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series of bars in the backend's store, or a range of one.

    Attributes:
        symbol, timeframe: Which one.
        num_bars: How many bars; 0 where the backend does not know without reading them.
        start_time, end_time: Open times of the first and the last bar; None likewise.
        digest: SHA-256 of symbol, timeframe and every value, hex; "" likewise.
        parts: What it is made of, in order of time; empty in lists and for ranges.
    """

    symbol: str
    timeframe: str
    num_bars: int
    start_time: datetime | None
    end_time: datetime | None
    digest: str
    parts: tuple[SeriesPart, ...]
