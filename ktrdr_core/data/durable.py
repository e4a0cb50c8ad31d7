"""Files that are there whole or not at all, also after a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def fsync_directory(directory: Path) -> None:
    """Make creations and renames inside `directory` survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Make the files directly in `directory` survive a crash."""
    for entry in sorted(directory.iterdir()):
        if entry.is_file():
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    fsync_directory(directory)


@contextmanager
def open_durably(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` to be written; on leaving, fsync it, rename it over `path`, fsync the directory.

    Left by an exception, nothing of it stays, and `path` is as it was.
    """
    staging = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with staging.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write `content` beside `path`, fsync, rename over it, fsync the directory."""
    with open_durably(path) as file:
        file.write(content)
