"""Train calls per second, each validated and stored, and what a flood of them does to the calls beside it.

The backend is a real process over a scripted engine; its trainings wait, so that nothing else runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb

from benchmarks.connections import (
    LIMIT_S,
    build_request,
    open_channels,
    scripted_backend,
    start_training,
    training_service,
)
from benchmarks.report import BenchRow
from benchmarks.sample import latency_rows
from ktrdr_core.errors import NoSlotError
from ktrdr_core.rpc.errors import from_rpc_error

AIM_P99_MS = 250.0
NUM_CALLERS = 16
NUM_CHANNELS = 8
NUM_FLOOD = 2_000
_EPOCHS = 1_000_000
_NUM_TO_CANCEL = 300


def _request() -> pb.TrainRequest:
    return build_request(_EPOCHS, request_id=uuid.uuid4().hex)


async def _rate(call: Callable[[int], Awaitable[Any]], num_calls: int) -> float:
    """Return calls per second of `NUM_CALLERS` callers that take turns."""
    numbers = iter(range(num_calls))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    begin_s = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(NUM_CALLERS)))
    return num_calls / (time.monotonic() - begin_s)


async def _rates(address: str, num_calls: int) -> list[BenchRow]:
    async with open_channels(address, 2) as channels:
        stubs = [training_service(channel) for channel in channels]
        healths: list[Any] = [health_pb2_grpc.HealthStub(channel) for channel in channels]

        async def train(number: int) -> None:
            await stubs[number % 2].Train(_request(), timeout=LIMIT_S)

        async def check(number: int) -> None:
            await healths[number % 2].Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)

        await _rate(train, NUM_CALLERS)
        empty_per_s = await _rate(check, 5 * num_calls)
        trains_per_s = await _rate(train, num_calls)
    return [
        BenchRow(
            name=f"Train, validated and stored, {NUM_CALLERS} callers",
            value=trains_per_s,
            unit="calls/s",
            baseline_name="empty unary call",
            baseline_value=empty_per_s,
            ratio=trains_per_s / empty_per_s,
        )
    ]


async def flood(address: str) -> Counter[str]:
    """Send `NUM_FLOOD` Train calls at once over several connections; return how they were answered."""
    answers: Counter[str] = Counter()

    async def train(stub: Any, request: pb.TrainRequest) -> None:
        try:
            await stub.Train(request, timeout=LIMIT_S)
            answers["accepted"] += 1
        except grpc.RpcError as error:
            refusal = from_rpc_error(error)
            assert isinstance(refusal, NoSlotError), refusal
            assert refusal.retry_after_s > 0
            answers["refused"] += 1

    async with open_channels(address, NUM_CHANNELS) as channels:
        stubs = [training_service(channel) for channel in channels]
        requests = [_request() for _ in range(NUM_FLOOD)]
        sys.stdout.write("flooding\n")
        sys.stdout.flush()
        await asyncio.gather(*(train(stubs[number % NUM_CHANNELS], request) for number, request in enumerate(requests)))
    return answers


async def _beside_flood(address: str, rounds: int) -> list[BenchRow]:
    """Ask and cancel all the while floods come from a process of their own."""
    answers: Counter[str] = Counter()
    gets_s: list[float] = []
    cancels_s: list[float] = []
    async with open_channels(address, 1) as (channel,):
        stub = training_service(channel)
        is_over = asyncio.Event()

        async def ask(training_id: str) -> None:
            while not is_over.is_set():
                begin_s = time.monotonic()
                await stub.GetTraining(pb.GetTrainingRequest(training_id=training_id), timeout=LIMIT_S)
                gets_s.append(time.monotonic() - begin_s)
                await asyncio.sleep(0.002)

        async def cancel(training_ids: list[str]) -> None:
            for training_id in training_ids:
                if is_over.is_set():
                    return
                begin_s = time.monotonic()
                await stub.Cancel(pb.CancelRequest(training_id=training_id), timeout=LIMIT_S)
                cancels_s.append(time.monotonic() - begin_s)
                await asyncio.sleep(0.02)

        for _ in range(rounds):
            is_over.clear()
            waiting = [await start_training(stub, _EPOCHS) for _ in range(_NUM_TO_CANCEL)]
            flooding = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.train_calls", address, stdout=asyncio.subprocess.PIPE
            )
            assert flooding.stdout is not None
            assert await flooding.stdout.readline()
            probes = [asyncio.create_task(ask(waiting[0])), asyncio.create_task(cancel(waiting[1:]))]
            output, _ = await flooding.communicate()
            is_over.set()
            await asyncio.gather(*probes)
            assert flooding.returncode == 0
            answers.update(json.loads(output))
    name = f"beside {NUM_FLOOD:,} Train calls at once"
    return [
        BenchRow(name=f"{NUM_FLOOD:,} Train calls at once: refused", value=answers["refused"] / rounds, unit="calls"),
        *latency_rows(f"GetTraining {name}", gets_s, aim_p99_ms=AIM_P99_MS),
        *latency_rows(f"Cancel {name}", cancels_s, aim_p99_ms=AIM_P99_MS),
    ]


def run(quick: bool) -> list[BenchRow]:
    """Make 1,000 calls (quick: 200) and three floods (quick: one)."""
    with scripted_backend("--slots", "1") as service:
        rows = asyncio.run(_rates(service.address, 200 if quick else 1_000))
    with scripted_backend("--slots", "1") as service:
        return rows + asyncio.run(_beside_flood(service.address, 1 if quick else 3))


if __name__ == "__main__":  # the flood comes from here, so that its own cost is not in what is measured
    sys.stdout.write(json.dumps(asyncio.run(flood(sys.argv[1]))))
