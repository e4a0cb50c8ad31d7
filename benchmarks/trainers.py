"""A real backend with its limits at their defaults, and trainers that can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from ktrdr_client.async_client import AsyncClient

from backend_service.settings import BackendSettings
from benchmarks.sample import build_spec
from ktrdr_core.domain.progress import StateDetail
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from tests.kit.eventually import eventually
from tests.kit.processes import ServiceProcess, backend_flags, trainer_flags

LIMIT_S = 60.0
"""How long one condition is waited for."""

_LIMITS = ("trainer_lost_s", "health_timeout_s")
DEFAULT_LIMITS = {f"KTRDR_{name.upper()}": str(BackendSettings.model_fields[name].default) for name in _LIMITS}


def host_spec(epochs: int) -> TrainingSpec:
    return replace(build_spec(epochs), execution_mode=ExecutionMode.HOST)


@asynccontextmanager
async def a_process(module: str, *flags: str) -> AsyncIterator[ServiceProcess]:
    """Run a service; it is killed afterwards if it still runs."""
    process = await start_process(module, *flags)
    try:
        yield process
    finally:
        await asyncio.to_thread(process.kill)


async def start_process(module: str, *flags: str) -> ServiceProcess:
    quiet = ("--log-level", "ERROR")  # that a trainer is lost is no news here
    return await asyncio.to_thread(lambda: ServiceProcess(module, *quiet, *flags, environment=DEFAULT_LIMITS))


@asynccontextmanager
async def a_backend(directory: Path, *flags: str) -> AsyncIterator[tuple[ServiceProcess, AsyncClient]]:
    """Run a backend that trains on trainers only, with a client to it."""
    async with (
        a_process("backend_service", *backend_flags(directory), "--slots", "0", *flags) as backend,
        AsyncClient(backend.address) as client,
    ):
        yield backend, client


def real_trainer_flags(directory: Path, backend: ServiceProcess, *flags: str) -> Sequence[str]:
    return [*trainer_flags(directory), "--backend", backend.address, *flags]


async def until_trainers(client: AsyncClient, count: int) -> None:
    """Return once so many trainers are healthy."""

    async def are_healthy() -> bool:
        return sum(trainer.is_healthy for trainer in await client.list_trainers()) == count

    await eventually(are_healthy, timeout_s=LIMIT_S, every_s=0.05, what=f"{count} healthy trainers")


async def until_state(client: AsyncClient, training_id: str, state: TrainingState, *, attempt: int = 1) -> None:
    """Return once a state is shown to a watcher."""
    async with asyncio.timeout(LIMIT_S):
        async for event in client.stream_progress(training_id):
            is_state = isinstance(event.detail, StateDetail) and event.detail.state is state
            if is_state and event.attempt >= attempt:
                return
    raise AssertionError(f"training {training_id} ended without {state} in attempt {attempt}")
