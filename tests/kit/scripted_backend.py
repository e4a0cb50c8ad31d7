"""A real backend process whose trainings are a script: `python -m tests.kit.scripted_backend --data-dir D --rate 3`.

Every local training emits epochs at the rate, as many as its spec asks for, and then ends FAILED. For tests and
benchmarks of what the backend itself costs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path

from backend_service.app import NAME, BackendApp
from backend_service.settings import BackendSettings
from ktrdr_core.domain.progress import EpochDetail
from ktrdr_core.execution.engine import SessionJob
from ktrdr_core.logging import configure_logging
from ktrdr_core.rpc.service_main import say_listening, stop_on_signals
from tests.kit.builders import write_bars_csv
from tests.kit.scripted_engine import ScriptedEngine, ScriptedSession

REASON = "WORKER_DIED"


class EmittingEngine(ScriptedEngine):
    """Starts sessions that emit one epoch every `1 / rate` seconds; 0 emits as fast as they are stored."""

    def __init__(self, rate: float, num_slots: int) -> None:
        super().__init__(num_slots)
        self._rate = rate
        self._emitting: set[asyncio.Task[None]] = set()

    async def start(self, job: SessionJob) -> ScriptedSession:
        session = await super().start(job)
        task = asyncio.create_task(self._emit(session))
        self._emitting.add(task)
        task.add_done_callback(self._emitting.discard)
        return session

    async def _emit(self, session: ScriptedSession) -> None:
        total = session.job.spec.epochs or 1
        begin = time.monotonic()
        for epoch in range(1, total + 1):
            due = begin + epoch / self._rate if self._rate else 0.0
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not session.is_running:
                return
            session.emit(
                EpochDetail(
                    epoch=epoch,
                    total_epochs=total,
                    train_loss=1.0 / epoch,
                    train_accuracy=0.5,
                    val_loss=1.1 / epoch,
                    val_accuracy=0.45,
                    learning_rate=0.001,
                    rows_per_second=12_345.6,
                ),
                overall=epoch / (total + 1),
            )
        session.fail("the script ends here", REASON)


async def serve(data_dir: Path, *, rate: float, num_slots: int, max_queued: int) -> None:
    bars_dir = data_dir / "bars"
    if not bars_dir.exists():
        write_bars_csv(bars_dir)
    settings = BackendSettings(
        port=0, data_dir=data_dir, bars_dir=bars_dir, trainers=(), drain_s=0.0, max_queued=max_queued
    )
    app = BackendApp(settings, engine=EmittingEngine(rate, num_slots), has_torch=False)
    stopping = stop_on_signals(app.hurry)
    say_listening(NAME, settings.host, await app.start())
    try:
        await stopping.wait()
    finally:
        app.hurry()
        await app.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--max-queued", type=int, default=10_000)
    arguments, _ = parser.parse_known_args()  # ServiceProcess adds the flags of every service
    configure_logging("WARNING", service=NAME)
    with suppress(KeyboardInterrupt):
        asyncio.run(
            serve(
                arguments.data_dir,
                rate=arguments.rate,
                num_slots=arguments.slots,
                max_queued=arguments.max_queued,
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
