"""What /proc says of a world: every process that carries its mark in the environment, whoever its parent is now."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WORLD_MARK = "KTRDR_CHAOS_WORLD"
SERVICE_MARK = "KTRDR_CHAOS_SERVICE"


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    service: str
    command: str

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def __str__(self) -> str:
        return f"{self.pid} of {self.service}: {self.command}"


def processes_of(world: str) -> list[Process]:
    """Return the processes of a world; zombies, which hold nothing any more, are none."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with suppress(OSError):  # it ended while we looked
                marks = _marks_of(directory)
                if marks.get(WORLD_MARK) == world:
                    status = (directory / "stat").read_text().rpartition(")")[2].split()
                    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found.append(Process(int(directory.name), int(status[1]), marks.get(SERVICE_MARK, ""), command))
    return found


def workers_under(service_pid: int, processes: Iterable[Process]) -> list[int]:
    """Return the workers of a service: the children of its fork server, oldest first."""
    processes = list(processes)
    servers = {process.pid for process in processes if process.parent == service_pid}
    return sorted(process.pid for process in processes if process.parent in servers)


def limit_file_size(pids: Iterable[int], size_bytes: int | None) -> None:
    """Let no file of these processes grow beyond a size, as a full disk does; None: no limit.

    Only the soft limit is moved, so that it can be moved back. Processes forked from them later have it too.
    """
    for pid in pids:
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size_bytes is None else size_bytes, hard))


def _marks_of(directory: Path) -> dict[str, str]:
    marks = {}
    for entry in (directory / "environ").read_bytes().split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name.startswith(b"KTRDR_CHAOS_"):
            marks[name.decode()] = value.decode()
    return marks
