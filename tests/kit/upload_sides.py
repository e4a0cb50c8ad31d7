"""The two sides of an upload as processes of their own, that tell what it cost them: for tests and by hand.

`python -m tests.kit.upload_sides receive DATA_DIR` serves a backend, `... send ADDRESS DIRECTORY` uploads. Both print a
line when they are ready, go on at each line of stdin, and print a JSON object of their costs since.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from backend_service.app import BackendApp
from backend_service.settings import BackendSettings
from ktrdr_core.rpc.send_upload import ArtifactSender
from ktrdr_core.rpc.upload import UploadPlan

TICK_S = 0.005


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")


def _forget_peak() -> None:
    """Have VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


@asynccontextmanager
async def costs() -> AsyncIterator[dict[str, Any]]:
    """Measure, until the block ends: peak of the resident memory, seconds, and how long the event loop stood still.

    `busy_s` is the longest time that the loop's thread worked on end; `stall_s` also counts what it waited for, and
    what the machine gave to other processes.
    """
    found: dict[str, Any] = {}
    _forget_peak()
    before = _status_bytes("VmRSS")
    stalls, busy = [0.0], [0.0]

    async def tick() -> None:
        while True:
            wall, cpu = time.monotonic(), time.thread_time()
            await asyncio.sleep(TICK_S)
            stalls.append(time.monotonic() - wall - TICK_S)
            busy.append(time.thread_time() - cpu)

    ticking = asyncio.create_task(tick())
    begun = time.monotonic()
    try:
        yield found
    finally:
        found |= {
            "peak_bytes": _status_bytes("VmHWM") - before,
            "seconds": time.monotonic() - begun,
            "stall_s": max(stalls),
            "busy_s": max(busy),
        }
        ticking.cancel()


async def _next_line() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


async def receive(data_dir: Path) -> None:
    app = BackendApp(BackendSettings(port=0, data_dir=data_dir, slots=0))
    port = await app.start()
    try:
        _say(f"127.0.0.1:{port}")
        while await _next_line():
            async with costs() as found:
                _say("measuring")
                await _next_line()
            _say(json.dumps(found))
    finally:
        await app.stop()


async def send(address: str, directory: Path) -> None:
    _say("ready")
    while await _next_line():
        async with costs() as found:
            begun = time.monotonic()
            plan = await asyncio.to_thread(UploadPlan.of, directory)
            found["hash_s"] = time.monotonic() - begun
            response = await ArtifactSender(plan, lambda: address).send()
        found["version"] = response.model.version
        _say(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        asyncio.run(receive(Path(sys.argv[2])))
    else:
        asyncio.run(send(sys.argv[2], Path(sys.argv[3])))
