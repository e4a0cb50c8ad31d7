"""One writer per directory: two would write the same records."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ktrdr_core.errors import IllegalStateError


class DirectoryLock:
    """A lock that ends with its process.

    Args:
        path: File that is locked, in the directory it stands for; both are created if missing.
        owner: What kind of process holds it, for the message: "backend", "trainer" or "import".
        way_out: What to do where another process has it, for the message.
    """

    def __init__(self, path: Path, *, owner: str, way_out: str = "stop it, or choose another --data-dir") -> None:
        self._path = path
        self._owner = owner
        self._way_out = way_out
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            IllegalStateError: Another process has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise IllegalStateError(f"another {self._owner} uses {self._path.parent}; {self._way_out}") from None
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; without one, do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
