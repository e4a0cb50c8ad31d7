"""What the whole service path costs over a library call that trains the same job.

The library call runs in a process of its own with the same one thread, already warm, as a worker is. Both are timed in
turn, and the ratio is the median over the pairs.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from ktrdr_client.async_client import AsyncClient

from benchmarks.report import BenchRow
from benchmarks.sample import BARS_DIR, build_spec
from benchmarks.services import run_services
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.child import run_in_child
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.run_job import run_training

AIM_PERCENT = 1.0
_LIMIT_S = 600.0
_BATCH_SIZE = 8


def _spec(epochs: int) -> TrainingSpec:
    """Return a job of some forty epochs a second, as a longer training has: each is an event that is stored."""
    return replace(build_spec(epochs), batch_size=_BATCH_SIZE)


def train_by_library(epochs: int) -> float:
    """Train as a program with the library would; return the seconds it took."""
    with tempfile.TemporaryDirectory() as name:
        begin_s = time.perf_counter()
        run_training(
            _spec(epochs),
            bar_store=DirectoryBarStore(BARS_DIR),
            model_storage=ModelStorage(Path(name)),
            progress_callback=lambda epoch, total_epochs, metrics: None,
        )
        return time.perf_counter() - begin_s


async def _train_by_service(client: AsyncClient, epochs: int) -> float:
    spec = replace(_spec(epochs), execution_mode=ExecutionMode.HOST)
    begin_s = time.perf_counter()
    training = await client.train(spec)
    async for _ in client.stream_progress(training.training_id):
        pass
    took_s = time.perf_counter() - begin_s
    ended = await client.get_training(training.training_id)
    assert ended.state is TrainingState.COMPLETED, ended
    return took_s


async def _run(epochs: int, repeats: int) -> list[BenchRow]:
    pairs: list[tuple[float, float]] = []
    async with run_services() as addresses, AsyncClient(addresses.backend) as client:
        await _train_by_service(client, 2)
        await run_in_child(train_by_library, 2, timeout_s=_LIMIT_S)
        for _ in range(repeats):
            library_s = await run_in_child(train_by_library, epochs, timeout_s=_LIMIT_S)
            pairs.append((library_s, await _train_by_service(client, epochs)))
    library_s, service_s = (median(column) for column in zip(*pairs, strict=True))
    return [
        BenchRow(
            name=f"whole service path, {epochs} epochs, {repeats} pairs",
            value=service_s,
            unit="s",
            baseline_name="library call",
            baseline_value=library_s,
            ratio=median(library / service for library, service in pairs),
            aim=f">= {1 / (1 + AIM_PERCENT / 100):.2f}x ({AIM_PERCENT:g} % over) at 60 s",
        ),
        BenchRow(
            name="whole service path, fixed cost",
            value=1000 * median(service - library for library, service in pairs),
            unit="ms",
        ),
    ]


def run(quick: bool) -> list[BenchRow]:
    """Measure pairs of about a minute each (quick: of some seconds)."""
    return asyncio.run(_run(*((30, 3) if quick else (750, 2))))
