"""Many watchers of one training: latency of its events, CPU of the backend, memory behind watchers that never read.

The backend is a real process over a scripted engine; the watchers are real streams on a few channels of this process.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import psutil
from ktrdr.training.v1 import training_service_pb2 as pb

from benchmarks.connections import open_channels, scripted_backend, start_training, training_service
from benchmarks.report import BenchRow
from benchmarks.sample import latency_rows
from tests.kit.processes import ServiceProcess

AIM_P99_MS = 250.0
EVENTS_PER_S = 3.0
SETTLE_S = 2.0
NUM_CHANNELS = 8
NUM_STUCK = 10
NUM_EVENTS_STUCK = 10_000


@dataclass
class Watched:
    """What a crowd of watchers saw.

    Attributes:
        latencies_s: Of each event at each watcher, once the crowd had settled.
        joined_s: How long it took until the last watcher had its first answer.
        num_messages, cpu_s, wall_s: Of the settled time.
    """

    latencies_s: list[float]
    joined_s: float
    num_messages: int
    cpu_s: float
    wall_s: float


async def watch(service: ServiceProcess, num_watchers: int, epochs: int) -> Watched:
    """Let a crowd watch one training of `epochs` events to its end."""
    latencies_s: list[float] = []
    num_messages = num_joined = 0
    settled_time = float("inf")
    all_joined = asyncio.Event()
    process = psutil.Process(service.process.pid)

    async def follow(stub: Any, training_id: str) -> None:
        nonlocal num_messages, num_joined
        sequences: list[int] = []
        async for response in stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id)):
            now = time.time()
            if response.HasField("training") and not sequences:
                num_joined += 1
                if num_joined == num_watchers:
                    all_joined.set()
            num_messages += 1
            for event in response.events:
                sequences.append(event.sequence)
                # Both ends are on this machine, so its one wall clock is fair.
                create_time = event.create_time.ToMicroseconds() / 1e6
                if create_time > settled_time and event.HasField("epoch"):
                    latencies_s.append(now - create_time)
        assert sequences == list(range(1, len(sequences) + 1)), "a gap or a repeat"

    async with open_channels(service.address, min(num_watchers, NUM_CHANNELS)) as channels:
        stubs = [training_service(channel) for channel in channels]
        training_id = await start_training(stubs[0], epochs)
        begin_s = time.monotonic()
        followers = [
            asyncio.create_task(follow(stubs[number % len(stubs)], training_id)) for number in range(num_watchers)
        ]
        await all_joined.wait()
        joined_s = time.monotonic() - begin_s
        await asyncio.sleep(SETTLE_S)
        num_messages, settled_time = 0, time.time()
        cpu_s, begin_s = sum(process.cpu_times()[:2]), time.monotonic()
        await asyncio.gather(*followers)
        return Watched(
            latencies_s,
            joined_s,
            num_messages,
            sum(process.cpu_times()[:2]) - cpu_s,
            time.monotonic() - begin_s,
        )


def _crowd_rows(num_watchers: int, seen: Watched) -> list[BenchRow]:
    name = f"progress to {num_watchers:,} watchers at {EVENTS_PER_S:g}/s"
    return [
        *latency_rows(name, seen.latencies_s, aim_p99_ms=AIM_P99_MS),
        BenchRow(name=f"{num_watchers:,} watchers join: the last is answered", value=seen.joined_s, unit="s"),
        BenchRow(name=f"{name}: backend's CPU", value=100 * seen.cpu_s / seen.wall_s, unit="% of a core"),
        BenchRow(name=f"{name}: backend's CPU per message", value=1e6 * seen.cpu_s / seen.num_messages, unit="us"),
    ]


async def _resident_after(service: ServiceProcess, num_stuck: int, num_events: int) -> tuple[int, float]:
    """Return by how many bytes the backend grew while a training passed watchers that never read, and how long it
    took one that reads."""
    process = psutil.Process(service.process.pid)
    async with open_channels(service.address, 2) as channels:
        stuck, reading = (training_service(channel) for channel in channels)
        await _pass(reading, 100)
        before = process.memory_info().rss
        training_id = await start_training(reading, num_events)
        request = pb.StreamProgressRequest(training_id=training_id)
        calls = [stuck.StreamProgress(request) for _ in range(num_stuck)]
        begin_s = time.monotonic()
        async for _ in reading.StreamProgress(request):
            pass
        took_s = time.monotonic() - begin_s
        grown = process.memory_info().rss - before
        for call in calls:
            call.cancel()
        return grown, took_s


async def _pass(stub: Any, epochs: int) -> None:
    training_id = await start_training(stub, epochs)
    async for _ in stub.StreamProgress(pb.StreamProgressRequest(training_id=training_id)):
        pass


def _stuck_rows(num_events: int) -> list[BenchRow]:
    figures = []
    for num_stuck in (0, NUM_STUCK):
        with scripted_backend("--rate", "0") as service:
            figures.append(asyncio.run(_resident_after(service, num_stuck, num_events)))
    (alone, alone_s), (beside, beside_s) = figures
    name = f"{num_events:,} events beside {NUM_STUCK} watchers that never read"
    return [
        BenchRow(
            name=f"{name}: memory for each",
            value=(beside - alone) / NUM_STUCK / 1024,
            unit="kB",
            aim="< 1,024 kB",
        ),
        BenchRow(
            name=f"{name}: time for one that reads",
            value=beside_s,
            unit="s",
            baseline_name="without them",
            baseline_value=alone_s,
            ratio=alone_s / beside_s,
        ),
    ]


def run(quick: bool) -> list[BenchRow]:
    """Watch with 1, 100 and 1,000 for 15 s each (quick: 5 s), then beside watchers that never read."""
    rows: list[BenchRow] = []
    for num_watchers in (1, 100, 1_000):
        with scripted_backend("--rate", str(EVENTS_PER_S)) as service:
            seconds = (5 if quick else 15) + SETTLE_S + num_watchers / 500
            seen = asyncio.run(watch(service, num_watchers, int(seconds * EVENTS_PER_S)))
        rows += _crowd_rows(num_watchers, seen)
    return rows + _stuck_rows(NUM_EVENTS_STUCK // (5 if quick else 1))
