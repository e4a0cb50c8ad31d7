from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.processes import a_service
from tests.kit.tcp_proxy import TcpProxy

_ABSENCE_S = 0.2
"""How long a test watches that nothing comes."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that answers what it got, with its name before the first byte."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.num_served = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_served += 1
        try:
            writer.write(self.name)
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write(b"!")  # the end was forwarded, and the other direction is still open
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            writer.transport.abort()


@asynccontextmanager
async def an_echo(name: bytes = b"a") -> AsyncIterator[tuple[Echo, str]]:
    echo = Echo(name)
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield echo, f"{host}:{port}"
    finally:
        server.close()


@asynccontextmanager
async def connected(proxy: TcpProxy) -> AsyncIterator[Stream]:
    host, _, port = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(stream: Stream, data: bytes, limit_s: float = 5.0) -> bytes:
    stream[1].write(data)
    async with asyncio.timeout(limit_s):
        return await stream[0].readexactly(len(data))


async def is_silent(stream: Stream) -> bool:
    try:
        async with asyncio.timeout(_ABSENCE_S):
            await stream[0].readexactly(1)
    except TimeoutError:
        return True
    return False


def num_sockets() -> int:
    return sum(entry.is_socket() for entry in Path("/proc/self/fd").iterdir())


async def test_bytes_pass_both_ways_whole_and_in_order() -> None:
    async with an_echo() as (_, target), TcpProxy(target) as proxy, connected(proxy) as (reader, writer):
        sent = bytes(range(256)) * 8_000  # 2 MB: more than every buffer on the way
        writing = asyncio.create_task(_write_all(writer, sent))
        assert await reader.readexactly(1) == b"a"
        assert await reader.readexactly(len(sent)) == sent
        await writing
        assert proxy.num_bytes == 2 * len(sent) + 1


async def _write_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_end_of_one_direction_is_forwarded_and_leaves_the_other_open() -> None:
    async with an_echo() as (_, target), TcpProxy(target) as proxy, connected(proxy) as (reader, writer):
        writer.write(b"xyz")
        writer.write_eof()
        assert await reader.read() == b"axyz!"
        await eventually(lambda: proxy.num_connections == 0)


async def test_cut_drops_connections_and_refuses_new_ones_until_restored() -> None:
    async with an_echo() as (echo, target), TcpProxy(target) as proxy, connected(proxy) as (reader, _):
        assert await reader.readexactly(1) == b"a"
        await proxy.cut()
        assert proxy.num_connections == 0
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                async with connected(proxy):
                    pass
        assert echo.num_served == 1
        await proxy.restore()
        async with connected(proxy) as again:
            assert await again[0].readexactly(1) == b"a"


async def test_paused_connections_stay_open_and_carry_nothing_until_restored() -> None:
    async with an_echo() as (echo, target), TcpProxy(target) as proxy, connected(proxy) as stream:
        assert await stream[0].readexactly(1) == b"a"
        assert await ask(stream, b"before") == b"before"
        await proxy.pause()
        stream[1].write(b"after")
        assert await is_silent(stream)
        async with connected(proxy) as new:  # accepted, and no further
            assert await is_silent(new)
            assert echo.num_served == 1
            await proxy.restore()
            assert await stream[0].readexactly(5) == b"after"
            assert await new[0].readexactly(1) == b"a"


async def test_end_of_a_connection_is_not_told_while_paused() -> None:
    async with an_echo() as (_, target), TcpProxy(target) as proxy, connected(proxy) as stream:
        assert await stream[0].readexactly(1) == b"a"
        await proxy.pause()
        stream[1].write_eof()
        assert await is_silent(stream)
        await proxy.restore()
        assert await stream[0].read() == b"!"


async def test_pause_after_cut_accepts_again() -> None:
    async with an_echo() as (_, target), TcpProxy(target) as proxy:
        await proxy.cut()
        await proxy.pause()
        async with connected(proxy) as stream:
            assert await is_silent(stream)


async def test_slow_link_keeps_its_rate_and_its_latency() -> None:
    async with an_echo() as (_, target), TcpProxy(target) as proxy, connected(proxy) as stream:
        assert await stream[0].readexactly(1) == b"a"
        await proxy.slow(latency_s=0.1)
        began = time.monotonic()
        assert await ask(stream, b"ping") == b"ping"
        assert time.monotonic() - began >= 0.2  # there and back

        await proxy.slow(bytes_per_s=1_000_000)
        began = time.monotonic()
        data = b"d" * 200_000
        assert await ask(stream, data, limit_s=30) == data
        assert time.monotonic() - began >= 0.2

        await proxy.slow(bytes_per_s=10_000)
        await proxy.restore()
        assert await ask(stream, data) == data  # it would take 40 s


async def test_latency_delays_what_is_under_way_together() -> None:
    async with an_echo() as (_, target), TcpProxy(target) as proxy, connected(proxy) as stream:
        assert await stream[0].readexactly(1) == b"a"
        await proxy.slow(latency_s=0.1)
        began = time.monotonic()
        data = b"d" * 6_000_000  # some hundred chunks: one after the other they would take 10 s
        stream[1].write(data)
        assert await stream[0].readexactly(len(data)) == data
        assert time.monotonic() - began < 3


async def test_target_may_change_and_be_absent() -> None:
    async with an_echo(b"a") as (_, first), TcpProxy() as proxy:
        async with connected(proxy) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        proxy.target = first
        async with connected(proxy) as old:
            assert await old[0].readexactly(1) == b"a"
            async with an_echo(b"b") as (_, second):
                proxy.target = second
                async with connected(proxy) as new:
                    assert await new[0].readexactly(1) == b"b"
                    assert await ask(old, b"still") == b"still"
            async with connected(proxy) as (reader, _):  # nobody listens there any more
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)


async def test_nothing_is_left_behind() -> None:
    async with an_echo() as (_, target):
        before, tasks = num_sockets(), len(asyncio.all_tasks())
        for is_paused in (False, True):
            async with TcpProxy(target) as proxy, connected(proxy) as (reader, _), connected(proxy):
                await reader.readexactly(1)
                if is_paused:
                    await proxy.pause()
                await proxy.close()
                assert proxy.num_connections == 0
            await eventually(lambda: len(asyncio.all_tasks()) == tasks, what="the end of every task")
        gc.collect()  # a socket that is dropped without close() warns here
        await eventually(lambda: num_sockets() == before, what="the end of every socket")


async def test_process_delays_drops_again_and_again_and_tells_what_it_forwarded() -> None:
    async with an_echo() as (_, target):
        flags = ("--target", target, "--latency-s", "0.05", "--drop-every-s", "0.3")
        with a_service("tests.kit.tcp_proxy", *flags) as process:
            for _ in range(2):
                stream = await eventually(lambda: _try_connect(process.address), what="a connection")
                assert stream is not None
                reader, writer = stream
                began = time.monotonic()
                writer.write(b"xy")
                assert await reader.readexactly(3) == b"axy"
                assert time.monotonic() - began >= 0.1
                with pytest.raises(ConnectionResetError):
                    async with asyncio.timeout(PATIENCE_S):
                        await reader.read(1)
                writer.transport.abort()
            process.process.send_signal(signal.SIGUSR1)
            assert process.process.stdout is not None
            assert await asyncio.to_thread(process.process.stdout.readline) == "10\n"
            assert await asyncio.to_thread(process.end) == 0


async def _try_connect(address: str) -> Stream | None:
    host, _, port = address.rpartition(":")
    try:
        return await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:  # between the drop and listening again
        return None
