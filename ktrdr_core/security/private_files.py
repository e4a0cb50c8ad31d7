"""Files with secrets: whole or not there, and readable by their owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from ktrdr_core.data.durable import fsync_directory

PRIVATE_FILE, PRIVATE_DIRECTORY, PUBLIC_FILE = 0o600, 0o700, 0o644
_OTHERS = 0o077


def write_private(path: Path, content: bytes, *, mode: int = PRIVATE_FILE) -> None:
    """Write `content` beside `path` with `mode` from its first byte on, fsync, rename over it, fsync the directory."""
    staging = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask took away
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
    fsync_directory(path.parent)


def is_open_to_others(path: Path) -> bool:
    """Return whether group or others may read or write a file."""
    return bool(path.stat().st_mode & _OTHERS)
