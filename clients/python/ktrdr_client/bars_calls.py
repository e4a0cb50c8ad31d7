"""The bars' part of the client: everything of MarketDataService."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.data.v1 import import_mode_pb2, market_data_service_pb2, market_data_service_pb2_grpc

from ktrdr_client import decode
from ktrdr_client.bars_types import ImportMode, Series
from ktrdr_client.calls import call_unary
from ktrdr_core.errors import CorruptDataError, InvalidInputError, NoSlotError, UnavailableError
from ktrdr_core.rpc.bars_fetch import RETRY_DELAYS_S, fetch_bars
from ktrdr_core.rpc.bars_messages import import_messages
from ktrdr_core.rpc.channel import open_sync_channel
from ktrdr_core.rpc.client_stream import send_stream

if TYPE_CHECKING:
    from ktrdr_core.rpc.channel_security import ChannelSecurity

MAX_BARS_FILE_BYTES = 8 << 30
_SERIES_PAGE_SIZE = 1_000
_WHOLE_SERIES_TIMEOUT_S = 120.0  # reads a series, where it is not known what is in it
_IMPORT_TIMEOUT_S = 900.0  # others may be stored before
_MODES = {mode: import_mode_pb2.ImportMode.Value(f"IMPORT_MODE_{mode.name}") for mode in ImportMode}


class BarsCalls:
    """Methods of AsyncClient."""

    _market_data: market_data_service_pb2_grpc.MarketDataServiceAsyncStub
    _timeout_s: float
    _security: ChannelSecurity | None
    address: str

    async def list_series(self, *, symbol: str = "") -> list[Series]:
        """Return the series of the backend's store by symbol and timeframe, without parts; `symbol` "" means all.

        What the backend does not know without reading the bars is 0 or None.
        """
        found: list[Series] = []
        token = ""
        while True:
            request = market_data_service_pb2.ListSeriesRequest(
                symbol=symbol, page_size=_SERIES_PAGE_SIZE, page_token=token
            )
            response = await call_unary(self._market_data.ListSeries, request, timeout_s=self._timeout_s)
            found.extend(decode.series(each) for each in response.series)
            token = response.next_page_token
            if not token:
                return found

    async def get_series(self, symbol: str, timeframe: str) -> Series:
        """Return one series with its parts and its digest.

        Raises:
            SeriesNotFoundError: There is none.
            InvalidBarsError: The bars the backend has break a rule of the data.
        """
        response = await call_unary(
            self._market_data.GetSeries,
            market_data_service_pb2.GetSeriesRequest(symbol=symbol, timeframe=timeframe),
            timeout_s=max(self._timeout_s, _WHOLE_SERIES_TIMEOUT_S),
        )
        return decode.series(response.series)

    async def get_bars(
        self,
        symbol: str,
        timeframe: str,
        path: Path,
        *,
        start: date | None = None,
        end: date | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Series:
        """Fetch bars into a Parquet file, verified and durable, and return what is in it.

        A broken stream is gone on with.

        Args:
            symbol, timeframe: Which series.
            path: Where the file goes; one that is there is replaced.
            start: First day, UTC; None: from the first bar.
            end: Last day, UTC; None: to the last bar.
            progress: Told, at first and after each piece, how many bytes are here and how many there will be (0: not
                known yet).

        Raises:
            SeriesNotFoundError: There is no such series.
            InvalidInputError: It has no bars on these days.
            SeriesChangedError: It was replaced again and again while it was fetched.
            CorruptDataError: It arrived broken, twice.
            StorageError: The disk here takes no writes.
        """
        request = market_data_service_pb2.GetBarsRequest(symbol=symbol, timeframe=timeframe)
        if start is not None:
            request.start_time.CopyFrom(_day_start(start))
        if end is not None:
            request.end_time.CopyFrom(_before(_day_start(end + timedelta(days=1))))
        fetched = await fetch_bars(
            self._market_data.GetBars, request, path, max_size_bytes=MAX_BARS_FILE_BYTES, on_bytes=progress
        )
        return decode.series(fetched.series)

    async def import_bars(
        self,
        path: Path,
        *,
        symbol: str | None = None,
        timeframe: str | None = None,
        mode: ImportMode = ImportMode.CREATE,
    ) -> Series:
        """Store bars in the backend, whole or not at all, and return the series as it is then.

        A broken stream is sent again from the start, after 1, 2, 4 and 8 s. Bars that are stored already, exactly
        these, are a success.

        Args:
            path: Parquet file with the columns time (with a zone), open, high, low, close, volume; or the directory of
                an imported series.
            symbol, timeframe: Whose bars they are; None: as the name says, `EURUSD_1h.parquet`.
            mode: What to do where the backend has the series.

        Raises:
            InvalidBarsError: The bars break a rule of the data; row and reason are named.
            AlreadyExistsError: The backend has the series, or other bars of the same time, and `mode` does not allow
                that.
            QuotaExceededError: The file is larger than the backend takes.
        """
        named_symbol, _, named_timeframe = path.name.removesuffix(".parquet").rpartition("_")
        symbol, timeframe = symbol or named_symbol, timeframe or named_timeframe
        if not (symbol and timeframe):
            raise InvalidInputError(
                f"symbol and timeframe are needed: {path.name} does not say them as EURUSD_1h.parquet does",
                field="symbol",
            )
        with tempfile.TemporaryDirectory(prefix="ktrdr-bars-") as directory:
            if await asyncio.to_thread(path.is_dir):
                joined = Path(directory) / f"{path.name}.parquet"
                await asyncio.to_thread(_join, path, joined)
                path = joined
            for delay_s in (*RETRY_DELAYS_S, None):
                try:
                    return await self._send_bars(path, symbol, timeframe, mode)
                except (UnavailableError, CorruptDataError, NoSlotError) as error:
                    if delay_s is None:
                        raise
                    pause_s = max(delay_s, error.retry_after_s) if isinstance(error, NoSlotError) else delay_s
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _send_bars(self, path: Path, symbol: str, timeframe: str, mode: ImportMode) -> Series:
        with open_sync_channel(self.address, self._security) as channel:
            stub = market_data_service_pb2_grpc.MarketDataServiceStub(channel)
            try:
                response: market_data_service_pb2.ImportBarsResponse = await send_stream(
                    stub.ImportBars,
                    import_messages(path, symbol=symbol, timeframe=timeframe, mode=_MODES[mode]),
                    what="bars",
                    commit_timeout_s=_IMPORT_TIMEOUT_S,
                )
            except OSError as error:
                raise InvalidInputError(
                    f"{path} cannot be read: {error.strerror}; check the path", field="path"
                ) from error
        return decode.series(response.series)


def _day_start(day: date) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(datetime.combine(day, time(), UTC))
    return message


def _before(moment: Timestamp) -> Timestamp:
    """Return the last nanosecond before a whole second."""
    return Timestamp(seconds=moment.seconds - 1, nanos=10**9 - 1)


def _join(series: Path, target: Path) -> None:
    """Write the bars of an imported series to one Parquet file."""
    from ktrdr_core.data.bar_store import DirectoryBarStore
    from ktrdr_core.data.parquet_bars import encode_range
    from ktrdr_core.data.partitions import ALL_TIMES, read_manifest
    from ktrdr_core.data.series_parts import SeriesSnapshots

    series = series.resolve()
    manifest = read_manifest(series)
    snapshots = SeriesSnapshots(DirectoryBarStore(series.parent), target.parent)
    with snapshots.open(manifest.symbol, manifest.timeframe) as opened, target.open("w+b") as file:
        encode_range(opened.files, file, *ALL_TIMES)
