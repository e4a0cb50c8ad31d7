"""Sees every path the code under test opens, makes, moves or removes, wherever it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Number of leading arguments of an audit event that are paths.
_PATHS_OF = {
    "open": 1, "os.listdir": 1, "os.scandir": 1, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1,
    "os.chmod": 1, "os.utime": 1, "os.rename": 2, "os.link": 2, "sqlite3.connect": 1, "shutil.rmtree": 1,
    "shutil.copyfile": 2, "shutil.copytree": 2, "shutil.move": 2,
}  # fmt: skip
# What the interpreter and its libraries read whatever the input is.
_INTERPRETER = (
    f"{sys.prefix}/", f"{sys.base_prefix}/", "/proc/", "/dev/", "/sys/", "/usr/share/zoneinfo/",
    f"{Path(__file__).resolve().parents[2]}/"
)  # fmt: skip


class _Watcher:
    """One hook for the process, since a hook cannot be taken away again."""

    def __init__(self) -> None:
        self._is_hooked = False
        self._roots: tuple[str, ...] | None = None
        self._escaped: list[str] = []

    def begin(self, roots: tuple[str, ...]) -> None:
        if not self._is_hooked:
            sys.addaudithook(self._on_event)
            self._is_hooked = True
        self._roots, self._escaped = roots, []

    def end(self) -> list[str]:
        self._roots = None
        return self._escaped

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._roots is None:
            return
        if event == "os.symlink":
            # The alias of a version is its sibling's bare name, so that a store can be moved as a whole.
            target, link = map(os.fsdecode, arguments[:2])
            self._check(event, os.path.join(os.path.dirname(link), target))
            self._check(event, link)
            return
        for path in arguments[: _PATHS_OF.get(event, 0)]:
            if isinstance(path, str | bytes | os.PathLike):
                self._check(event, os.fsdecode(path))

    def _check(self, event: str, path: str) -> None:
        if self._roots is None or os.path.basename(path) == path not in ("", ".", ".."):
            return  # a bare name: relative to an open directory, as shutil.rmtree works
        full = os.path.normpath(os.path.abspath(path.removeprefix("file:").partition("?")[0]))
        if not f"{full}/".startswith((*self._roots, *_INTERPRETER)):
            self._escaped.append(f"{event} {path!r}")


_WATCHER = _Watcher()


@contextmanager
def confined(*roots: Path) -> Iterator[None]:
    """Fail if anything outside `roots` is touched within the block."""
    _WATCHER.begin(tuple(f"{root.resolve()}/" for root in roots))
    try:
        yield
    finally:
        escaped = _WATCHER.end()
    assert not escaped, f"touched outside {roots}: {escaped[:4]}"
