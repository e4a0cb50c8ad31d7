"""From a worker's callback to a client of the backend: worker, trainer, backend, client, while training runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ktrdr_client.async_client import AsyncClient

from benchmarks.report import BenchRow
from benchmarks.sample import build_spec, latency_rows
from benchmarks.services import run_services
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import BatchDetail, EpochDetail
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.domain.states import TrainingState

AIM_P99_MS = 20.0


async def _run(epochs: int) -> list[BenchRow]:
    times: dict[type, list[float]] = {EpochDetail: [], BatchDetail: []}
    async with run_services() as addresses, AsyncClient(addresses.backend) as client:
        for warm_up in (True, False):
            spec = replace(build_spec(2 if warm_up else epochs), execution_mode=ExecutionMode.HOST)
            training = await client.train(spec)
            async for event in client.stream_progress(training.training_id):
                # Both ends are on this machine, so its one wall clock is fair.
                latency_s = (utc_now() - event.create_time).total_seconds()
                if not warm_up and type(event.detail) in times:
                    times[type(event.detail)].append(latency_s)
            ended = await client.get_training(training.training_id)
            assert ended.state is TrainingState.COMPLETED, ended
    epoch_s, batch_s = times[EpochDetail], times[BatchDetail]
    assert len(epoch_s) == epochs, f"{len(epoch_s)} of {epochs} epoch events arrived"
    return [
        *latency_rows("progress, worker to client, epochs (stored first)", epoch_s, aim_p99_ms=AIM_P99_MS),
        *latency_rows("progress, worker to client, batches", batch_s, aim_p99_ms=AIM_P99_MS),
    ]


def run(quick: bool) -> list[BenchRow]:
    """Watch one training of 300 epochs (quick: 30)."""
    return asyncio.run(_run(30 if quick else 300))
