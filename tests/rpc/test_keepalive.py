"""A peer that hangs or vanishes is noticed on any stream; one that is only quiet keeps its connection."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from ktrdr.training.v1 import execution_mode_pb2, training_service_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1.training_spec_pb2 import TrainingSpec

from ktrdr_core.rpc.channel import CHANNEL_OPTIONS, open_channel
from ktrdr_core.rpc.server import SERVER_OPTIONS
from tests.kit.builders import strategy_text
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.grpc_server import serving
from tests.kit.processes import a_service
from tests.kit.tcp_proxy import TcpProxy

NOTICED_WITHIN_S = 10.0
_CLIENT = dict(CHANNEL_OPTIONS)
_SERVER = dict(SERVER_OPTIONS)


class Quiet:
    """A service whose streams say one word, then nothing; it counts those that are open."""

    def __init__(self) -> None:
        self.num_open = 0
        self.may_answer = asyncio.Event()

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.num_open += 1
        try:
            yield b"hello"
            await self.may_answer.wait()
            yield b"bye"
        finally:
            self.num_open -= 1

    async def measure(self, request: bytes, context: Any) -> bytes:
        return str(len(request)).encode()

    async def fill(self, request: bytes, context: Any) -> bytes:
        return bytes(int(request))

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Measure": grpc.unary_unary_rpc_method_handler(self.measure),
            "Fill": grpc.unary_unary_rpc_method_handler(self.fill),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Quiet", handlers),))


@asynccontextmanager
async def quiet_stream(channel: Any) -> AsyncIterator[Any]:
    """Open a stream on which nothing more comes."""
    call: Any = channel.unary_stream("/test.Quiet/Stream")(b"")
    assert await call.read() == b"hello"
    try:
        yield call
    finally:
        call.cancel()


async def lost_after(ending: Awaitable[object]) -> float:
    """Return the seconds until the other side was given up."""
    begin_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.wait_for(ending, PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return time.monotonic() - begin_s


async def to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata())


async def test_a_partition_is_noticed_by_both_sides_of_a_quiet_stream() -> None:
    quiet = Quiet()
    async with (
        serving(quiet.add_to) as address,
        TcpProxy(address) as proxy,
        open_channel(proxy.address) as channel,
        quiet_stream(channel) as call,
    ):
        ending = asyncio.ensure_future(to_the_end(call))
        # Data is followed by a ping of its own; once that is answered only the keepalive can notice anything.
        await asyncio.wait({ending}, timeout=0.3)
        await proxy.pause()
        begin_s = time.monotonic()

        lost_s = await lost_after(ending)
        await eventually(lambda: quiet.num_open == 0, what="end of the stream on the server")

        assert lost_s < NOTICED_WITHIN_S
        assert time.monotonic() - begin_s < NOTICED_WITHIN_S + 1.0


@pytest.fixture
def start_quiet_training() -> Callable[[str], Awaitable[str]]:
    async def start(address: str) -> str:
        spec = TrainingSpec(epochs=10, execution_mode=execution_mode_pb2.EXECUTION_MODE_LOCAL)
        spec.strategy.yaml = strategy_text()
        async with open_channel(address) as channel:
            stub: Any = training_service_pb2_grpc.TrainingServiceStub(channel)
            training_id: str = (await stub.Train(pb.TrainRequest(spec=spec), timeout=PATIENCE_S)).training.training_id
            return training_id

    return start


async def test_a_backend_that_hangs_is_noticed_by_every_call(
    tmp_path: Path, start_quiet_training: Callable[[str], Awaitable[str]]
) -> None:
    flags = ("--data-dir", str(tmp_path / "backend"), "--rate", "0.001")
    with a_service("tests.kit.scripted_backend", *flags) as backend:
        training_id = await start_quiet_training(backend.address)
        async with open_channel(backend.address) as channel:
            stub: Any = training_service_pb2_grpc.TrainingServiceStub(channel)
            watching = stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id))
            assert (await watching.read()).training.training_id == training_id
            backend.process.send_signal(signal.SIGSTOP)
            try:
                asking = stub.GetTraining(pb.GetTrainingRequest(training_id=training_id), timeout=PATIENCE_S)
                lost_s = await asyncio.gather(lost_after(to_the_end(watching)), lost_after(asking))
            finally:
                backend.process.send_signal(signal.SIGCONT)

            assert max(lost_s) < NOTICED_WITHIN_S


async def test_a_quiet_client_that_pings_as_often_as_it_may_is_not_sent_away() -> None:
    """A server with default options sends it away at the fourth ping."""
    quiet = Quiet()
    every_s = _SERVER["grpc.http2.min_ping_interval_without_data_ms"] / 1000 + 0.05
    options = [*(_CLIENT | {"grpc.keepalive_time_ms": int(every_s * 1000)}).items()]
    async with (
        serving(quiet.add_to) as address,
        grpc.aio.insecure_channel(address, options=options) as channel,
        quiet_stream(channel) as call,
    ):
        answer = asyncio.ensure_future(call.read())
        await asyncio.wait({answer}, timeout=5.5 * every_s)
        quiet.may_answer.set()

        assert await answer == b"bye"


def test_clients_ping_less_often_than_the_server_allows() -> None:
    assert _CLIENT["grpc.keepalive_time_ms"] >= 1.5 * _SERVER["grpc.http2.min_ping_interval_without_data_ms"]


@pytest.mark.parametrize("options", [_CLIENT, _SERVER])
def test_a_dead_peer_is_noticed_in_time_on_both_sides(options: dict[str, int]) -> None:
    noticed_ms = options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"]
    assert noticed_ms / 1000 < NOTICED_WITHIN_S
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]


async def test_a_message_above_4_mib_is_refused_either_way_and_the_next_call_works() -> None:
    limit = 4 << 20
    async with serving(Quiet().add_to) as address, open_channel(address) as channel:
        measure: Any = channel.unary_unary("/test.Quiet/Measure")
        fill: Any = channel.unary_unary("/test.Quiet/Fill")

        for too_large in (measure(bytes(limit + 1)), fill(str(limit + 1).encode())):
            with pytest.raises(grpc.RpcError) as caught:
                await too_large
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        assert await measure(bytes(limit)) == str(limit).encode()
        assert len(await fill(str(limit).encode())) == limit
