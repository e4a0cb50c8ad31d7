"""A trainer and a backend as child processes of this one: what `ktrdr up` and the embedded backend run.

Imports nothing heavy and never grpc: it only starts, watches and ends two processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from ktrdr_core.errors import UnavailableError

READY_TIMEOUT_S = 60.0
_LISTENING = " listening on "


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the two services listen, host:port."""

    backend: str
    trainer: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Which service ended, and how."""

    name: str
    exit_code: int

    def __str__(self) -> str:
        how = f"signal {signal.Signals(-self.exit_code).name}" if self.exit_code < 0 else f"exit code {self.exit_code}"
        return f"the {self.name} ended with {how}"


def service_command(module: str, flags: Sequence[str]) -> list[str]:
    """Return the command line of a service. Workers start fast only if `__main__` is a package's `__main__`."""
    return [sys.executable, "-m", module, *flags]


class Supervisor:
    """Starts the trainer, then the backend that knows it, each in a process group of its own; ends both.

    Args:
        trainer: Command line of the trainer, see `service_command`.
        backend: Command line of the backend, without `--trainer`.
        log: Where their stderr goes; None means to this process's.
    """

    def __init__(self, *, trainer: Sequence[str], backend: Sequence[str], log: IO[bytes] | None = None) -> None:
        self._trainer = list(trainer)
        self._backend = list(backend)
        self._log = log
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def start(self) -> Addresses:
        """Start both and return their addresses once they serve.

        Raises:
            UnavailableError: One of them did not start; neither is left behind.
        """
        try:
            trainer = await self._start_one("trainer", self._trainer)
            backend = await self._start_one("backend", [*self._backend, "--trainer", trainer])
        except BaseException:
            await self.stop(at_once=True)
            raise
        return Addresses(backend=backend, trainer=trainer)

    async def wait(self) -> Ended:
        """Return which of the two ended first."""
        waits = {asyncio.create_task(child.wait()): name for name, child in self._children.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            first = done.pop()
            return Ended(name=waits[first], exit_code=first.result())
        finally:
            for task in waits:
                task.cancel()

    def ask_to_end(self) -> None:
        """Send SIGTERM to both: the first drains, a second ends at once."""
        for child in self._children.values():
            _signal_group(child, signal.SIGTERM)

    async def stop(self, *, at_once: bool = False, timeout_s: float = 30.0) -> None:
        """End both and return when they are gone.

        Args:
            at_once: Kill instead of asking.
            timeout_s: How long the asked may take before they are killed.
        """
        if not at_once:
            self.ask_to_end()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await asyncio.gather(*(child.wait() for child in self._children.values()))
        for child in self._children.values():
            _signal_group(child, signal.SIGKILL)
        await asyncio.gather(*(child.wait() for child in self._children.values()))
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _start_one(self, name: str, command: Sequence[str]) -> str:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        self._children[name] = child
        assert child.stdout is not None  # noqa: S101 - asked for as PIPE
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while line := (await child.stdout.readline()).decode(errors="replace"):
                    if _LISTENING in line:
                        self._readers.append(asyncio.create_task(_discard(child.stdout)))
                        return line.rsplit(_LISTENING, 1)[1].strip()
                exit_code = await child.wait()
        except TimeoutError:
            raise UnavailableError(
                f"the {name} did not serve within {READY_TIMEOUT_S:.0f} s; its log says why"
            ) from None
        raise UnavailableError(f"{Ended(name=name, exit_code=exit_code)} before it served; its log says why")


async def _discard(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass


def _signal_group(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(child.pid, number)
            else:
                child.send_signal(number)


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, so that a killed supervisor leaves no services behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
