"""One service of a world: started, broken and started again, its words kept in a log."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tests.chaos.processes import SERVICE_MARK, WORLD_MARK, limit_file_size, processes_of, workers_under
from tests.kit.builders import REPOSITORY
from tests.kit.eventually import PATIENCE_S, eventually

# What is never said on purpose: an exception nobody took, one that had no name, a session that broke.
_DEFECT = re.compile(
    r" ERROR \S+ asyncio |never retrieved|Session broke|an unexpected way|could not be driven|interceptors \S+ raised |"
    r"Exception ignored|^Fatal "
)
_LISTENING = re.compile(r"^ktrdr-\w+ listening on (\S+)$")


class Service:
    """A service that may be down.

    Whoever breaks it holds `lock` until it is whole again, so that two actions on one service follow each other.

    Args:
        name: Its name in the world; the log is `<directory>/<name>.log`.
        module: "backend_service" or "trainer_service".
        flags: Its flags; the port is always a free one.
        environment: Further variables.
        directory: Directory of the world.
        world: Mark of the world's processes.
        on_address: Told the address each time it has been started.
    """

    def __init__(
        self,
        name: str,
        module: str,
        flags: Sequence[str],
        *,
        environment: dict[str, str],
        directory: Path,
        world: str,
        on_address: Callable[[str], None],
    ) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.address = ""
        self.log_path = directory / f"{name}.log"
        self._world = world
        self._on_address = on_address
        self._command = [sys.executable, "-m", module, "--port", "0", *flags]
        self._environment = {**os.environ, **environment, WORLD_MARK: world, SERVICE_MARK: name}
        self._process: subprocess.Popen[bytes] | None = None
        self._num_read = 0
        self._pump: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    async def start(self) -> None:
        """Start it and return once it says where it listens."""
        self.note("start")
        began = time.monotonic()
        heard: list[str] = []
        # A pipe, not the file: a full disk must not take the log with it.
        self._process = subprocess.Popen(  # noqa: ASYNC220  it takes a millisecond
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=self._environment,
        )
        assert self._process.stdout is not None
        self._pump = threading.Thread(target=_copy, args=(self._process.stdout, self.log_path, heard), daemon=True)
        self._pump.start()
        await eventually(lambda: heard or not self.is_running, timeout_s=PATIENCE_S, what=f"address of {self.name}")
        assert heard, f"{self.name} did not start, exit code {self.exit_code}; see {self.log_path}"
        self.address = heard[0]
        self.note(f"listens on {self.address} after {time.monotonic() - began:.1f} s")
        self._on_address(self.address)

    async def kill(self) -> None:
        """End it as a power cut does."""
        self.note("SIGKILL")
        if self._process is not None:
            self._process.kill()
            await self._wait(PATIENCE_S)

    async def stop(self, *, num_signals: int = 1, limit_s: float) -> int:
        """Send so many SIGTERMs and return the exit code; it is killed if it has not ended in time."""
        assert self._process is not None
        for _ in range(num_signals):
            self.note("SIGTERM")
            self._process.terminate()
            await asyncio.sleep(0.2 if num_signals > 1 else 0.0)
        try:
            return await self._wait(limit_s)
        except AssertionError:
            await self.kill()
            raise AssertionError(f"{self.name} had not ended {limit_s:g} s after SIGTERM; it was killed") from None

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def workers(self) -> list[int]:
        """Return the pids of its workers, oldest first."""
        return workers_under(self.pid, processes_of(self._world))

    def limit_files(self, size_bytes: int | None) -> None:
        """Let no file that it or its workers write grow beyond a size; None: no limit."""
        self.note(f"files at most {size_bytes} bytes" if size_bytes is not None else "files of any size")
        for _ in range(2):  # a worker may be forked while we look
            limit_file_size(
                [process.pid for process in processes_of(self._world) if process.service == self.name], size_bytes
            )

    def defects(self) -> list[str]:
        """Return the lines of its log that tell of a defect, since this was asked before."""
        with self.log_path.open("rb") as file:
            file.seek(self._num_read)
            text = file.read()
        self._num_read += len(text)
        return [line for line in text.decode(errors="replace").splitlines() if _DEFECT.search(line)]

    def note(self, text: str) -> None:
        """Write a line of our own into its log."""
        with self.log_path.open("a") as file:
            file.write(f"----- {time.strftime('%H:%M:%S')}.{time.time_ns() // 10**6 % 1000:03d} chaos: {text}\n")

    def _send(self, number: signal.Signals) -> None:
        self.note(number.name)
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def _wait(self, limit_s: float) -> int:
        await eventually(lambda: not self.is_running, timeout_s=limit_s, what=f"end of {self.name}")
        assert self._process is not None
        self.note(f"ended with {self._process.returncode}")
        return self._process.returncode

    async def wait_for_log(self) -> None:
        """Return once every process that held its pipe is gone."""
        if self._pump is not None:
            pump = self._pump
            await eventually(lambda: not pump.is_alive(), what=f"end of the log of {self.name}")


def _copy(pipe: IO[bytes], path: Path, heard: list[str]) -> None:
    with pipe, path.open("ab") as log:
        for line in pipe:
            log.write(line)
            log.flush()
            if match := _LISTENING.match(line.decode(errors="replace").strip()):
                heard.append(match[1])
