"""The backend's bars as other machines see them: lists, snapshots, ranges, imports."""

from __future__ import annotations

import asyncio
import base64
import binascii
import tempfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, ParamSpec, TypeVar

from ktrdr.data.v1.market_data_service_pb2 import GetBarsRequest, ImportBarsRequest
from ktrdr.data.v1.series_pb2 import Series

from backend_service.bar_imports import BarImports
from backend_service.operations.pages import MAX_PAGE_SIZE, check_page_size
from ktrdr_core.config.naming import check_name
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.parquet_bars import BarsFile, bars_digest, encode_range
from ktrdr_core.data.partitions import ALL_TIMES, Part
from ktrdr_core.data.series_parts import OpenParts, SeriesSnapshots
from ktrdr_core.errors import InvalidInputError, SeriesChangedError, StorageError
from ktrdr_core.logging import get_logger
from ktrdr_core.wire.market_data import (
    SHA256_SIZE_BYTES,
    info_to_proto,
    ns_of_time,
    range_to_proto,
    series_to_proto,
)

_log = get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
NUM_THREADS = 2
MAX_DIGESTS = 10_000


@dataclass(frozen=True, slots=True)
class OpenRange:
    """Bars of a range as one open Parquet file.

    Attributes:
        file: Its bytes.
        size_bytes: How many.
        sha256: Their digest.
        series: What is in it.
    """

    file: BinaryIO
    size_bytes: int
    sha256: bytes
    series: Series


class MarketData:
    """What MarketDataService does.

    Args:
        bars_dir: The store of bars.
        cache_dir: Where parts of CSV and Parquet files are kept, and ranges while they are sent.
        imports: Takes the bars that are sent here.
    """

    def __init__(self, bars_dir: Path, cache_dir: Path, imports: BarImports) -> None:
        self._bar_store = DirectoryBarStore(bars_dir)
        self._snapshots = SeriesSnapshots(self._bar_store, cache_dir)
        self._cache_dir = cache_dir
        self._imports = imports
        # Threads of its own: what reads whole series must not hold up what else the service does in threads.
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="market-data")
        self._digests = _Digests(MAX_DIGESTS)

    async def remove_stale(self) -> None:
        """Remove what a killed backend left, and what is kept of files that are gone; at the start only."""
        await self._imports.remove_stale()
        try:
            await self._in_thread(self._snapshots.remove_stale)
        except StorageError as error:  # a backend serves its trainings also where its bars cannot be read
            _log.warning("Bars that are kept of files that are gone were not looked for: %s", error.message)

    async def close(self) -> None:
        """End the imports under way and give the threads back."""
        await self._imports.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def list_series(self, *, symbol: str, page_size: int, page_token: str) -> tuple[list[Series], str]:
        """Return a page of the series, by symbol and timeframe, and the token of the next; "" after the last.

        Raises:
            InvalidInputError: The page size or the token is none.
        """
        size = check_page_size(page_size, default=MAX_PAGE_SIZE)
        after = _decode_token(page_token) if page_token else None
        if symbol:
            check_name(symbol, field="symbol", what="symbol", error_class=InvalidInputError)
        infos = await self._in_thread(self._bar_store.list_series)
        by_name = {(info.symbol, info.timeframe): info for info in infos if symbol in ("", info.symbol)}
        names = sorted(by_name)
        first = 0 if after is None else bisect_right(names, after)
        page = names[first : first + size]
        is_last = first + size >= len(names)
        return [info_to_proto(by_name[name]) for name in page], "" if is_last else _encode_token(page[-1])

    async def series(self, symbol: str, timeframe: str) -> Series:
        """Return a series as it is now, with its parts and its digest; cheap as long as it does not change.

        Raises:
            SeriesNotFoundError: There is no such series; those that exist are named.
            InvalidInputError: `symbol` or `timeframe` is none.
            InvalidBarsError: The bars break a rule of the data, or are damaged.
            UnavailableError: The file changes all the time, or the disk cannot be used.
        """
        return await self._in_thread(self._series, symbol, timeframe)

    @asynccontextmanager
    async def open_range(self, request: GetBarsRequest) -> AsyncIterator[OpenRange]:
        """Open the bars that GetBars asks for; an import meanwhile does not change them.

        Raises:
            See `series`; InvalidInputError also where the range is empty, has no bars, or ends before `read_offset`;
            SeriesChangedError where the bytes are not those of `sha256`.
        """
        opened = await self._in_thread(self._open_range, request)
        try:
            yield opened
        finally:
            opened.file.close()

    async def import_bars(self, requests: AsyncIterator[ImportBarsRequest]) -> Series:
        """Store the bars that ImportBars sends; return the series as it is then.

        Raises:
            See `BarImports.receive` and `series`.
        """
        return await self.series(*await self._imports.receive(requests))

    def _series(self, symbol: str, timeframe: str) -> Series:
        snapshot = self._snapshots.take(symbol, timeframe)
        digest = self._digests.find(symbol, timeframe, snapshot.parts)
        if digest is None:
            with self._snapshots.open(symbol, timeframe) as opened:
                snapshot = opened.snapshot
                digest = self._digests.of(symbol, timeframe, snapshot.parts, opened.files)
        return series_to_proto(snapshot, digest)

    def _open_range(self, request: GetBarsRequest) -> OpenRange:
        wanted = request.sha256
        if wanted and len(wanted) != SHA256_SIZE_BYTES:
            raise InvalidInputError(f"sha256 must be {SHA256_SIZE_BYTES} bytes, was {len(wanted)}", field="sha256")
        first_ns, last_ns = _bounds(request)
        with self._snapshots.open(request.symbol, request.timeframe, first_ns, last_ns) as opened:
            file, found = self._file_of(opened, first_ns, last_ns)
            try:
                if wanted and (found is None or found.sha256 != wanted.hex()):
                    raise SeriesChangedError(
                        f"the bars of {request.symbol} {request.timeframe} that were asked for have changed; ask "
                        "GetSeries for those there are, and begin again",
                        metadata={"symbol": request.symbol, "timeframe": request.timeframe},
                    )
                if found is None:
                    raise InvalidInputError(
                        f"{request.symbol} {request.timeframe} has no bars in this range; ask GetSeries what it has",
                        field="start_time",
                    )
                if not 0 <= request.read_offset <= found.size_bytes:
                    raise InvalidInputError(
                        f"read_offset must be 0 to {found.size_bytes}, was {request.read_offset}", field="read_offset"
                    )
                digest = self._digests.of(request.symbol, request.timeframe, [found], [file])
            except BaseException:  # whatever it is, nobody else can close the file
                file.close()
                raise
        series = range_to_proto(request.symbol, request.timeframe, found, digest)
        return OpenRange(file, found.size_bytes, bytes.fromhex(found.sha256), series)

    def _file_of(self, opened: OpenParts, first_ns: int, last_ns: int) -> tuple[BinaryIO, BarsFile | Part | None]:
        """Return the file of a range: a part, where it is the bars of just this one, else one made for it."""
        if len(opened.parts) == 1:
            (part,) = opened.parts
            if first_ns <= part.first_ns and part.last_ns <= last_ns:
                return opened.give_away(0), part
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        file: BinaryIO = tempfile.TemporaryFile(dir=self._cache_dir)  # noqa: SIM115  # the caller closes it
        try:
            return file, encode_range(opened.files, file, first_ns, last_ns)
        except BaseException:  # whatever it is, nobody else can close the file
            file.close()
            raise

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call in a thread; a caller that is cancelled leaves once it has ended, and nothing of it stays open."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            (outcome,) = await asyncio.gather(future, return_exceptions=True)
            if isinstance(outcome, OpenRange):
                outcome.file.close()
            raise
        except OSError as error:
            raise StorageError(f"the store of bars cannot be used: {error}; see to the disk of the backend") from error


