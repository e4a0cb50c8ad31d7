"""`ktrdr backend serve`, `trainer serve` and `up`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.supervisor import Supervisor, service_command
from ktrdr_core.errors import UnavailableError


def serve(module: str, flags: Sequence[str], session: CliSession) -> int:
    """Become the service: this process is replaced, so that signals and exit codes are the service's own."""
    words = list(flags)
    if not any(word == "--data-dir" or word.startswith("--data-dir=") for word in words):
        words = ["--data-dir", str(session.settings.data_dir), *words]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, service_command(module, words))  # noqa: S606 - our own interpreter and module


async def up(
    session: CliSession,
    *,
    host: str,
    port: int,
    trainer_port: int,
    bars_dir: Path,
    strategies_dir: Path,
    log_level: str,
    is_insecure: bool,
) -> int:
    """Run a backend and a trainer as children until Ctrl-C, SIGTERM, or until one of them ends."""
    common = ["--host", host, "--data-dir", str(session.settings.data_dir), "--bars-dir", str(bars_dir)]
    common += ["--log-level", log_level, *(["--insecure"] if is_insecure else [])]
    supervisor = Supervisor(
        trainer=service_command("trainer_service", [*common, "--port", str(trainer_port)]),
        backend=service_command(
            "backend_service", [*common, "--port", str(port), "--strategies-dir", str(strategies_dir)]
        ),
    )
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.put_nowait, number)
    starting = asyncio.create_task(supervisor.start())
    interrupted = asyncio.create_task(asked.get())
    await asyncio.wait({starting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return ExitCode.INTERRUPTED
    try:
        addresses = await starting
        session.say(f"trainer  {addresses.trainer}")
        session.say(f"backend  {addresses.backend}")
        session.say(f"next     ktrdr --backend {addresses.backend} train STRATEGY.yaml    (Ctrl-C here ends both)")
        ended = asyncio.create_task(supervisor.wait())
        await asyncio.wait({ended, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise UnavailableError(f"{ended.result()}, so the other was ended too; its log above says why")
        session.note("ending both; press Ctrl-C again to end at once")
        stopping = asyncio.create_task(supervisor.stop())
        while not stopping.done():
            again = asyncio.create_task(asked.get())
            await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
            if again.done():
                supervisor.ask_to_end()
            again.cancel()
        await stopping
        ended.cancel()
        return ExitCode.OK
    finally:
        interrupted.cancel()
        await supervisor.stop(at_once=True)
