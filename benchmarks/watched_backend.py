"""A real backend that tells its footprint on SIGUSR1: `python -m benchmarks.watched_backend --data-dir D`."""

from __future__ import annotations

import asyncio
import signal
import sys

from backend_service.__main__ import parse_flags
from benchmarks.process_probe import ProcessProbe, tell_on_signal
from ktrdr_core.execution.fork_server import start_fork_server


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    flags = parse_flags()
    start_fork_server()
    from backend_service.app import NAME, serve
    from backend_service.settings import BackendSettings
    from ktrdr_core.rpc.service_main import run_service

    async def serve_watched(settings: BackendSettings) -> None:
        probe = ProcessProbe()
        tell_on_signal(probe, signal.SIGUSR1, _say)
        watching = asyncio.create_task(probe.run())
        try:
            await serve(settings)
        finally:
            watching.cancel()

    return run_service(NAME, BackendSettings, flags, serve_watched)


if __name__ == "__main__":
    sys.exit(main())
