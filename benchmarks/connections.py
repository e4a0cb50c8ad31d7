"""A scripted backend, and connections to it that are not shared."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import grpc.aio
from ktrdr.training.v1 import execution_mode_pb2, training_service_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1.training_spec_pb2 import TrainingSpec

from ktrdr_core.rpc.channel import CHANNEL_OPTIONS
from tests.kit.builders import strategy_text
from tests.kit.processes import ServiceProcess, a_service

LIMIT_S = 120.0
"""How long one call may take."""

_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


@contextmanager
def scripted_backend(*flags: str) -> Iterator[ServiceProcess]:
    """Run a backend whose trainings are scripted; see `tests/kit/scripted_backend.py`."""
    with (
        tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name,
        a_service("tests.kit.scripted_backend", "--data-dir", name, *flags) as service,
    ):
        yield service


@asynccontextmanager
async def open_channels(address: str, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Open `count` channels, each with a connection of its own."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, _OWN_CONNECTION])
            )
            for _ in range(count)
        ]


def training_service(channel: grpc.aio.Channel) -> Any:
    return training_service_pb2_grpc.TrainingServiceStub(channel)


def build_request(epochs: int, **fields: Any) -> pb.TrainRequest:
    """Return a request for a scripted training of so many epochs."""
    spec = TrainingSpec(epochs=epochs, execution_mode=execution_mode_pb2.EXECUTION_MODE_LOCAL)
    spec.strategy.yaml = strategy_text()
    return pb.TrainRequest(spec=spec, **fields)


async def start_training(stub: Any, epochs: int) -> str:
    """Start a training and return its id."""
    training_id: str = (await stub.Train(build_request(epochs), timeout=LIMIT_S)).training.training_id
    return training_id
