"""TrainerService through the fixtures of pytest-grpc: a synchronous stub against the asyncio servicer.

pytest-grpc makes a synchronous server with one worker and leaks the socket it found its port with; `grpc_addr` and
`_grpc_server` are overridden for both.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_service_pb2_grpc
from ktrdr.training.v1 import data_mode_pb2
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.errors import SessionNotFoundError
from ktrdr_core.execution.devices import Device
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.server import create_server
from tests.kit.builders import strategy_text, write_bars_csv
from tests.kit.eventually import PATIENCE_S
from tests.kit.scripted_engine import ScriptedEngine
from trainer_service.bar_cache import BarCache
from trainer_service.bar_fetch import BarFetcher
from trainer_service.checkpoint_store import CheckpointStore
from trainer_service.orchestrator import HostTrainingOrchestrator
from trainer_service.server_info import ServerInfo
from trainer_service.servicer import TrainerServicer
from trainer_service.session_starter import SessionStarter

grpc_max_workers = 8


class ThreadedServer:
    """An asyncio server with the synchronous face that pytest-grpc expects, on a loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server = self.run(self._create())

    async def _create(self) -> grpc.aio.Server:
        return create_server()

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, self.loop).result(PATIENCE_S)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self.server.add_registered_method_handlers(service, handlers)

    def add_insecure_port(self, address: str) -> int:
        return int(self.server.add_insecure_port(address))

    def start(self) -> None:
        self.run(self.server.start())

    def stop(self, grace: float | None) -> None:
        self.run(self.server.stop(grace))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def grpc_addr() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def _grpc_server() -> Iterator[ThreadedServer]:
    server = ThreadedServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine(num_slots=4)


@pytest.fixture(scope="module")
def grpc_add_to_server() -> Callable[..., None]:
    return trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server


@pytest.fixture(scope="module")
def grpc_servicer(engine: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> TrainerServicer:
    bars_dir: Path = tmp_path_factory.mktemp("bars")
    write_bars_csv(bars_dir, n=3_000)

    async def no_devices() -> list[Device]:
        return []

    state_dir = tmp_path_factory.mktemp("state")
    checkpoints = CheckpointStore(state_dir / "checkpoints")
    bars = BarCache(state_dir / "bars")
    starter = SessionStarter(
        engine=engine,
        bars_dir=bars_dir,
        sessions_dir=state_dir / "sessions",
        checkpoints=checkpoints,
        bars=bars,
    )
    orchestrator = HostTrainingOrchestrator(
        engine=engine, starter=starter, checkpoints=checkpoints, bars=BarFetcher(bars)
    )
    info = ServerInfo(
        engine,
        trainer_id="t",
        state_dir=state_dir,
        start_time=datetime.now(UTC),
        unavailable_reason="",
        probe=no_devices,
    )
    return TrainerServicer(orchestrator, info)


@pytest.fixture(scope="module")
def grpc_stub_cls() -> type[trainer_service_pb2_grpc.TrainerServiceStub]:
    return trainer_service_pb2_grpc.TrainerServiceStub


@pytest.fixture
def loop(_grpc_server: ThreadedServer) -> asyncio.AbstractEventLoop:
    return _grpc_server.loop


@pytest.fixture
def stub(grpc_stub: Any) -> trainer_service_pb2_grpc.TrainerServiceStub:
    found: trainer_service_pb2_grpc.TrainerServiceStub = grpc_stub
    return found


def train(stub: trainer_service_pb2_grpc.TrainerServiceStub, session_id: str) -> pb.TrainResponse:
    request = pb.TrainRequest(session_id=session_id)
    request.spec.data_mode = data_mode_pb2.DATA_MODE_LOCAL
    request.spec.strategy.yaml = strategy_text()
    return stub.Train(request)


def test_an_open_stream_does_not_block_a_cancel(stub: trainer_service_pb2_grpc.TrainerServiceStub) -> None:
    train(stub, "a")
    stream = stub.StreamProgress(pb.StreamProgressRequest(session_id="a"))
    assert next(stream).session.session_id == "a"

    answer = stub.Cancel(pb.CancelRequest(session_id="a"))

    assert answer.session.state == states.TRAINING_STATE_CANCELLED
    assert [event.sequence for answer in stream for event in answer.events] == [1, 2, 3]


def test_a_session_runs_to_its_end(
    stub: trainer_service_pb2_grpc.TrainerServiceStub, engine: ScriptedEngine, loop: asyncio.AbstractEventLoop
) -> None:
    train(stub, "b")
    loop.call_soon_threadsafe(engine.sessions[-1].finish)

    *_, last = stub.StreamProgress(pb.StreamProgressRequest(session_id="b"))

    assert last.session.state == states.TRAINING_STATE_COMPLETED


def test_an_error_comes_back_as_its_class(stub: trainer_service_pb2_grpc.TrainerServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetSession(pb.GetSessionRequest(session_id="nobody"))

    assert isinstance(from_rpc_error(caught.value), SessionNotFoundError)
