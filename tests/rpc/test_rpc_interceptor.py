"""Errors of every kind of RPC over a real server; health, reflection, and the options that were measured."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ktrdr.data.v1 import market_data_service_pb2 as data_pb
from ktrdr.data.v1 import market_data_service_pb2_grpc as data_grpc
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as registry_pb
from ktrdr.trainer.v1 import trainer_registry_service_pb2_grpc as registry_grpc

from ktrdr_core.errors import (
    FieldViolation,
    InternalError,
    InvalidBarsError,
    KtrdrError,
    NoSlotError,
    NotBuiltError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.server import add_health_and_reflection, bind, create_server
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.grpc_server import channel_to, serving

DATA = "ktrdr.data.v1.MarketDataService"


class Raising(data_grpc.MarketDataServiceServicer, registry_grpc.TrainerRegistryServiceServicer):
    """Raises `error` in every kind of RPC; streams answer once first."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def ListSeries(self, request: Any, context: Any) -> data_pb.ListSeriesResponse:
        raise self.error

    async def GetSeries(self, request: Any, context: Any) -> data_pb.GetSeriesResponse:
        raise self.error

    async def GetBars(self, request: Any, context: Any) -> AsyncIterator[data_pb.GetBarsResponse]:
        yield data_pb.GetBarsResponse(offset=1)
        raise self.error

    async def ImportBars(self, request_iterator: AsyncIterator[Any], context: Any) -> data_pb.ImportBarsResponse:
        async for _ in request_iterator:
            pass
        raise self.error

    async def Register(
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[registry_pb.RegisterResponse]:
        async for _ in request_iterator:
            yield registry_pb.RegisterResponse()
            raise self.error


def added(servicer: Raising) -> Callable[[grpc.aio.Server], None]:
    def add(server: grpc.aio.Server) -> None:
        data_grpc.add_MarketDataServiceServicer_to_server(servicer, server)
        registry_grpc.add_TrainerRegistryServiceServicer_to_server(servicer, server)

    return add


async def unary(channel: grpc.aio.Channel) -> None:
    await _data(channel).ListSeries(data_pb.ListSeriesRequest())


async def server_stream(channel: grpc.aio.Channel) -> None:
    answers = []
    try:
        async for answer in _data(channel).GetBars(data_pb.GetBarsRequest()):
            answers.append(answer.offset)  # noqa: PERF401  the stream ends with an error
    finally:
        assert answers == [1]


async def client_stream(channel: grpc.aio.Channel) -> None:
    await _data(channel).ImportBars(iter([data_pb.ImportBarsRequest(), data_pb.ImportBarsRequest()]))


async def both_streams(channel: grpc.aio.Channel) -> None:
    stub: registry_grpc.TrainerRegistryServiceAsyncStub = registry_grpc.TrainerRegistryServiceStub(channel)
    async for _ in stub.Register(iter([registry_pb.RegisterRequest()])):
        pass


def _data(channel: grpc.aio.Channel) -> data_grpc.MarketDataServiceAsyncStub:
    stub: data_grpc.MarketDataServiceAsyncStub = data_grpc.MarketDataServiceStub(channel)
    return stub


Call = Callable[[grpc.aio.Channel], Awaitable[None]]
KINDS = pytest.mark.parametrize("call", [unary, server_stream, client_stream, both_streams])


async def refused(call: Call, error: BaseException) -> tuple[grpc.aio.AioRpcError, KtrdrError]:
    async with channel_to(added(Raising(error))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel)
        return caught.value, from_rpc_error(caught.value)


@KINDS
async def test_a_domain_error_arrives_as_its_class_with_its_details(call: Call) -> None:
    sent = InvalidBarsError(
        "row 7 has high below low; repair the file",
        violations=[FieldViolation("bars[7].high", "at least low")],
        metadata={"symbol": "EURUSD"},
    )

    raw, error = await refused(call, sent)

    assert raw.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(error, InvalidBarsError)
    assert (error.message, error.violations, error.metadata) == (sent.message, sent.violations, sent.metadata)


@KINDS
async def test_an_unknown_exception_is_internal_and_keeps_its_text_to_the_log(
    call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    raw, error = await refused(call, ValueError("password=secret"))

    assert raw.code() is grpc.StatusCode.INTERNAL
    assert type(error) is InternalError
    assert "secret" not in f"{raw.details()} {raw.trailing_metadata()}"
    assert "secret" in caplog.text


async def test_no_slot_carries_when_to_retry() -> None:
    raw, error = await refused(unary, NoSlotError("full", retry_after_s=1.5))

    assert raw.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(error, NoSlotError)
    assert error.retry_after_s == 1.5


async def test_an_error_with_a_huge_text_in_any_language_still_arrives() -> None:
    sent = InvalidBarsError("ß" * 100_000, violations=[FieldViolation("ü" * 9_000, "ö" * 9_000)] * 100)

    _, error = await refused(unary, sent)

    assert type(error) is InvalidBarsError


async def test_an_rpc_that_is_not_built_says_so() -> None:
    raw, error = await refused(unary, NotBuiltError("ListSeries is filled by a later version"))

    assert raw.code() is grpc.StatusCode.UNIMPLEMENTED
    assert isinstance(error, NotBuiltError)


class Waiting(Raising):
    async def ListSeries(self, request: Any, context: Any) -> data_pb.ListSeriesResponse:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def GetBars(self, request: Any, context: Any) -> AsyncIterator[data_pb.GetBarsResponse]:
        try:
            yield data_pb.GetBarsResponse(offset=1)
            self.entered.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.mark.parametrize("method", ["ListSeries", "GetBars"])
async def test_a_caller_that_goes_away_cancels_the_handler(method: str, caplog: pytest.LogCaptureFixture) -> None:
    servicer = Waiting(AssertionError())
    requests = {"ListSeries": data_pb.ListSeriesRequest(), "GetBars": data_pb.GetBarsRequest()}
    async with channel_to(added(servicer)) as channel:
        call = getattr(_data(channel), method)(requests[method])
        async with asyncio.timeout(PATIENCE_S):
            await servicer.entered.wait()
            assert call.cancel()
            await servicer.cancelled.wait()
    assert "raised" not in caplog.text


async def test_no_server_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    async with open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel)

    assert isinstance(from_rpc_error(caught.value), UnreachableError)


async def test_a_taken_port_is_refused_with_the_way_out() -> None:
    async with serving(added(Raising(KtrdrError("")))) as address:
        second = create_server()
        with pytest.raises(UnavailableError, match="choose another"):
            bind(second, address)


async def test_a_channel_finds_a_server_that_comes_back() -> None:
    error = NotBuiltError("here")
    async with serving(added(Raising(error))) as address:
        pass
    async with open_channel(address) as channel:

        async def reason() -> str:
            try:
                await unary(channel)
            except grpc.aio.AioRpcError as raised:
                return from_rpc_error(raised).reason
            return ""

        assert await reason() == "UNREACHABLE"
        async with serving(added(Raising(error)), address=address):

            async def is_back() -> bool:
                return await reason() == "NOT_BUILT"

            await eventually(is_back)


async def test_health_is_answered_per_service_and_overall_and_ends_with_the_drain() -> None:
    server = create_server()
    added(Raising(KtrdrError("")))(server)
    health = add_health_and_reflection(server, [DATA])
    port = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)

            async def status(service: str) -> int:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                return int(answer.status)

            assert [await status(""), await status(DATA)] == [health_pb2.HealthCheckResponse.SERVING] * 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await status("no.such.Service")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            await health.enter_graceful_shutdown()
            assert [await status(""), await status(DATA)] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
    finally:
        await server.stop(None)


async def test_reflection_lists_the_services() -> None:
    def add(server: grpc.aio.Server) -> None:
        added(Raising(KtrdrError("")))(server)
        add_health_and_reflection(server, [DATA])

    async with channel_to(add) as channel:
        untyped: Any = channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(untyped)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name async for answer in call for service in answer.list_services_response.service}

    assert {DATA, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names


async def test_1500_streams_opened_at_once_are_all_served() -> None:
    class Open(Raising):
        async def GetBars(self, request: Any, context: Any) -> AsyncIterator[data_pb.GetBarsResponse]:
            yield data_pb.GetBarsResponse(offset=1)
            await self.cancelled.wait()

    servicer = Open(KtrdrError(""))
    async with channel_to(added(servicer)) as channel:
        stub = _data(channel)
        calls = [stub.GetBars(data_pb.GetBarsRequest()) for _ in range(1_500)]
        answers = await asyncio.gather(*(call.read() for call in calls))
        servicer.cancelled.set()
        ends = await asyncio.gather(*(call.code() for call in calls))

    assert {answer.offset for answer in answers if isinstance(answer, data_pb.GetBarsResponse)} == {1}
    assert set(ends) == {grpc.StatusCode.OK}
