"""Services that later versions fill; nothing here pretends."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from ktrdr.data.v1 import market_data_service_pb2 as data_pb
from ktrdr.data.v1 import market_data_service_pb2_grpc

from ktrdr_core.errors import NotBuiltError

Context = grpc.aio.ServicerContext[Any, Any]


class MarketDataServicer(market_data_service_pb2_grpc.MarketDataServiceServicer):
    """Bars are files in the bars directory in this version."""

    async def ListSeries(self, request: data_pb.ListSeriesRequest, context: Context) -> data_pb.ListSeriesResponse:
        raise NotBuiltError("ListSeries is not built in this version; look into the bars directory, see GetConfig")

    async def GetBars(
        self, request: data_pb.GetBarsRequest, context: Context
    ) -> AsyncIterator[data_pb.GetBarsResponse]:
        raise NotBuiltError("GetBars is not built in this version; give trainers a bars directory of their own")
        yield data_pb.GetBarsResponse()  # makes this a generator, as the service wants

    async def ImportBars(
        self, request_iterator: AsyncIterator[data_pb.ImportBarsRequest], context: Context
    ) -> data_pb.ImportBarsResponse:
        raise NotBuiltError("ImportBars is not built in this version; put SYMBOL_TIMEFRAME.csv into the bars directory")
