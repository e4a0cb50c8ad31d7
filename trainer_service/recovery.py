"""What a start finds on disk: the sessions of the process before, and what is left of its workers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

from ktrdr_core.errors import KtrdrError
from ktrdr_core.execution.process_group import end_group
from ktrdr_core.logging import get_logger
from trainer_service.journal import JOURNAL_NAME, Journal, JournalContent, WorkerProcess
from trainer_service.session import Session

_log = get_logger(__name__)


async def load_sessions(sessions_dir: Path) -> list[Session]:
    """Return the sessions in `sessions_dir`, none of whose workers is alive any more."""
    found = await asyncio.to_thread(_read_all, sessions_dir)
    sessions = [Session(directory, journal, content) for directory, journal, content in found]
    for session in sessions:
        if session.left_worker is not None and not session.log.is_closed:
            await _end_left_worker(session.left_worker, session.session_id)
    return sessions


def _read_all(sessions_dir: Path) -> list[tuple[Path, Journal, JournalContent]]:
    sessions_dir.mkdir(parents=True, exist_ok=True)
    found = []
    for directory in sorted(path for path in sessions_dir.iterdir() if path.is_dir()):
        if not (directory / JOURNAL_NAME).exists():
            shutil.rmtree(directory, ignore_errors=True)  # the trainer died before it had accepted
            continue
        try:
            journal, content = Journal.open(directory)
        except KtrdrError as error:
            _log.error("A session is left out: %s", error.message)
            continue
        found.append((directory, journal, content))
    return found


async def _end_left_worker(worker: WorkerProcess, session_id: str) -> None:
    """Kill a worker that outlived its trainer; losing its pipe ends it, so this is for one that hangs."""
    if WorkerProcess.of(worker.pid) != worker:
        return
    _log.warning("Killing worker %d, which its trainer left behind session_id=%s", worker.pid, session_id)
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    await end_group(worker.pid)
