"""A TCP proxy for tests: forwards to a target that may change, and breaks the network in between when told to.

As a process of its own, with a network that is the same all the time, or drops every connection every few seconds:
`python -m tests.kit.tcp_proxy --target HOST:PORT --bytes-per-s 125e6 --latency-s 0.03 --drop-every-s 3`. On SIGUSR1 it
says how many bytes it has forwarded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import struct
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

_CHUNK_BYTES = 64 * 1024
_TURNS_OF_ACCEPTING = 5
_CHUNKS_IN_FLIGHT = 64


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and keeps that port to its end, whatever it does meanwhile.

    `cut`, `pause`, `slow` and `restore` each say the whole condition of the network from now on, for connections that
    are open and for new ones alike (a cut one is gone for good). Bytes are never lost, doubled or reordered within a
    connection.

    Args:
        target: host:port to forward to; "" while there is none: connections are then accepted and reset.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.num_bytes = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._bytes_per_s: float | None = None
        self._latency_s = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        # Bound but not listening: while the proxy is cut, connecting is refused and nobody else gets the port.
        self._holder = _bound_socket(0)
        self._port = int(self._holder.getsockname()[1])

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        return f"127.0.0.1:{self._port}"

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop every connection and free the port."""
        await self.cut()
        self._holder.close()

    async def cut(self) -> None:
        """Drop every connection by a reset, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
            for _ in range(_TURNS_OF_ACCEPTING):  # what is accepted already is reset by `_on_connection`
                await asyncio.sleep(0)
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def pause(self) -> None:
        """Forward nothing, not even the end of a connection; new connections are accepted: a partition."""
        self._flows.clear()
        await self._listen()

    async def slow(self, *, bytes_per_s: float | None = None, latency_s: float = 0.0) -> None:
        """Forward at most so much each way and connection, each byte so late."""
        self._bytes_per_s, self._latency_s = bytes_per_s, latency_s
        self._flows.set()
        await self._listen()

    async def restore(self) -> None:
        """Forward everything at once."""
        await self.slow()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._on_connection, sock=_bound_socket(self._port))

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted just before the cut
            _reset(writer.transport)
            return
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        # One that is cancelled before it began never comes to its own end.
        connection.add_done_callback(lambda _: _reset(writer.transport))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transports = [writer.transport]
        try:
            # A peer that resets the connection, or a target that is not there, ends it: that is all it is.
            with contextlib.suppress(OSError):
                await self._flows.wait()
                host, _, port = self.target.rpartition(":")
                if not host:
                    return
                there_reader, there_writer = await asyncio.open_connection(host, int(port))
                transports.append(there_writer.transport)
                await _all_or_none(self._forward(reader, there_writer), self._forward(there_reader, writer))
                for each in (writer, there_writer):
                    each.close()
                    await each.wait_closed()
        finally:
            for transport in transports:
                _reset(transport)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy one direction to its end; reading goes on while what was read waits for its time."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_IN_FLIGHT)
        await _all_or_none(self._read(reader, waiting), self._write(waiting, writer))

    async def _read(self, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        is_free_at = 0.0
        while True:
            await self._flows.wait()
            data = await reader.read(_CHUNK_BYTES)
            is_free_at = max(is_free_at, loop.time())
            if self._bytes_per_s is not None:
                is_free_at += len(data) / self._bytes_per_s
            await waiting.put((is_free_at + self._latency_s, data))
            if not data:
                return

    async def _write(self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await waiting.get()
            if (delay_s := due - loop.time()) > 0:
                await asyncio.sleep(delay_s)
            await self._flows.wait()
            if not data:
                writer.write_eof()
                return
            self.num_bytes += len(data)
            writer.write(data)
            await writer.drain()


async def _all_or_none(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all to their end; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _reset(transport: asyncio.WriteTransport) -> None:
    """End a connection so that the other side sees a reset, not an end; one that is closing already just ends."""
    if not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def _serve(target: str, *, bytes_per_s: float | None, latency_s: float, drop_every_s: float | None) -> None:
    async with TcpProxy(target) as proxy:
        await proxy.slow(bytes_per_s=bytes_per_s, latency_s=latency_s)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: print(proxy.num_bytes, flush=True))
        stopping = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
        print(f"tcp-proxy listening on {proxy.address}", flush=True)
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drop_every_s):
                    await stopping.wait()
            await proxy.cut()
            await proxy.slow(bytes_per_s=bytes_per_s, latency_s=latency_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--bytes-per-s", type=float)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--drop-every-s", type=float)
    arguments, _ = parser.parse_known_args()  # ServiceProcess adds the flags of every service
    asyncio.run(
        _serve(
            arguments.target,
            bytes_per_s=arguments.bytes_per_s,
            latency_s=arguments.latency_s,
            drop_every_s=arguments.drop_every_s,
        )
    )


if __name__ == "__main__":
    main()
