"""Workers and half-made files that a killed service left behind: noted while they live, found and ended at its start.

A worker whose service is gone ends by itself, and the fork server ends the one that cannot. What is ended here is left
where that server could not act either, because it was stopped too or hung.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ktrdr_core.data.durable import write_durably
from ktrdr_core.execution.process_group import end_group, kill_group
from ktrdr_core.logging import get_logger

NOTE_NAME = "worker.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_END_LIMIT_S = 10.0
# What `write_durably` and `write_artifact` call a thing until it is whole.
_STAGING = re.compile(r"\..+\.[0-9a-f]{32}|.+\.tmp")

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """A process, told from every later owner of its pid.

    Attributes:
        pid: Its number, which is handed out again some day.
        start_ticks: When it started, in clock ticks since the machine did.
        boot_id: Which start of the machine that was; "" where the kernel does not tell.
    """

    pid: int
    start_ticks: int
    boot_id: str = ""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the process that has `pid` now; None without one, or where /proc is missing."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        except OSError:
            return None
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id)


def note_worker(work_dir: Path, pid: int) -> None:
    """Note in `work_dir` which process runs its session; nothing if that is gone already. Blocking.

    Raises:
        OSError: The disk takes no note.
    """
    worker = WorkerProcess.of(pid)
    if worker is not None:
        write_durably(work_dir / NOTE_NAME, json.dumps(asdict(worker)).encode())


def clear_up_after_worker(work_dir: Path) -> None:
    """Remove the note of a worker that is gone, and what it left half made. Blocking."""
    _remove(work_dir / NOTE_NAME)
    for path in sorted(work_dir.rglob("*")):
        if _STAGING.fullmatch(path.name) is not None and path.exists():
            _log.info("Removing %s, which was never finished", path)
            _remove(path)


async def end_left_workers(sessions_dir: Path) -> list[str]:
    """End what the workers of an earlier process are still doing, and remove what they left half made.

    Call it before the first session starts. A worker that the kernel does not let go of is logged and left.

    Args:
        sessions_dir: Directory with one folder per session, which is its `work_dir`; it need not exist.

    Returns:
        The folders' names of the sessions whose worker was alive.
    """
    notes = await asyncio.to_thread(_read_notes, sessions_dir)
    alive = {work_dir: worker for work_dir, worker in notes.items() if WorkerProcess.of(worker.pid) == worker}
    are_gone = await asyncio.gather(*(_end(work_dir, worker) for work_dir, worker in alive.items()))
    surviving = {work_dir for work_dir, is_gone in zip(alive, are_gone, strict=True) if not is_gone}
    await asyncio.to_thread(_clear_up, sessions_dir, surviving)
    return sorted(work_dir.name for work_dir in alive)


async def _end(work_dir: Path, worker: WorkerProcess) -> bool:
    _log.warning("Killing worker %d, which an earlier process left behind session_id=%s", worker.pid, work_dir.name)
    kill_group(worker.pid)
    try:
        await asyncio.wait_for(end_group(worker.pid), _END_LIMIT_S)
    except TimeoutError:
        _log.error("Worker %d survives SIGKILL and is left session_id=%s", worker.pid, work_dir.name)
        return False
    return True


def _folders(sessions_dir: Path) -> Iterator[Path]:
    if sessions_dir.is_dir():
        yield from sorted(path for path in sessions_dir.iterdir() if path.is_dir())


def _read_notes(sessions_dir: Path) -> dict[Path, WorkerProcess]:
    notes = {}
    for work_dir in _folders(sessions_dir):
        try:
            notes[work_dir] = WorkerProcess(**json.loads((work_dir / NOTE_NAME).read_bytes()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            _log.warning("%s cannot be read and is left out: %s", work_dir / NOTE_NAME, error)
    return notes


def _clear_up(sessions_dir: Path, surviving: Set[Path]) -> None:
    for work_dir in _folders(sessions_dir):
        if work_dir not in surviving:
            clear_up_after_worker(work_dir)


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error)
