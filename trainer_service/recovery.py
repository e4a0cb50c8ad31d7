"""What a start finds on disk: the sessions of the process before, and what is left of its workers."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from ktrdr_core.errors import KtrdrError
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.execution.found_checkpoint import find_checkpoint
from ktrdr_core.execution.left_workers import end_left_workers
from ktrdr_core.logging import get_logger
from trainer_service.journal import JOURNAL_NAME, Journal
from trainer_service.session import Session

_log = get_logger(__name__)


async def load_sessions(sessions_dir: Path) -> list[Session]:
    """Return the sessions in `sessions_dir` with the checkpoints they left; no worker of theirs is alive any more."""
    await end_left_workers(sessions_dir)
    return await asyncio.to_thread(_read_all, sessions_dir)


def _read_all(sessions_dir: Path) -> list[Session]:
    sessions_dir.mkdir(parents=True, exist_ok=True)
    sessions = []
    for directory in sorted(path for path in sessions_dir.iterdir() if path.is_dir()):
        if not (directory / JOURNAL_NAME).exists():
            shutil.rmtree(directory, ignore_errors=True)  # the trainer died before it had accepted
            continue
        try:
            journal, content = Journal.open(directory)
        except KtrdrError as error:
            _log.error("A session is left out: %s", error.message)
            continue
        session = Session(directory, journal, content)
        if not session.log.is_closed or session.keeps_checkpoints:
            session.left_checkpoint = _find_checkpoint(directory)
        sessions.append(session)
    return sessions


def _find_checkpoint(directory: Path) -> SessionCheckpoint | None:
    try:
        return find_checkpoint(directory)
    except OSError as error:
        _log.error("The checkpoint in %s cannot be read: %s", directory, error)
        return None
