"""Whether the kernel's OOM killer struck while a process ran, from the counters that Linux keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

# A count is compared with one at least this much older than the last sign of life: a worker's last words are read
# after its death, and a count taken then would hide that death.
_RENEW_AFTER_S = 5.0


class OomKillWatch:
    """Compares counts of kills at the end of a process with those some seconds before.

    The counts are those of the process's own memory cgroup, which its kin alone adds to. Where the kernel shows none,
    that of the machine has to do, which any process killed in those seconds adds to.

    Args:
        pid: The process.
        monotonic: Clock in seconds.
        root: Where `proc` and `sys` are.
    """

    def __init__(self, pid: int, monotonic: Callable[[], float] = time.monotonic, *, root: Path = Path("/")) -> None:
        self._monotonic = monotonic
        own = tuple(path for path in _cgroup_counters(root, pid) if path.is_file())
        self._files = own or (root / "proc" / "vmstat",)
        self._before = self._latest = self._count()
        self._latest_s = monotonic()

    def note_life(self) -> None:
        """Take a newer count if the last is old; call it when the process was heard of."""
        now_s = self._monotonic()
        if now_s - self._latest_s >= _RENEW_AFTER_S:
            self._before, self._latest, self._latest_s = self._latest, self._count(), now_s

    def has_struck(self) -> bool:
        """Return whether a kill was counted since some seconds before the last sign of life."""
        return any(now > before for now, before in zip(self._count(), self._before, strict=True))

    def _count(self) -> tuple[int, ...]:
        return tuple(_read_count(path) for path in self._files)


def _cgroup_counters(root: Path, pid: int) -> Iterator[Path]:
    """Yield the files that may count kills among the kin of `pid`."""
    try:
        lines = (root / "proc" / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return
    cgroups = root / "sys" / "fs" / "cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        below = path.lstrip("/")
        if not controllers:
            yield from (cgroups / below / "memory.events", cgroups / "unified" / below / "memory.events")
        elif "memory" in controllers.split(","):
            yield cgroups / "memory" / below / "memory.oom_control"


def _read_count(path: Path) -> int:
    """Return the number behind `oom_kill` in the file; 0 if it has none, or is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
