"""Checkpoints of sessions as files: what one is, and which a killed worker left. Never loads torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ktrdr_core.errors import CorruptDataError
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.logging import get_logger
from ktrdr_core.training.checkpoint_file import LoopPosition, read_position

CHECKPOINTS_NAME = "checkpoints"
_PATTERN = "[!.]*.safetensors"

log = get_logger(__name__)


def describe_checkpoint(path: Path, position: LoopPosition) -> SessionCheckpoint:
    """Return size and digest of the checkpoint in the file `path`.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = file.tell()
    return SessionCheckpoint(path=path, epoch=position.last_epoch, size_bytes=size_bytes, sha256=sha256)


def find_checkpoint(work_dir: Path) -> SessionCheckpoint | None:
    """Return the checkpoint of a session that came furthest; None if it left no whole one. Blocking.

    Args:
        work_dir: Of a session that has ended, or whose process is gone.
    """
    found: list[tuple[LoopPosition, Path]] = []
    for path in sorted((work_dir / CHECKPOINTS_NAME).glob(_PATTERN)):
        try:
            found.append((read_position(path), path))
        except CorruptDataError as error:
            log.warning("A checkpoint is left out: %s", error.message)
    if not found:
        return None
    position, path = max(found)
    return describe_checkpoint(path, position)
