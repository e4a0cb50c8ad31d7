"""From a cancel through the backend to its verified end, by the state that the cancel meets.

QUEUED trainings wait for a simulated trainer that is taken. In all other states a real trainer trains, in a real worker
process that is verified to be gone when the backend says CANCELLED; its upload is held by a proxy on the way back.
"""

from __future__ import annotations

import asyncio
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ktrdr_client.async_client import AsyncClient

from benchmarks.report import BenchRow
from benchmarks.sample import latency_rows
from benchmarks.services import worker_pids
from benchmarks.trainers import (
    LIMIT_S,
    a_backend,
    a_process,
    host_spec,
    real_trainer_flags,
    until_state,
    until_trainers,
)
from ktrdr_core.domain.progress import StepDetail, TrainingStep
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import IllegalStateError
from ktrdr_core.execution.process_group import has_live_member
from tests.kit.processes import ServiceProcess
from tests.kit.tcp_proxy import TcpProxy

AIM_MS = 100.0
AIM_ALL_QUEUED_S = 2.0
NUM_QUEUED = 200
ENDLESS = 1_000_000
_STARTING_S = 0.06  # about what a warm trainer takes from Train to the worker's first event
_MAX_CALLS = 16


@dataclass(frozen=True)
class World:
    """A backend, its only trainer, and a client."""

    client: AsyncClient
    trainer: ServiceProcess
    rng: random.Random


Try = Callable[[World], Awaitable[float | None]]
"""Cancels one training; answers the seconds it took, None if another state was met."""


async def _cancel(client: AsyncClient, training_id: str) -> float | None:
    """Return how long the cancel took; the worker that trained, if one did, is verified to be gone."""
    workers = worker_pids()
    begin_s = time.perf_counter()
    try:
        training = await client.cancel(training_id)
    except IllegalStateError:
        return None
    took_s = time.perf_counter() - begin_s
    assert not any(has_live_member(pid) for pid in workers | worker_pids()), "CANCELLED was said while the worker lived"
    assert training.state is TrainingState.CANCELLED, training
    return took_s


async def _while_starting(world: World) -> float | None:
    training = await world.client.train(host_spec(ENDLESS))
    await asyncio.sleep(world.rng.uniform(0, _STARTING_S))
    return await _cancel(world.client, training.training_id)


async def _while_running(world: World) -> float | None:
    training = await world.client.train(host_spec(ENDLESS))
    async for event in world.client.stream_progress(training.training_id):
        if isinstance(event.detail, StepDetail) and event.detail.step is TrainingStep.TRAINING:
            break
    await asyncio.sleep(world.rng.uniform(0, 0.1))
    return await _cancel(world.client, training.training_id)


async def _while_uploading(world: World) -> float | None:
    training = await world.client.train(host_spec(1))
    await until_state(world.client, training.training_id, TrainingState.UPLOADING)
    await asyncio.sleep(world.rng.uniform(0, 0.1))
    return await _cancel(world.client, training.training_id)


async def _while_unreachable(world: World) -> float | None:
    """Cancel while the trainer stands still; answers the time until CANCELLING is shown."""
    training = await world.client.train(host_spec(ENDLESS))
    await until_state(world.client, training.training_id, TrainingState.RUNNING)
    world.trainer.process.send_signal(signal.SIGSTOP)
    try:
        shown = asyncio.create_task(until_state(world.client, training.training_id, TrainingState.CANCELLING))
        await asyncio.sleep(0.05)  # it watches
        begin_s = time.perf_counter()
        cancelling = asyncio.create_task(_cancel(world.client, training.training_id))
        await shown
        took_s = time.perf_counter() - begin_s
    finally:
        world.trainer.process.send_signal(signal.SIGCONT)
    await cancelling
    return took_s


async def _measure(name: str, attempt: Try, world: World, num_tries: int) -> list[BenchRow]:
    times: list[float] = []
    while len(times) < num_tries:
        async with asyncio.timeout(LIMIT_S):
            took_s = await attempt(world)
        if took_s is not None:
            times.append(took_s)
    return latency_rows(f"cancel, {name}", times, aim_p99_ms=AIM_MS)


@asynccontextmanager
async def _real_trainer() -> AsyncIterator[World]:
    """Run a backend and a real trainer that has its bars; nothing that it uploads arrives."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        async with (
            TcpProxy() as proxy,
            a_backend(Path(name), "--advertise-address", proxy.address) as (backend, client),
            a_process("trainer_service", *real_trainer_flags(Path(name), backend)) as trainer,
        ):
            proxy.target = backend.address
            await until_trainers(client, 1)
            world = World(client, trainer, random.Random(7))
            assert await _while_running(world) is not None  # the first one waits for the fork server and for bars
            await proxy.pause()
            yield world


async def _queue(client: AsyncClient, count: int) -> list[str]:
    limit = asyncio.Semaphore(_MAX_CALLS)

    async def add() -> str:
        async with limit:
            return (await client.train(host_spec(ENDLESS))).training_id

    return await asyncio.gather(*(add() for _ in range(count)))


async def _queued(num_tries: int) -> list[BenchRow]:
    """Cancel one of many that wait, again and again, then all that are left at once."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        async with (
            a_backend(Path(name)) as (backend, client),
            a_process("tests.kit.simulated_trainer", "--backend", backend.address),
        ):
            await until_trainers(client, 1)
            (running,) = await _queue(client, 1)
            await until_state(client, running, TrainingState.RUNNING)
            waiting = await _queue(client, NUM_QUEUED)
            times: list[float] = []
            for _ in range(num_tries):
                took_s = await _cancel(client, waiting.pop(random.Random(len(times)).randrange(len(waiting))))
                assert took_s is not None, "a training in the queue had ended"
                times.append(took_s)
            waiting += await _queue(client, NUM_QUEUED - len(waiting))
            begin_s = time.perf_counter()
            ended = await asyncio.gather(*(client.cancel(training_id) for training_id in waiting))
            all_s = time.perf_counter() - begin_s
            assert {training.state for training in ended} == {TrainingState.CANCELLED}
    return [
        *latency_rows(f"cancel, QUEUED, one of {NUM_QUEUED}", times, aim_p99_ms=AIM_MS),
        BenchRow(
            name=f"cancel, QUEUED, all {NUM_QUEUED} at once: total",
            value=all_s,
            unit="s",
            baseline_name="aim",
            baseline_value=AIM_ALL_QUEUED_S,
            ratio=AIM_ALL_QUEUED_S / all_s,
            aim=f"< {AIM_ALL_QUEUED_S:g} s",
        ),
    ]


async def _run(num_tries: int) -> list[BenchRow]:
    rows = await _queued(num_tries)
    async with _real_trainer() as world:
        for name, attempt in (
            ("starting", _while_starting),
            ("RUNNING", _while_running),
            ("UPLOADING", _while_uploading),
            ("RUNNING on a trainer that does not answer, until CANCELLING is shown", _while_unreachable),
        ):
            rows += await _measure(name, attempt, world, num_tries)
    return rows


def run(quick: bool) -> list[BenchRow]:
    """Cancel 40 in each state (quick: 8)."""
    return asyncio.run(_run(8 if quick else 40))
