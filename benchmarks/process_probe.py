"""What a process of a benchmark tells of itself when asked: its peak memory and the longest stall of its event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

_TICK_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What was seen since the last time it was asked for.

    Attributes:
        peak_mib: Largest resident memory, files that are mapped included, above what it was at the beginning.
        stall_ms: Longest time the event loop was late.
    """

    peak_mib: float
    stall_ms: float

    @classmethod
    def of_line(cls, line: str) -> Footprint:
        return cls(**json.loads(line))

    def line(self) -> str:
        return json.dumps(asdict(self))


class ProcessProbe:
    """Watches the process it lives in; `run` is a task of the event loop that is watched."""

    def __init__(self) -> None:
        self._idle_kib = 0
        self._stall_s = 0.0
        self._begin()

    async def run(self) -> None:
        while True:
            begin_s = time.monotonic()
            await asyncio.sleep(_TICK_S)
            self._stall_s = max(self._stall_s, time.monotonic() - begin_s - _TICK_S)

    def take(self) -> Footprint:
        """Return what was seen since the last time, and begin anew."""
        found = Footprint(peak_mib=(_status_kib("VmHWM") - self._idle_kib) / 1024, stall_ms=1000 * self._stall_s)
        self._begin()
        return found

    def _begin(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        self._idle_kib = _status_kib("VmRSS")
        self._stall_s = 0.0


def tell_on_signal(probe: ProcessProbe, number: int, say: Callable[[str], object]) -> None:
    """Say the footprint, as one line, whenever the signal comes."""
    asyncio.get_running_loop().add_signal_handler(number, lambda: say(probe.take().line()))


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)
