"""One backend per data directory: two would write the same trainings."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ktrdr_core.errors import IllegalStateError


class DirectoryLock:
    """A lock on a directory that ends with its process.

    Args:
        directory: What is locked; created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            IllegalStateError: Another process has it.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._directory / "backend.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise IllegalStateError(
                f"another backend uses {self._directory}; stop it, or choose another --data-dir"
            ) from None
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; without one, do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
