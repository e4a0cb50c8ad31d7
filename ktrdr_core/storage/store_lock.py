"""Who may change a model store, and who reads what, over all threads and processes that share it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ktrdr_core.errors import UnavailableError

LOCK_TIMEOUT_S = 60.0
_READER_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.02


@contextmanager
def hold_lock(path: Path, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file at `path`; it ends with its process.

    Raises:
        UnavailableError: Others held it for `timeout_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if not _lock(file.fileno(), fcntl.LOCK_EX, timeout_s):
            raise UnavailableError(
                f"the model store {path.parent} was being changed for {timeout_s:g} s; try again, or look for a "
                "process that hangs"
            )
        yield


@contextmanager
def hold_for_reading(directory: Path) -> Iterator[bool]:
    """Hold a directory against garbage collection; False if it is gone."""
    with _hold(directory, fcntl.LOCK_SH, _READER_TIMEOUT_S) as is_held:
        yield is_held


@contextmanager
def hold_unread(directory: Path) -> Iterator[bool]:
    """Keep readers out of a directory; False if one is in it, or it is gone."""
    with _hold(directory, fcntl.LOCK_EX, 0.0) as is_held:
        yield is_held


@contextmanager
def _hold(directory: Path, kind: int, timeout_s: float) -> Iterator[bool]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        yield _lock(descriptor, kind, timeout_s) and _is_at(descriptor, directory)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, kind: int, timeout_s: float) -> bool:
    """Lock an open file; False if others stood against it for `timeout_s`. The kernel's own wait has no limit."""
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            return True
