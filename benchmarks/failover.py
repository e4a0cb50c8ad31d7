"""From the SIGKILL of a trainer to its training running again: on another trainer, and on the same one started again.

The first with simulated trainers, whose loss is known by silence alone and by the default limit. The second with a real
trainer that starts again at once: its journal says what was lost, and the next attempt goes on from a checkpoint.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from ktrdr_client.async_client import AsyncClient

from backend_service.settings import BackendSettings
from benchmarks.report import BenchRow
from benchmarks.sample import quantile
from benchmarks.trainers import (
    LIMIT_S,
    a_backend,
    a_process,
    host_spec,
    real_trainer_flags,
    start_process,
    until_state,
    until_trainers,
)
from ktrdr_core.domain.states import TrainingState
from tests.kit.eventually import eventually
from tests.kit.processes import ServiceProcess

EPOCHS = 1_000_000


async def _kill(process: ServiceProcess) -> float:
    """Kill a process and return when."""
    begin_s = time.monotonic()
    await asyncio.to_thread(process.kill)
    return begin_s


async def _to_another(num_tries: int) -> list[float]:
    """Return the seconds from each kill to RUNNING elsewhere; all at once, a random while apart."""
    rng = random.Random(7)
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        async with a_backend(Path(name)) as (backend, client), AsyncExitStack() as stack:
            victims: dict[str, ServiceProcess] = {}
            training_ids: list[str] = []
            for number in range(num_tries):
                flags = ("--backend", backend.address, "--name", f"victim{number}")
                process = await stack.enter_async_context(a_process("tests.kit.simulated_trainer", *flags))
                victims[process.address] = process
                await until_trainers(client, number + 1)
                training_ids.append((await client.train(host_spec(EPOCHS))).training_id)
                await until_state(client, training_ids[-1], TrainingState.RUNNING)
            spare = ("--backend", backend.address, "--name", "spare", "--slots", str(num_tries))
            await stack.enter_async_context(a_process("tests.kit.simulated_trainer", *spare))
            await until_trainers(client, num_tries + 1)

            async def fail_over(training_id: str) -> float:
                (session,) = (await client.get_training(training_id)).sessions
                await asyncio.sleep(rng.uniform(0, 4))
                begin_s = await _kill(victims[session.trainer])
                await until_state(client, training_id, TrainingState.RUNNING, attempt=2)
                return time.monotonic() - begin_s

            return await asyncio.gather(*map(fail_over, training_ids))


async def _to_itself(num_tries: int) -> tuple[list[float], list[float]]:
    """Return the seconds from each kill to RUNNING again, and from each kill to the restarted trainer's serving."""
    again_s: list[float] = []
    served_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        directory = Path(name)
        async with a_backend(directory) as (backend, client):
            flags = real_trainer_flags(directory, backend, "--checkpoint-every-s", "0.5")
            trainer = await start_process("trainer_service", *flags)
            try:
                await until_trainers(client, 1)
                training_id = (await client.train(host_spec(EPOCHS))).training_id
                for attempt in range(1, num_tries + 1):
                    await until_state(client, training_id, TrainingState.RUNNING, attempt=attempt)
                    await _until_epoch(client, training_id)
                    await asyncio.sleep(1.5)  # some checkpoints
                    begin_s = await _kill(trainer)
                    trainer = await start_process("trainer_service", *flags, "--port", trainer.port)
                    served_s.append(time.monotonic() - begin_s)
                    await until_state(client, training_id, TrainingState.RUNNING, attempt=attempt + 1)
                    again_s.append(time.monotonic() - begin_s)
                training = await client.get_training(training_id)
                assert len(training.sessions) == num_tries + 1, training.sessions
                assert await _num_resumed(client, training_id) == num_tries, training.sessions
                await client.cancel(training_id)
            finally:
                await asyncio.to_thread(trainer.kill)
    return again_s, served_s


async def _until_epoch(client: AsyncClient, training_id: str) -> None:
    async def has_epoch() -> bool:
        training = await client.get_training(training_id)
        return training.state is TrainingState.RUNNING and training.progress.epoch is not None

    await eventually(has_epoch, timeout_s=LIMIT_S, what="an epoch")


async def _num_resumed(client: AsyncClient, training_id: str) -> int:
    """Return how many attempts went on from a checkpoint."""
    return sum(session.resumed_from_epoch > 0 for session in (await client.get_training(training_id)).sessions)


def _row(name: str, seconds: list[float], share: float, baseline_name: str, baseline_s: float) -> BenchRow:
    value = quantile(seconds, share)
    return BenchRow(name=name, value=value, unit="s", baseline_name=baseline_name, baseline_value=baseline_s)


async def _run(num_tries: int) -> list[BenchRow]:
    another_s = await _to_another(num_tries)
    again_s, served_s = await _to_itself(num_tries)
    lost_s = BackendSettings.model_fields["trainer_lost_s"].default
    silence = "the silence that is waited for"
    start = "its start alone"
    return [
        _row(f"trainer killed, until RUNNING on another: median of {num_tries}", another_s, 0.5, silence, lost_s),
        _row("trainer killed, until RUNNING on another: max", another_s, 1.0, silence, lost_s),
        _row(
            f"trainer killed and started again, until RUNNING from a checkpoint: median of {num_tries}",
            again_s,
            0.5,
            start,
            median(served_s),
        ),
        _row(
            "trainer killed and started again, until RUNNING from a checkpoint: max", again_s, 1.0, start, max(served_s)
        ),
    ]


def run(quick: bool) -> list[BenchRow]:
    """Kill five trainers of each kind (quick: two)."""
    return asyncio.run(_run(2 if quick else 5))
