"""Watching the health of a service that stops."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ktrdr_core.errors import DrainingError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.server import add_health_and_reflection, bind, create_server
from tests.kit.eventually import PATIENCE_S

Status = health_pb2.HealthCheckResponse


async def test_a_stop_does_not_wait_for_those_who_watch_its_health() -> None:
    server = create_server()
    health = add_health_and_reflection(server, ["ktrdr.test.v1.TestService"])
    port = bind(server, "127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await call.read()).status == Status.SERVING
        await health.enter_graceful_shutdown()
        assert (await call.read()).status == Status.NOT_SERVING

        health.end_watches()
        await asyncio.wait_for(server.stop(600), PATIENCE_S)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert isinstance(from_rpc_error(caught.value), DrainingError)


async def test_a_service_that_serves_on_keeps_its_watchers() -> None:
    server = create_server()
    health = add_health_and_reflection(server, ["ktrdr.test.v1.TestService"])
    port = bind(server, "127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        call = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        seen = [(await call.read()).status]
        for status in (Status.NOT_SERVING, Status.SERVING):
            await health.set("", status)
            seen.append((await call.read()).status)
        call.cancel()
    await server.stop(None)
    assert seen == [Status.SERVING, Status.NOT_SERVING, Status.SERVING]
