"""The probe of `ktrdr doctor` that holds an idle stream: well, cut, silent, sent away."""

from __future__ import annotations

import asyncio
import socket
import time

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as aio_health
from ktrdr_client.cli.checks import Status, check_keepalive
from ktrdr_client.keepalive_probe import probe_keepalive

from ktrdr_core.errors import KtrdrError, NotBuiltError, UnavailableError
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.fake_backend import FakeBackend, serving
from tests.kit.story_backend import StoryBackend, telling
from tests.kit.tcp_proxy import TcpProxy


async def test_idle_stream_to_our_own_server_lives_for_less_than_three_seconds() -> None:
    begun = time.monotonic()
    async with telling(StoryBackend()) as address:
        assert (await check_keepalive(address)).status is Status.OK
    assert time.monotonic() - begun > 2.0


async def test_server_that_tolerates_no_pings_is_told_by_name() -> None:
    """A proxy with stricter limits than any of gRPC's own: the second ping is one too many."""
    options = [("grpc.http2.max_ping_strikes", 1), ("grpc.http2.min_ping_interval_without_data_ms", 300_000)]
    server = grpc.aio.server(options=options)
    health_pb2_grpc.add_HealthServicer_to_server(aio_health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with pytest.raises(UnavailableError, match="GOAWAY too_many_pings"):
            await probe_keepalive(f"127.0.0.1:{port}", hold_s=20.0)
    finally:
        await server.stop(None)


async def test_way_that_lets_nothing_through_is_a_problem_with_advice() -> None:
    async with telling(StoryBackend()) as address, TcpProxy(address) as proxy:
        await proxy.pause()
        check = await check_keepalive(proxy.address)
    assert (check.status, bool(check.advice)) == (Status.PROBLEM, True)


async def test_server_that_accepts_and_says_nothing_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnavailableError):
        await probe_keepalive(f"127.0.0.1:{silent.getsockname()[1]}", hold_s=0.05)


async def test_stream_whose_pings_are_swallowed_is_noticed_long_before_the_time_is_over() -> None:
    async with telling(StoryBackend()) as address, TcpProxy(address) as proxy:
        probing = asyncio.create_task(probe_keepalive(proxy.address, hold_s=10 * PATIENCE_S))
        await eventually(lambda: proxy.num_bytes > 200)
        await proxy.pause()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(UnavailableError):
                await probing


async def test_service_without_a_health_watch_is_an_error() -> None:
    async with serving(FakeBackend()) as address:
        with pytest.raises(NotBuiltError):
            await probe_keepalive(address)


async def test_address_without_a_server_is_an_error_at_once() -> None:
    with pytest.raises(KtrdrError):
        await probe_keepalive("127.0.0.1:1")
