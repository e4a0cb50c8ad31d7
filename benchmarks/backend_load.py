"""What a running training costs the backend: CPU and memory with 1, 50 and 200 simulated trainers.

The backend is a real process; each trainer has its own connection, lease and progress stream, and reports three epochs
a second, each of which is stored. Nobody watches: what watchers cost is in `watchers`.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import psutil
from ktrdr_client.async_client import AsyncClient

from benchmarks.report import BenchRow
from benchmarks.trainers import LIMIT_S, a_backend, a_process, host_spec, until_trainers
from ktrdr_core.domain.states import TrainingState
from tests.kit.eventually import eventually

NUM_TRAINERS = (1, 50, 200)
EVENTS_PER_S = 3.0
_MAX_CALLS = 16
_SETTLE_S = 1.0


async def _cpu_share(process: psutil.Process, seconds: float) -> float:
    """Return which share of a core a process takes over some seconds from now."""
    begin_s, begin_cpu_s = time.monotonic(), sum(process.cpu_times()[:2])
    await asyncio.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - begin_cpu_s) / (time.monotonic() - begin_s)


async def _start_trainings(client: AsyncClient, count: int) -> None:
    """Return once so many trainings run."""
    limit = asyncio.Semaphore(_MAX_CALLS)

    async def start() -> None:
        async with limit:
            await client.train(host_spec(1_000_000))

    async def all_run() -> bool:
        return len(await client.list_trainings(states=[TrainingState.RUNNING])) == count

    await asyncio.gather(*(start() for _ in range(count)))
    await eventually(all_run, timeout_s=LIMIT_S, every_s=0.1, what=f"{count} running trainings")


async def _num_events(client: AsyncClient) -> int:
    return sum(training.last_sequence for training in await client.list_trainings())


async def _load(count: int, seconds: float) -> list[BenchRow]:
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        async with a_backend(Path(name)) as (backend, client):
            process = psutil.Process(backend.process.pid)
            flags = ("--backend", backend.address, "--count", str(count), "--events-per-s", str(EVENTS_PER_S))
            async with a_process("tests.kit.simulated_trainer", *flags):
                await until_trainers(client, count)
                await client.train(host_spec(1), validate_only=True)  # loads what validation needs, once
                await asyncio.sleep(_SETTLE_S)
                rss_idle = process.memory_info().rss
                idle = await _cpu_share(process, seconds / 2)
                await _start_trainings(client, count)
                await asyncio.sleep(_SETTLE_S)
                num_before, begin_s = await _num_events(client), time.monotonic()
                busy = await _cpu_share(process, seconds)
                rate = (await _num_events(client) - num_before) / (time.monotonic() - begin_s)
                rss = process.memory_info().rss
    assert rate > 0.85 * EVENTS_PER_S * count, f"only {rate:.1f} events/s arrived"
    label = f"backend with {count} running training{'s' if count > 1 else ''}"
    rows = [
        BenchRow(
            name=f"{label}: CPU",
            value=100 * busy,
            unit="% of a core",
            baseline_name="its trainers idle",
            baseline_value=100 * idle,
        ),
        BenchRow(
            name=f"{label}: memory",
            value=rss / 2**20,
            unit="MiB",
            baseline_name="its trainers idle",
            baseline_value=rss_idle / 2**20,
        ),
    ]
    if count > 1:  # one costs less than the clock of the processes and the allocator resolve
        rows += [
            BenchRow(name=f"{label}: CPU for each", value=100 * busy / count, unit="% of a core"),
            BenchRow(name=f"{label}: CPU for each event", value=1e6 * (busy - idle) / rate, unit="us"),
            BenchRow(name=f"{label}: memory for each", value=(rss - rss_idle) / count / 1024, unit="kB"),
        ]
    return rows


def run(quick: bool) -> list[BenchRow]:
    """Measure over 10 s each (quick: 3 s)."""
    return [row for count in NUM_TRAINERS for row in asyncio.run(_load(count, 3.0 if quick else 10.0))]
