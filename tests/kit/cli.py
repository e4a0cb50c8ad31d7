"""Run the real `ktrdr` command as a process, with an embedded backend of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit.eventually import PATIENCE_S

ROOT = Path(__file__).parents[2]
STRATEGY = "strategies/neuro_mean_reversion.yaml"


@dataclass(frozen=True)
class Ran:
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Coroutine[Any, Any, Ran]]
"""Runs a command against an address: `await run(address, "models", "list")`."""


@dataclass(frozen=True)
class Cli:
    """The command with a data directory of its own."""

    data_dir: Path

    def words(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ktrdr_client", "--data-dir", str(self.data_dir), *arguments]

    def environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("KTRDR_", "TRAINING_", "USE_TRAINING"))
        }
        return {**kept, "KTRDR_EMBEDDED_IDLE_S": "120", "COLUMNS": "120", "TERM": "xterm"}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(
            self.words(*arguments),
            env=self.environment(),
            text=True,
            start_new_session=True,
            **{"cwd": ROOT, **pipes, **options},
        )

    def run(self, *arguments: str, timeout_s: float = PATIENCE_S) -> Ran:
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            return Ran(process.returncode, out, err)

    @property
    def embedded(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "embedded.json").read_text())
        return found

    def end_embedded(self) -> None:
        """End the embedded pair, if there is one, and wait until its processes are gone."""
        try:
            pid = int(self.embedded["pid"])
            os.kill(pid, signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError):
            return
        wait_until_gone([pid])


def wait_until_gone(pids: Sequence[int], *, timeout_s: float = PATIENCE_S) -> None:
    """Return when none of the processes runs any more; zombies count as gone."""
    deadline = time.monotonic() + timeout_s
    while any(map(_is_running, pids)):
        assert time.monotonic() < deadline, f"processes {pids} still run after {timeout_s} s"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def embedded_cli(data_dir: Path) -> Iterator[Cli]:
    """A command whose embedded backend is ended at the end."""
    cli = Cli(data_dir)
    try:
        yield cli
    finally:
        cli.end_embedded()
