"""Takes bars that are sent: bounded, verified, checked in a process of their own, stored whole or not at all."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

from ktrdr.data.v1.market_data_service_pb2 import ImportBarsRequest

from ktrdr_core.config.naming import check_name
from ktrdr_core.data.bars_import import import_in_bounds
from ktrdr_core.data.importer import IfExists
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import (
    DrainingError,
    IllegalStateError,
    InvalidBarsError,
    InvalidInputError,
    InvalidUploadError,
    NoSlotError,
    StorageError,
    UnavailableError,
    WorkerDiedError,
)
from ktrdr_core.execution.child import run_in_child
from ktrdr_core.rpc.bars_file import ArrivingFile, check_announced
from ktrdr_core.rpc.bars_messages import IDLE_TIMEOUT_S
from ktrdr_core.undisturbed import in_thread, undisturbed
from ktrdr_core.wire.market_data import if_exists_from_proto

MAX_IMPORTS = 8
STORE_TIMEOUT_S = 600.0
_RETRY_AFTER_S = 5.0


class BarImports:
    """Receives files of bars; several may arrive at once, they are stored one after another.

    Args:
        bars_dir: The store.
        staging_dir: Where files are until they are checked; on a disk with room for `MAX_IMPORTS` of them.
        max_size_bytes: Largest file that is taken.
        idle_timeout_s: How long a sender may send nothing; there is no limit on the total.
        store_timeout_s: How long the process that checks and stores a file may take.
    """

    def __init__(
        self,
        bars_dir: Path,
        staging_dir: Path,
        *,
        max_size_bytes: int,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        store_timeout_s: float = STORE_TIMEOUT_S,
    ) -> None:
        self._bars_dir = bars_dir
        self._staging_dir = staging_dir
        self._max_size_bytes = max_size_bytes
        self._idle_timeout_s = idle_timeout_s
        self._store_timeout_s = store_timeout_s
        self._num_running = 0
        self._storing = asyncio.Lock()
        self._endings: set[asyncio.Task[None]] = set()

    async def remove_stale(self) -> None:
        """Remove what a killed backend was receiving; nothing may be arriving."""
        await asyncio.to_thread(shutil.rmtree, self._staging_dir, ignore_errors=True)

    async def close(self) -> None:
        """End what is being stored: the store is then as it was before."""
        for ending in tuple(self._endings):
            ending.cancel()
        await asyncio.gather(*self._endings, return_exceptions=True)

    async def receive(self, requests: AsyncIterator[ImportBarsRequest]) -> tuple[str, str]:
        """Take the bars of one call and store them; return symbol and timeframe of the series.

        What has arrived whole is stored or refused although the caller goes away.

        Raises:
            InvalidInputError: What is announced, or a message, breaks the contract.
            InvalidBarsError: The bars break a rule of the data; the row is named.
            AlreadyExistsError: The mode does not allow what is stored to stay or go.
            CorruptDataError: A checksum differs.
            QuotaExceededError: The file is too large.
            NoSlotError: `MAX_IMPORTS` others are under way.
            UnavailableError: Nothing came for too long, or another process imports into the store.
            StorageError: The disk takes no writes.
        """
        first = await self._next(requests)
        if first is None:
            raise InvalidUploadError("an import begins with what its bars are; none came", field="series")
        check_name(first.series.symbol, field="series.symbol", what="symbol", error_class=InvalidInputError)
        Timeframe.parse(first.series.timeframe, field="series.timeframe")
        if_exists = if_exists_from_proto(first.mode)
        check_announced(first.total_size_bytes, first.sha256, max_size_bytes=self._max_size_bytes)
        if self._num_running >= MAX_IMPORTS:
            raise NoSlotError(
                f"{MAX_IMPORTS} imports of bars are under way; send this one again in a moment",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._num_running += 1
        symbol, timeframe = first.series.symbol, first.series.timeframe
        path = self._staging_dir / uuid4().hex / f"{symbol}_{timeframe}.parquet"
        is_handed_over = False
        try:
            await self._take(first, requests, path)
            is_handed_over = True
            await undisturbed(self._store(path, symbol, timeframe, if_exists), self._endings)
        finally:
            if not is_handed_over:
                await self._end(path)
        return symbol, timeframe

    async def _take(self, first: ImportBarsRequest, requests: AsyncIterator[ImportBarsRequest], path: Path) -> None:
        """Write the bytes of a call to `path`, verified."""
        file = ArrivingFile(path, max_size_bytes=first.total_size_bytes)
        try:
            await in_thread(path.parent.mkdir, parents=True)
            await in_thread(file.restart)
            message: ImportBarsRequest | None = first
            while message is not None:
                await in_thread(file.write, message)
                message = await self._next(requests)
            file.verify(first.total_size_bytes, first.sha256)
            await in_thread(file.close)
        except OSError as error:
            raise StorageError(
                f"the bars cannot be written to {self._staging_dir}: {error}; free space there"
            ) from error
        finally:
            await in_thread(file.abandon)

    async def _next(self, requests: AsyncIterator[ImportBarsRequest]) -> ImportBarsRequest | None:
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await anext(requests, None)
        except TimeoutError as error:
            raise UnavailableError(
                f"no bars came for {self._idle_timeout_s:g} s; nothing was stored, send them again from the start"
            ) from error

    async def _store(self, path: Path, symbol: str, timeframe: str, if_exists: IfExists) -> None:
        try:
            async with self._storing:
                # A child: whatever the bytes do to what reads them, the backend lives on.
                await run_in_child(
                    import_in_bounds,
                    path,
                    self._bars_dir,
                    symbol,
                    timeframe,
                    if_exists,
                    timeout_s=self._store_timeout_s,
                )
        except asyncio.CancelledError:  # by `close` alone: who asked for it cannot reach it
            raise DrainingError("the backend stopped before the bars were stored; send them again") from None
        except IllegalStateError as error:
            raise UnavailableError(f"{error.message}; send the bars again in a moment") from error
        except WorkerDiedError as error:
            raise InvalidBarsError(
                f"{path.name}: what reads it did not survive it ({error.message}); write it anew", field="file"
            ) from error
        finally:
            await self._end(path)

    async def _end(self, path: Path) -> None:
        self._num_running -= 1
        await in_thread(shutil.rmtree, path.parent, ignore_errors=True)
