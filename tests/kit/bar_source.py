"""A store of bars in parts, and the real MarketDataService over it, which counts what it gives and can be held."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ktrdr.data.v1 import market_data_service_pb2 as pb
from ktrdr.data.v1 import market_data_service_pb2_grpc
from ktrdr.data.v1.series_pb2 import Series

from backend_service.bar_imports import BarImports
from backend_service.market_data import MarketData
from backend_service.servicers.market_data import MarketDataServicer
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.data.partitions import Manifest, Part, write_manifest, write_part
from ktrdr_core.data.row_spool import years_of
from tests.kit.grpc_server import serving

HOURS_OF_YEARS = 20_000
"""So many hourly bars of `make_bars` are in three years: three parts."""


def store_bars(directory: Path, bars: Bars) -> Manifest:
    """Write bars into a store as an import does, in the place of those that are there."""
    folder = directory / f"{bars.symbol}_{bars.timeframe}"
    folder.mkdir(parents=True, exist_ok=True)
    years = years_of(bars.times)
    parts: list[Part] = []
    for year in np.unique(years).tolist():
        first, stop = np.searchsorted(years, [year, year + 1]).tolist()
        own = bars.rows(slice(first, stop))
        parts.append(write_part(folder, own.times, {name: getattr(own, name) for name in BAR_COLUMNS}))
    manifest = Manifest(bars.symbol, bars.timeframe, tuple(parts))
    write_manifest(folder, manifest)
    return manifest


class BarSource(MarketDataServicer):
    """The backend's side of a fetch.

    Attributes:
        asked: Symbol, timeframe and `read_offset` of each GetBars.
        num_open: GetBars under way.
        may_give: Clear it to let no GetBars give anything.
        refusal: What GetBars answers instead, if anything.
    """

    def __init__(self, bars_dir: Path, cache_dir: Path) -> None:
        self.market_data = MarketData(
            bars_dir, cache_dir / "parts", BarImports(bars_dir, cache_dir / "imports", max_size_bytes=1 << 30)
        )
        super().__init__(self.market_data)
        self.asked: list[tuple[str, str, int]] = []
        self.num_open = 0
        self.may_give = asyncio.Event()
        self.may_give.set()
        self.refusal: Exception | None = None

    async def series(self, symbol: str = "EURUSD", timeframe: str = "1h") -> Series:
        return await self.market_data.series(symbol, timeframe)

    async def GetBars(self, request: pb.GetBarsRequest, context: Any) -> None:  # type: ignore[override]
        self.asked.append((request.symbol, request.timeframe, request.read_offset))
        self.num_open += 1
        try:
            await self.may_give.wait()
            if self.refusal is not None:
                raise self.refusal
            await super().GetBars(request, context)
        finally:
            self.num_open -= 1


@asynccontextmanager
async def bar_source(bars_dir: Path, cache_dir: Path) -> AsyncIterator[tuple[BarSource, str]]:
    """Serve a store of bars; yields the servicer and its address."""
    source = BarSource(bars_dir, cache_dir)
    async with serving(
        lambda server: market_data_service_pb2_grpc.add_MarketDataServiceServicer_to_server(source, server)
    ) as address:
        yield source, address
    await source.market_data.close()
