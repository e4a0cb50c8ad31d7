"""Fetches a file of bars over as many streams as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from ktrdr.data.v1.market_data_service_pb2 import GetBarsRequest, GetBarsResponse
from ktrdr.data.v1.series_pb2 import Series

from ktrdr_core.errors import (
    CancellationError,
    CorruptDataError,
    InvalidInputError,
    InvalidUploadError,
    KtrdrError,
    SeriesChangedError,
    StorageError,
    UnavailableError,
)
from ktrdr_core.rpc.bars_file import ArrivingFile, check_announced
from ktrdr_core.rpc.bars_messages import IDLE_TIMEOUT_S
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.undisturbed import in_thread

RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
PARTIAL_SUFFIX = ".part"
_NUM_WRONG_DIGESTS = 2
_NUM_CHANGES = 3
GetBars = Callable[[GetBarsRequest], "grpc.aio.UnaryStreamCall[GetBarsRequest, GetBarsResponse]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedBars:
    """A file of bars that was fetched and verified.

    Attributes:
        series: What is in it: symbol, timeframe, number of bars, times and digest.
        size_bytes: Its size.
        sha256: Its digest, hex.
        num_fetched_bytes: Bytes that came over the wire for it.
    """

    series: Series
    size_bytes: int
    sha256: str
    num_fetched_bytes: int


async def fetch_bars(
    get_bars: GetBars,
    request: GetBarsRequest,
    path: Path,
    *,
    max_size_bytes: int,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    delays_s: Sequence[float] = RETRY_DELAYS_S,
    on_bytes: Callable[[int, int], None] | None = None,
) -> FetchedBars:
    """Fetch bars into a Parquet file: it is there whole, verified and durable, or not at all.

    What has come is kept beside it, `<name>.part`. A broken stream goes on there; so does a later call, where
    `request.sha256` says which bytes they must be.

    Args:
        get_bars: The method of a stub.
        request: Which bars; with `sha256` exactly this file.
        path: Where the file goes; one that is there is replaced.
        max_size_bytes: Largest that is taken.
        idle_timeout_s: How long the other side may send nothing; there is no limit on the total.
        delays_s: Pauses before it is asked again; they begin anew after a try that brought bytes.
        on_bytes: Told, at first and after each message, how many bytes are here and how many there will be; 0 while
            that is not known.

    Raises:
        SeriesChangedError: The bytes are not those of `request.sha256` any more; or, without one, the series changed
            again and again.
        QuotaExceededError: The file is larger than allowed.
        CorruptDataError: The whole differs from its digest, also when it is fetched again.
        StorageError: The disk takes no writes.
        KtrdrError: What the other side answered.
    """
    fetch = _Fetch(get_bars, request, path, max_size_bytes, idle_timeout_s, on_bytes)
    try:
        return await fetch.run(delays_s)
    except OSError as error:
        raise StorageError(f"the bars cannot be written to {path.parent}: {error}; free space there") from error
    finally:
        await fetch.end()


class _Fetch:
    """One file that is fetched, over as many streams as it takes."""

    def __init__(
        self,
        get_bars: GetBars,
        request: GetBarsRequest,
        path: Path,
        max_size_bytes: int,
        idle_timeout_s: float,
        on_bytes: Callable[[int, int], None] | None,
    ) -> None:
        self.file = ArrivingFile(path.with_name(path.name + PARTIAL_SUFFIX), max_size_bytes=max_size_bytes)
        self._get_bars = get_bars
        self._request = GetBarsRequest()
        self._request.CopyFrom(request)
        self._is_pinned = bool(request.sha256)
        self._path = path
        self._max_size_bytes = max_size_bytes
        self._idle_timeout_s = idle_timeout_s
        self._on_bytes = on_bytes
        self._num_fetched = 0

    async def run(self, delays_s: Sequence[float]) -> FetchedBars:
        await in_thread(self.file.resume if self._is_pinned else self.file.restart)
        self._tell(0)
        delays, num_wrong, num_changes = iter(delays_s), 0, 0
        while True:
            before = self._num_fetched
            problem: KtrdrError
            try:
                first = await self._stream()
                return await self._finish(first)
            except _BrokenOffError as error:
                problem = error.problem
                if self._num_fetched > before:
                    delays = iter(delays_s)
            except SeriesChangedError:
                num_changes += 1
                if self._is_pinned or num_changes == _NUM_CHANGES:
                    raise
                self._request.sha256 = b""
                await in_thread(self.file.restart)
                continue
            except CorruptDataError:
                num_wrong += 1
                await in_thread(self.file.restart)
                if num_wrong == _NUM_WRONG_DIGESTS:
                    await in_thread(self.file.remove)
                    raise
                continue
            delay_s = next(delays, None)
            if delay_s is None:
                raise problem
            await asyncio.sleep(delay_s)

    async def end(self) -> None:
        """Close the file of what has come, and remove it if that is nothing, or a later call could not tell what."""
        is_of_use = self._is_pinned and self.file.size_bytes
        await in_thread(self.file.abandon if is_of_use else self.file.remove)

    async def _stream(self) -> GetBarsResponse:
        """Take one stream to its end; return what its first response says."""
        self._request.read_offset = self.file.size_bytes
        call = self._get_bars(self._request)
        first: GetBarsResponse | None = None
        try:
            responses = aiter(call)
            while (response := await self._next(responses)) is not None:
                if first is None:
                    first = response
                    self._check_first(first)
                try:
                    await in_thread(self.file.write, response)
                except (CorruptDataError, InvalidUploadError) as error:
                    problem: KtrdrError = CorruptDataError(f"the bars came broken: {error.message}")
                    raise _BrokenOffError(problem) from error
                self._num_fetched += len(response.data)
                self._tell(first.total_size_bytes)
        except grpc.RpcError as error:
            problem = from_rpc_error(error)
            if isinstance(problem, UnavailableError | CancellationError):
                raise _BrokenOffError(_unavailable(problem)) from error
            if isinstance(problem, InvalidInputError) and self._request.read_offset:
                raise CorruptDataError(f"what has come of the bars is not theirs: {problem.message}") from error
            raise problem from None
        finally:
            call.cancel()  # nothing, if it has ended
        if first is None:
            raise _BrokenOffError(UnavailableError("the bars ended before they began; ask again"))
        return first

    async def _next(self, responses: AsyncIterator[GetBarsResponse]) -> GetBarsResponse | None:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await anext(responses, None)
        except TimeoutError as error:
            problem = UnavailableError(f"the other side sent no bars for {self._idle_timeout_s:g} s; ask again")
            raise _BrokenOffError(problem) from error

    def _check_first(self, first: GetBarsResponse) -> None:
        check_announced(first.total_size_bytes, first.sha256, max_size_bytes=self._max_size_bytes)
        if self._request.sha256 and first.sha256 != self._request.sha256:
            raise SeriesChangedError(
                f"the bars of {self._request.symbol} {self._request.timeframe} must have SHA-256 "
                f"{self._request.sha256.hex()}, the other side has {first.sha256.hex()}"
            )
        self._request.sha256 = first.sha256
        self.file.max_size_bytes = first.total_size_bytes

    def _tell(self, total_size_bytes: int) -> None:
        if self._on_bytes is not None:
            self._on_bytes(self.file.size_bytes, total_size_bytes)

    async def _finish(self, first: GetBarsResponse) -> FetchedBars:
        if self.file.size_bytes < first.total_size_bytes:
            raise _BrokenOffError(UnavailableError("the bars ended before their end; ask again"))
        await in_thread(self.file.verify, first.total_size_bytes, first.sha256)
        await in_thread(self.file.publish, self._path)
        return FetchedBars(
            series=first.series,
            size_bytes=first.total_size_bytes,
            sha256=first.sha256.hex(),
            num_fetched_bytes=self._num_fetched,
        )


class _BrokenOffError(Exception):
    """A stream ended too early; what came of it is kept."""

    def __init__(self, problem: KtrdrError) -> None:
        super().__init__(problem.message)
        self.problem = problem


def _unavailable(problem: KtrdrError) -> KtrdrError:
    """Return the problem as one that may be tried again: a call we did not cancel was cut off by a stopping service."""
    if isinstance(problem, CancellationError):
        return UnavailableError(f"the service stopped while bars were fetched ({problem.message}); ask again")
    return problem
