"""The real services as processes, on free ports, ended with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.kit.builders import REPOSITORY
from tests.kit.eventually import PATIENCE_S

# A busy machine answers late; a test of what is late, or lost, says how late.
PATIENT = {"KTRDR_HEALTH_TIMEOUT_S": "60", "KTRDR_TRAINER_LOST_S": "60"}


class ServiceProcess:
    """One service that has said where it listens.

    Args:
        module: "backend_service" or "trainer_service".
        flags: Its flags; a free port is chosen unless they name one.
        environment: Further variables.
        log: Where its stderr goes; None: to the test's.
    """

    def __init__(
        self, module: str, *flags: str, environment: dict[str, str] | None = None, log: IO[str] | None = None
    ) -> None:
        ports = () if "--port" in flags else ("--port", "0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *ports, "--log-level", "WARNING", *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **PATIENT, **(environment or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "listening on" in line, f"{module} did not start: {line!r}, exit code {self.process.poll()}"
        self.address = line.split()[-1]

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    def kill(self) -> None:
        """End it as a power cut does."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = PATIENCE_S) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@contextmanager
def a_service(
    module: str, *flags: str, environment: dict[str, str] | None = None, log: IO[str] | None = None
) -> Iterator[ServiceProcess]:
    """Run a service; end it at once afterwards, if it still runs."""
    service = ServiceProcess(module, *flags, environment=environment, log=log)
    try:
        yield service
    finally:
        service.kill()


def backend_flags(directory: Path, *trainers: str) -> list[str]:
    """Return flags of a backend with its state under `directory` and the shipped bars and strategies."""
    flags = ["--data-dir", str(directory / "backend"), "--bars-dir", str(REPOSITORY / "data")]
    flags += ["--strategies-dir", str(REPOSITORY / "strategies")]
    for address in trainers:
        flags += ["--trainer", address]
    return flags


def trainer_flags(directory: Path) -> list[str]:
    """Return flags of a trainer with its state under `directory`; it has no bars of its own."""
    return ["--data-dir", str(directory / "trainer"), "--bars-dir", str(directory / "no-bars")]
