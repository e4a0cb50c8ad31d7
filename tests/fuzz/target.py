"""What a fuzz target is, and how bytes become decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Probe = Callable[[bytes], None]
"""Takes one input; raises whatever must not happen, so anything it raises is a defect."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One way for bytes from outside to come in.

    Attributes:
        name: For people and file names.
        build: Returns the probe; it may write in the directory it is given and nowhere else.
        seeds: Returns inputs that get far.
    """

    name: str
    build: Callable[[Path], Probe]
    seeds: Callable[[], Sequence[bytes]]


class Decisions:
    """Reads decisions from bytes; once they are used up, every decision is the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def number(self, limit: int) -> int:
        """Return a number from 0 to below `limit`, at most 65,536."""
        size = 1 if limit <= 256 else 2
        return int.from_bytes(self.take(size), "little") % limit

    def choice(self, values: Sequence[T]) -> T:
        return values[self.number(len(values))]

    def take(self, size: int) -> bytes:
        """Return the next bytes; fewer at the end."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def rest(self) -> bytes:
        return self.take(len(self._data))
