"""Fetches the bars that sessions will read from a backend's MarketDataService into the cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from ktrdr.data.v1 import market_data_service_pb2_grpc

from ktrdr_core.addresses import is_host_port
from ktrdr_core.data.partitions import Manifest, Part
from ktrdr_core.errors import (
    InvalidInputError,
    PermissionDeniedError,
    SeriesChangedError,
    SeriesNotFoundError,
    StorageError,
    UnauthenticatedError,
    UnavailableError,
)
from ktrdr_core.rpc.bars_fetch import fetch_bars
from ktrdr_core.rpc.bars_messages import part_request
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.wire.market_data import part_to_proto
from trainer_service.bar_cache import BarCache, unique_parts

REPORT_S = 0.5
NUM_AT_ONCE = 4
RETRY_DELAYS_S = (0.2, 0.5, 1.0)
"""Waits between tries of a part that bring nothing; then whoever asked may ask again, and what has arrived is kept."""


@dataclass(frozen=True, slots=True)
class BarsReady:
    """How much of what was asked for is in the cache."""

    size_bytes: int
    total_size_bytes: int


@dataclass(slots=True)
class _Flight:
    """Who fetches a part, one after the other."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_waiting: int = 0


class BarFetcher:
    """Fetches parts; one that several ask for at once travels once.

    Args:
        cache: Where they go.
        security: TLS and the token of the way to backends; None is plain text.
    """

    def __init__(self, cache: BarCache, *, security: ChannelSecurity | None = None) -> None:
        self._cache = cache
        self._security = security
        self._flights: dict[str, _Flight] = {}

    async def prepare(self, series: Sequence[Manifest], source: str) -> AsyncGenerator[BarsReady]:
        """Yield, at least each half second, how much of the series is in the cache, until all of it is.

        When the generator is closed nothing goes on; what has arrived is kept.

        Args:
            series: What is wanted.
            source: host:port of the MarketDataService that has it.

        Raises:
            InvalidInputError: `source` is no address, or the series have no place in the cache.
            SeriesChangedError: The source has other bars now.
            UnavailableError: The source cannot be reached, or there is no room now.
            CorruptDataError: What the source sends is not what it announced.
            StorageError: The disk takes no writes.
        """
        if not is_host_port(source):
            raise InvalidInputError(f"source is given as host:port, was {source!r}", field="source")
        if not series:
            raise InvalidInputError("series is empty; name the bars that are wanted, with their parts", field="series")
        self._cache.check_size(series)
        parts = unique_parts(series)
        total_size_bytes = sum(part.size_bytes for part in parts)
        ready: dict[str, int] = dict.fromkeys((part.sha256 for part in parts), 0)
        with self._cache.using(series):
            async with open_channel(source, self._security) as channel:
                fetching = asyncio.create_task(self._fetch_all(series, channel, source, ready))
                try:
                    while not fetching.done():
                        yield BarsReady(sum(ready.values()), total_size_bytes)
                        await asyncio.wait([fetching], timeout=REPORT_S)
                    await fetching
                finally:
                    fetching.cancel()
                    await asyncio.wait([fetching])
        yield BarsReady(total_size_bytes, total_size_bytes)

    async def _fetch_all(
        self, series: Sequence[Manifest], channel: grpc.aio.Channel, source: str, ready: dict[str, int]
    ) -> None:
        stub: Any = market_data_service_pb2_grpc.MarketDataServiceStub(channel)
        wanted = iter({part.sha256: (own, part) for own in series for part in own.parts}.values())

        async def fetch_some(wanted: Iterator[tuple[Manifest, Part]]) -> None:
            for manifest, part in wanted:
                await self._fetch_one(stub, manifest, part, source, ready)

        await _all_or_none([fetch_some(wanted) for _ in range(NUM_AT_ONCE)])

    async def _fetch_one(self, stub: Any, manifest: Manifest, part: Part, source: str, ready: dict[str, int]) -> None:
        def note(size_bytes: int, _total: int) -> None:
            ready[part.sha256] = size_bytes

        async with self._alone(part.sha256):
            if not await self._cache.has(part):
                async with self._cache.room_for(part) as path:
                    with _telling_of(source):
                        await fetch_bars(
                            stub.GetBars,
                            part_request(manifest.symbol, manifest.timeframe, part_to_proto(part)),
                            path,
                            max_size_bytes=part.size_bytes,
                            delays_s=RETRY_DELAYS_S,
                            on_bytes=note,
                        )
        ready[part.sha256] = part.size_bytes

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        """Hold back everyone else who wants the part; whoever goes away lets the next one go on where it stopped."""
        flight = self._flights.setdefault(name, _Flight())
        flight.num_waiting += 1
        try:
            async with flight.lock:
                yield
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting:
                del self._flights[name]


@contextmanager
def _telling_of(source: str) -> Iterator[None]:
    """Have what went wrong on the way to the source tell where that is."""
    try:
        yield
    except StorageError:
        raise
    except (UnavailableError, UnauthenticatedError, PermissionDeniedError) as error:
        raise UnavailableError(
            f"the bars cannot be fetched from {source}: {error.message}; the backend tells trainers its"
            " --advertise-address"
        ) from error
    except SeriesNotFoundError as error:
        raise SeriesChangedError(f"the backend at {source} has these bars no more: {error.message}") from error


async def _all_or_none(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end; the first error ends the others, and is raised as it is once they have ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
