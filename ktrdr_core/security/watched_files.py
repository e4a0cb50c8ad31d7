"""A value that is made of files, and made again when they change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.logging import get_logger

LOOK_EVERY_S = 1.0
T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int] | None, ...]
_log = get_logger(__name__)


class WatchedFiles(Generic[T]):
    """The newest good value of some files. Thread-safe.

    A changed set of files that makes no good value, such as a certificate whose key has not been replaced yet, leaves
    the value as it is; that is logged once until they change again.

    Args:
        paths: The files.
        load: Makes the value of them; raises OSError or InvalidInputError where they are no good.
        what: What it is called in the log.
        clock: Seconds; the files are looked at once a second at most.

    Raises:
        InvalidInputError: The files are no good now.
    """

    def __init__(
        self, paths: Sequence[Path], load: Callable[[], T], *, what: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = tuple(paths)
        self._load = load
        self._what = what
        self._clock = clock
        self._looking = threading.Lock()
        self._looked_at = clock()
        self._stamp = self._look()
        self._generation = 1
        try:
            self._value = load()
        except OSError as error:
            raise InvalidInputError(f"{what} cannot be read: {error}") from error

    @property
    def is_due(self) -> bool:
        """Whether `get` will look at the disk."""
        return self._clock() - self._looked_at >= LOOK_EVERY_S

    @property
    def latest(self) -> T:
        """The value as it was when somebody looked last; never touches the disk."""
        return self._value

    def get(self) -> T:
        """Return the value, made anew if the files have changed."""
        return self.get_with_generation()[1]

    def get_with_generation(self) -> tuple[int, T]:
        """Return a number that grows with each new value, and the value."""
        if self.is_due and self._looking.acquire(blocking=False):  # who comes meanwhile takes what there is
            try:
                self._looked_at = self._clock()
                self._renew()
            finally:
                self._looking.release()
        return self._generation, self._value

    def _renew(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            value = self._load()
        except (OSError, InvalidInputError) as error:
            _log.warning("%s has changed and is no good, the one before stays in use: %s", self._what, error)
            return
        self._value = value
        self._generation += 1
        _log.info("%s has changed and is in use", self._what)

    def _look(self) -> _Stamp:
        return tuple(map(_stamp_of, self._paths))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
