"""MarketDataService: from proto, one call, to proto."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from ktrdr.data.v1 import market_data_service_pb2 as pb
from ktrdr.data.v1 import market_data_service_pb2_grpc

from backend_service.market_data import MarketData
from ktrdr_core.rpc.bars_messages import IDLE_TIMEOUT_S, send_file

Context = grpc.aio.ServicerContext[Any, Any]


class MarketDataServicer(market_data_service_pb2_grpc.MarketDataServiceServicer):
    """The contract is in `market_data_service.proto`."""

    def __init__(self, market_data: MarketData, *, idle_timeout_s: float = IDLE_TIMEOUT_S) -> None:
        self._market_data = market_data
        self._idle_timeout_s = idle_timeout_s

    async def ListSeries(self, request: pb.ListSeriesRequest, context: Context) -> pb.ListSeriesResponse:
        series, token = await self._market_data.list_series(
            symbol=request.symbol, page_size=request.page_size, page_token=request.page_token
        )
        return pb.ListSeriesResponse(series=series, next_page_token=token)

    async def GetSeries(self, request: pb.GetSeriesRequest, context: Context) -> pb.GetSeriesResponse:
        return pb.GetSeriesResponse(series=await self._market_data.series(request.symbol, request.timeframe))

    # The types know only the form that yields; the one that writes can tell how long a write takes.
    async def GetBars(self, request: pb.GetBarsRequest, context: Context) -> None:  # type: ignore[override]
        async with self._market_data.open_range(request) as found:
            first = pb.GetBarsResponse(
                series=found.series,
                offset=request.read_offset,
                total_size_bytes=found.size_bytes,
                sha256=found.sha256,
            )
            await send_file(context.write, found.file, first, idle_timeout_s=self._idle_timeout_s)

    async def ImportBars(
        self, request_iterator: AsyncIterator[pb.ImportBarsRequest], context: Context
    ) -> pb.ImportBarsResponse:
        return pb.ImportBarsResponse(series=await self._market_data.import_bars(request_iterator))
