"""The trainer service in this process, on a real port, with a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message
from ktrdr.trainer.v1 import session_pb2, trainer_service_pb2_grpc
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import data_mode_pb2
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.errors import KtrdrError
from ktrdr_core.execution.devices import Device
from ktrdr_core.execution.engine import SessionJob
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.builders import strategy_text, write_bars_csv
from tests.kit.eventually import eventually
from tests.kit.scripted_engine import ScriptedEngine, ScriptedSession
from trainer_service.app import TrainerApp
from trainer_service.settings import TrainerSettings


class HeldEngine(ScriptedEngine):
    """Starts sessions when a test lets it.

    Attributes:
        hold_starts: While it is there and not set, starts wait for it.
        num_waiting: Starts that wait.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.hold_starts: asyncio.Event | None = None
        self.num_waiting = 0

    async def start(self, job: SessionJob) -> ScriptedSession:
        if self.hold_starts is not None:
            self.num_waiting += 1
            await self.hold_starts.wait()
            self.num_waiting -= 1
        return await super().start(job)


class House:
    """A trainer with a scripted engine, and a stub to it."""

    def __init__(
        self,
        app: TrainerApp,
        engine: HeldEngine,
        stub: trainer_service_pb2_grpc.TrainerServiceAsyncStub,
        channel: grpc.aio.Channel,
    ) -> None:
        self.app = app
        self.engine = engine
        self.stub = stub
        self.channel = channel

    async def train(self, session_id: str = "s1", **fields: Any) -> session_pb2.Session:
        return (await self.stub.Train(train_request(session_id, **fields))).session

    async def session(self, session_id: str = "s1") -> session_pb2.Session:
        return (await self.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session

    async def until(self, state: states.TrainingState.ValueType, session_id: str = "s1") -> session_pb2.Session:
        async def reached() -> bool:
            return (await self.session(session_id)).state == state

        await eventually(reached, what=states.TrainingState.Name(state))
        return await self.session(session_id)

    async def watch(self, session_id: str = "s1", after: int = 0) -> list[pb.StreamProgressResponse]:
        call = self.stub.StreamProgress(pb.StreamProgressRequest(session_id=session_id, after_sequence=after))
        return [answer async for answer in call]

    @property
    def worker(self) -> ScriptedSession:
        return self.engine.sessions[-1]


def train_request(session_id: str = "s1", **fields: Any) -> pb.TrainRequest:
    """Return a request to train on the trainer's own bars, unless `fields` say otherwise."""
    message = pb.TrainRequest(session_id=session_id, training_id="t1", attempt=1)
    message.spec.data_mode = data_mode_pb2.DATA_MODE_LOCAL
    message.spec.strategy.yaml = strategy_text()
    for name, value in fields.items():
        owner = message if hasattr(message, name) else message.spec
        if isinstance(value, Message):
            getattr(owner, name).CopyFrom(value)
        else:
            setattr(owner, name, value)
    return message


async def one_cpu() -> list[Device]:
    return [Device(device_type="cpu", name="CPU", memory_available_gb=8.0, supports_mixed_precision=False)]


@asynccontextmanager
async def house(tmp_path: Path, *, slots: int = 2, **settings: Any) -> AsyncIterator[House]:
    """Serve a trainer with its state in `tmp_path`; it is stopped at the end without a drain."""
    bars_dir = tmp_path / "bars"
    if not bars_dir.exists():
        bars_dir.mkdir()
        write_bars_csv(bars_dir, n=3_000)
    engine = HeldEngine(slots)
    app = TrainerApp(
        TrainerSettings(port=0, data_dir=tmp_path / "state", bars_dir=bars_dir, slots=slots, **settings),
        engine=engine,
        probe=one_cpu,
    )
    await app.start()
    try:
        async with open_channel(f"127.0.0.1:{app.port}") as channel:
            yield House(app, engine, trainer_service_pb2_grpc.TrainerServiceStub(channel), channel)
    finally:
        await app.stop(0)


async def refusal(call: Any) -> KtrdrError:
    """Return the error that a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)
