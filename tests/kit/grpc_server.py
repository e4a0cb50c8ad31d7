"""A real gRPC server on a free port of 127.0.0.1, for as long as a test needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc.aio

from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.server import bind, create_server


@asynccontextmanager
async def serving(*add: Callable[[grpc.aio.Server], object], address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve what the callables add; yields the address (host:port).

    Args:
        add: For example `lambda server: add_XServicer_to_server(X(), server)`.
        address: Where to listen, to come back where a server was before.
    """
    server = create_server()
    for add_one in add:
        add_one(server)
    port = bind(server, address)
    await server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def channel_to(*add: Callable[[grpc.aio.Server], object]) -> AsyncIterator[grpc.aio.Channel]:
    """Serve what the callables add; yields a channel to it."""
    async with serving(*add) as address, open_channel(address) as channel:
        yield channel
