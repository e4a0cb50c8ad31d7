"""A trainer and a backend on loopback, and the processes they own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from ktrdr_client.supervisor import Addresses, Supervisor, service_command

from benchmarks.sample import BARS_DIR, REPOSITORY

_FORK_SERVER_MARK = "multiprocessing.forkserver"


def build_supervisor(directory: Path, log_path: Path) -> Supervisor:
    """Return the two services over one directory of state; both take free ports."""
    common = ["--port", "0", "--bars-dir", str(BARS_DIR)]
    return Supervisor(
        trainer=service_command("trainer_service", [*common, "--data-dir", str(directory / "trainer")]),
        backend=service_command(
            "backend_service",
            [*common, "--data-dir", str(directory / "backend"), "--strategies-dir", str(REPOSITORY / "strategies")],
        ),
        log=log_path.open("ab"),
    )


@asynccontextmanager
async def run_services() -> AsyncIterator[Addresses]:
    """Run both services for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        supervisor = build_supervisor(Path(name), Path(name) / "services.log")
        addresses = await supervisor.start()
        try:
            yield addresses
        finally:
            await supervisor.stop(timeout_s=10.0)


def worker_pids() -> set[int]:
    """Return the workers among the descendants of this process: forked by a fork server, leaders of a session."""
    found: set[int] = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if os.getsid(process.pid) == process.pid and any(_FORK_SERVER_MARK in part for part in process.cmdline()):
                found.add(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return found
