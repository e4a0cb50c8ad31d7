"""How fast the services serve after their start, and how soon a training asked for shows its first epoch."""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from ktrdr_client.async_client import AsyncClient

from benchmarks.report import BenchRow
from benchmarks.sample import build_spec
from benchmarks.services import build_supervisor
from ktrdr_core.domain.progress import EpochDetail, StepDetail, TrainingStep
from ktrdr_core.domain.spec import ExecutionMode


async def _time_to_first_epoch(client: AsyncClient) -> tuple[float, float]:
    """Return the seconds from the request to the training step and to the end of the first epoch."""
    begin_s = time.perf_counter()
    training = await client.train(replace(build_spec(2), execution_mode=ExecutionMode.HOST))
    step_s = epoch_s = 0.0
    async for event in client.stream_progress(training.training_id):
        now_s = time.perf_counter() - begin_s
        if isinstance(event.detail, StepDetail) and event.detail.step is TrainingStep.TRAINING:
            step_s = now_s
        elif isinstance(event.detail, EpochDetail) and event.detail.epoch == 1:
            epoch_s = now_s
    return step_s, epoch_s


async def _start_once(num_trainings: int) -> tuple[float, float, list[tuple[float, float]]]:
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        supervisor = build_supervisor(Path(name), Path(name) / "services.log")
        begin_s = time.perf_counter()
        addresses = await supervisor.start()
        started_s = time.perf_counter() - begin_s
        try:
            async with AsyncClient(addresses.backend) as client:
                _, cold_s = await _time_to_first_epoch(client)
                warm = [await _time_to_first_epoch(client) for _ in range(num_trainings)]
        finally:
            await supervisor.stop(timeout_s=10.0)
    return started_s, cold_s, warm


async def _run(repeats: int, num_trainings: int) -> list[BenchRow]:
    starts = [await _start_once(num_trainings) for _ in range(repeats)]
    warm = [times for _, _, each in starts for times in each]
    return [
        BenchRow(
            name="start, trainer then backend, until both serve",
            value=median(start for start, _, _ in starts),
            unit="s",
        ),
        BenchRow(
            name="first epoch, asked for at once after the start", value=median(cold for _, cold, _ in starts), unit="s"
        ),
        BenchRow(name="first training step, warm services", value=1000 * median(step for step, _ in warm), unit="ms"),
        BenchRow(
            name="first epoch, warm services",
            value=1000 * median(epoch for _, epoch in warm),
            unit="ms",
            baseline_name="the same on services just started",
            baseline_value=1000 * median(cold for _, cold, _ in starts),
            ratio=median(cold for _, cold, _ in starts) / median(epoch for _, epoch in warm),
        ),
    ]


def run(quick: bool) -> list[BenchRow]:
    """Start the services three times (quick: once) and train on each several times."""
    return asyncio.run(_run(*((1, 3) if quick else (3, 5))))