class _Digests:
    """Digests of values by the digests of the files they are in; the latest are kept. Threads may share it.

    Args:
        limit: How many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[str, ...], str] = OrderedDict()
        self._guard = Lock()

    def find(self, symbol: str, timeframe: str, parts: Sequence[Part | BarsFile]) -> str | None:
        """Return the digest of the bars in these files, hex; None if it is not kept."""
        key = (symbol, timeframe, *(part.sha256 for part in parts))
        with self._guard:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def of(self, symbol: str, timeframe: str, parts: Sequence[Part | BarsFile], files: Sequence[BinaryIO]) -> str:
        """Return the digest of the bars in these files, hex, read from them if it is not kept."""
        found = self.find(symbol, timeframe, parts)
        if found is None:
            found = bars_digest(symbol, timeframe, files)
            with self._guard:
                self._kept[(symbol, timeframe, *(part.sha256 for part in parts))] = found
                if len(self._kept) > self._limit:
                    self._kept.popitem(last=False)
        return found


def _bounds(request: GetBarsRequest) -> tuple[int, int]:
    first_ns, last_ns = ALL_TIMES
    if request.HasField("start_time"):
        first_ns = ns_of_time(request.start_time, field="start_time")
    if request.HasField("end_time"):
        last_ns = ns_of_time(request.end_time, field="end_time")
    if first_ns > last_ns:
        raise InvalidInputError("start_time must not be after end_time; exchange them", field="start_time")
    return first_ns, last_ns


def _encode_token(name: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode("_".join(name).encode()).decode()


def _decode_token(token: str) -> tuple[str, str]:
    try:
        symbol, _, timeframe = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").rpartition("_")
    except (binascii.Error, ValueError):
        symbol = timeframe = ""
    if not (symbol and timeframe):
        raise InvalidInputError(
            f"page_token {token[:80]!r} was not made by this service; take it from the page before", field="page_token"
        )
    return symbol, timeframe
