"""A MarketDataService in this process, over a store under a directory of the test's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from ktrdr.data.v1 import market_data_service_pb2 as pb
from ktrdr.data.v1 import market_data_service_pb2_grpc

from backend_service.bar_imports import BarImports
from backend_service.market_data import MarketData
from backend_service.servicers.market_data import MarketDataServicer
from ktrdr_core.errors import KtrdrError
from ktrdr_core.rpc.bars_messages import IDLE_TIMEOUT_S
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.grpc_server import serving


class Market:
    """A running MarketDataService.

    Attributes:
        address: Where it listens.
        stub: Stub on a channel to it.
        bars_dir: Its store.
        parts_dir, imports_dir: What it keeps beside it.
    """

    def __init__(self, directory: Path, **limits: Any) -> None:
        self.bars_dir = directory / "bars"
        self.parts_dir = directory / "state" / "bar-parts"
        self.imports_dir = directory / "state" / "bar-imports"
        self.imports = BarImports(self.bars_dir, self.imports_dir, **{"max_size_bytes": 64 << 20} | limits)
        self.market_data = MarketData(self.bars_dir, self.parts_dir, self.imports)
        self.address = ""
        self.stub: Any = None

    def open_files(self) -> list[str]:
        """Return the files beside its store that are open in this process, also those that have no name any more."""
        found = []
        for path in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(path))
        return [link for link in found if link.startswith((f"{self.parts_dir}/", f"{self.imports_dir}/"))]

    async def series(self, symbol: str, timeframe: str) -> Any:
        request = pb.GetSeriesRequest(symbol=symbol, timeframe=timeframe)
        return (await self.stub.GetSeries(request)).series

    def files_left(self) -> list[Path]:
        """Return the files it keeps beside its store; it may be removing them meanwhile."""
        return files_below(self.parts_dir, self.imports_dir)


def files_below(*directories: Path) -> list[Path]:
    """Return every file; folders may go meanwhile, at which `Path.rglob` raises."""
    return [Path(folder, name) for each in directories for folder, _, names in os.walk(each) for name in names]


@asynccontextmanager
async def running_market(
    directory: Path, *, take_timeout_s: float = IDLE_TIMEOUT_S, **limits: Any
) -> AsyncIterator[Market]:
    """Serve a market whose watchers may take nothing for so long; `limits` are those of `BarImports`."""
    market = Market(directory, **limits)
    servicer = MarketDataServicer(market.market_data, idle_timeout_s=take_timeout_s)
    try:
        async with serving(
            lambda server: market_data_service_pb2_grpc.add_MarketDataServiceServicer_to_server(servicer, server)
        ) as address:
            market.address = address
            async with open_channel(address) as channel:
                market.stub = market_data_service_pb2_grpc.MarketDataServiceStub(channel)
                yield market
    finally:
        await market.market_data.close()


async def refused(call: Awaitable[Any]) -> KtrdrError:
    """Return the error an RPC was refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)
