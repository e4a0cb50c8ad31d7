"""From a cancel to the verified end of what it cancels, at random moments in any step of a real training.

Four levels: a library call (its token to its end), the engine (its cancel to the outcome), a client of the trainer,
and a client of the backend that trains on the trainer. At the last three levels each try checks that no process of
the worker's group is alive when CANCELLED is said.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from ktrdr_client.async_client import AsyncClient
from ktrdr_client.trainer_client import AsyncTrainerClient

from benchmarks.report import BenchRow
from benchmarks.sample import BARS_DIR, build_spec, latency_rows
from benchmarks.services import run_services, worker_pids
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.cancellation import LocalCancellationToken
from ktrdr_core.domain.progress import ProgressEvent, StepDetail, TrainingStep
from ktrdr_core.domain.spec import DataMode, ExecutionMode
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CancellationError, IllegalStateError
from ktrdr_core.execution.engine import SessionJob
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.process_group import has_live_member
from ktrdr_core.storage.staging import StagedStorage
from ktrdr_core.training.run_job import run_training

AIM_ANY_STEP_MS = 100.0
AIM_TRAINING_STEP_MS = 25.0
EPOCHS = 6
STEPS = [step for step in TrainingStep if step is not TrainingStep.COMPLETE]


@dataclass(frozen=True)
class Moment:
    """When to cancel: so long after a step began."""

    step: TrainingStep
    delay_s: float


Try = Callable[[Moment], Awaitable[float | None]]
"""Cancels one training at a moment; answers the seconds it took, None if the training had ended before."""


def _measure_steps() -> dict[TrainingStep, float]:
    """Return how long each step of the training takes, from a library call."""
    begins: list[tuple[TrainingStep, float]] = []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(2):  # the first call pays for imports
            begins.clear()
            run_training(
                build_spec(EPOCHS),
                bar_store=DirectoryBarStore(BARS_DIR),
                model_storage=StagedStorage(Path(name) / uuid.uuid4().hex),
                step_callback=lambda step: begins.append((step, time.perf_counter())),
            )
    ends = [begin for _, begin in begins[1:]]
    return {step: end - begin for (step, begin), end in zip(begins, ends, strict=False)}


async def _cancel_library_call(moment: Moment) -> float | None:
    token = LocalCancellationToken()
    reached = threading.Event()
    ended_s: list[float] = []

    def on_step(step: TrainingStep) -> None:
        if step is moment.step:
            reached.set()

    def train() -> None:
        try:
            with tempfile.TemporaryDirectory() as name:
                run_training(
                    build_spec(EPOCHS),
                    bar_store=DirectoryBarStore(BARS_DIR),
                    model_storage=StagedStorage(Path(name) / "artifact"),
                    step_callback=on_step,
                    cancellation_token=token,
                )
        except CancellationError:
            ended_s.append(time.perf_counter())

    training = asyncio.create_task(asyncio.to_thread(train))
    await asyncio.to_thread(reached.wait)
    await asyncio.sleep(moment.delay_s)
    begin_s = time.perf_counter()
    token.cancel()
    await training
    return ended_s[0] - begin_s if ended_s else None


async def _reach(events: AsyncIterator[ProgressEvent], moment: Moment) -> None:
    """Read events up to the moment."""
    async for event in events:
        if isinstance(event.detail, StepDetail) and event.detail.step is moment.step:
            break
    await asyncio.sleep(moment.delay_s)


async def _cancel_engine_session(engine: ProcessEngine, directory: Path, moment: Moment) -> float | None:
    session_id = uuid.uuid4().hex
    session = await engine.start(
        SessionJob(
            session_id=session_id,
            training_id=session_id,
            attempt=1,
            spec=build_spec(EPOCHS),
            work_dir=directory / session_id,
            bars_dir=BARS_DIR,
        )
    )
    await _reach(session.events(), moment)
    begin_s = time.perf_counter()
    outcome = await session.cancel()
    took_s = time.perf_counter() - begin_s
    assert not has_live_member(session.pid)
    return took_s if outcome.state is TrainingState.CANCELLED else None


async def _cancel_on_service(
    train: Callable[[], Awaitable[str]],
    stream: Callable[[str], AsyncIterator[ProgressEvent]],
    cancel: Callable[[str], Awaitable[TrainingState]],
    moment: Moment,
) -> float | None:
    name = await train()
    await _reach(stream(name), moment)
    workers = worker_pids()
    begin_s = time.perf_counter()
    try:
        state = await cancel(name)
    except IllegalStateError:
        return None
    took_s = time.perf_counter() - begin_s
    assert not any(has_live_member(pid) for pid in workers), "CANCELLED was said while the worker lived"
    return took_s if state is TrainingState.CANCELLED else None


def _trainer_try(client: AsyncTrainerClient) -> Try:
    async def train() -> str:
        spec = replace(build_spec(EPOCHS), data_mode=DataMode.LOCAL)  # there is no backend to name bars
        return (await client.train(spec, session_id=uuid.uuid4().hex)).session_id

    async def cancel(name: str) -> TrainingState:
        return (await client.cancel(name)).state

    return lambda moment: _cancel_on_service(train, client.stream_progress, cancel, moment)


def _backend_try(client: AsyncClient) -> Try:
    async def train() -> str:
        spec = replace(build_spec(EPOCHS), execution_mode=ExecutionMode.HOST)
        return (await client.train(spec)).training_id

    async def cancel(name: str) -> TrainingState:
        return (await client.cancel(name)).state

    return lambda moment: _cancel_on_service(train, client.stream_progress, cancel, moment)


async def _measure(level: str, attempt: Try, durations: dict[TrainingStep, float], num_tries: int) -> list[BenchRow]:
    """Cancel `num_tries` trainings in steps drawn at random, and as many in the training step."""
    rng = random.Random(7)
    rows: list[BenchRow] = []
    for name, steps, aim_ms in (
        ("any step", STEPS, AIM_ANY_STEP_MS),
        ("training step", [TrainingStep.TRAINING], AIM_TRAINING_STEP_MS),
    ):
        times: list[float] = []
        while len(times) < num_tries:
            step = rng.choice(steps)
            took_s = await attempt(Moment(step, rng.uniform(0.0, 0.95 * durations[step])))
            if took_s is not None:
                times.append(took_s)
        rows += latency_rows(f"cancel, {level}, {name}", times, aim_p99_ms=aim_ms)
    return rows


async def _run(num_tries: int) -> list[BenchRow]:
    durations = await asyncio.to_thread(_measure_steps)
    rows = await _measure("library", _cancel_library_call, durations, num_tries)
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        engine = ProcessEngine(1)
        await engine.warm_up()
        rows += await _measure(
            "engine", lambda moment: _cancel_engine_session(engine, Path(name), moment), durations, num_tries
        )
        await engine.close()
    async with run_services() as addresses:
        async with AsyncTrainerClient(addresses.trainer) as trainer:
            rows += await _measure("client to trainer", _trainer_try(trainer), durations, num_tries)
        async with AsyncClient(addresses.backend) as backend:
            rows += await _measure("client to backend to trainer", _backend_try(backend), durations, num_tries)
    return rows


def run(quick: bool) -> list[BenchRow]:
    """Measure every level; a quick run takes 10 tries instead of 100."""
    torch.set_num_threads(1)
    return asyncio.run(_run(10 if quick else 100))
