"""The trainer's way to the model store as a process: `python -m benchmarks.upload_sender ADDRESS`.

Each line on stdin is the directory of an artifact; each line on stdout is what its upload took, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.process_probe import ProcessProbe
from ktrdr_core.logging import configure_logging
from trainer_service.outbox import Upload, UploadOptions


async def _warn(reason: str, message: str) -> None:
    sys.stderr.write(f"{reason}: {message}\n")


async def _serve(address: str) -> None:
    probe = ProcessProbe()
    watching = asyncio.create_task(probe.run())
    while line := await asyncio.to_thread(sys.stdin.readline):
        upload = Upload(
            Path(line.strip()),
            training_id="",
            attempt=0,
            target=lambda: address,
            warn=_warn,
            options=UploadOptions(),
        )
        probe.take()
        begin_s = time.monotonic()
        answer = await upload.run()
        seconds = time.monotonic() - begin_s
        report = {"seconds": seconds, "name": answer.model.name, "footprint": asdict(probe.take())}
        print(json.dumps(report), flush=True)
    watching.cancel()


def main() -> None:
    configure_logging("ERROR", service="upload-sender")
    asyncio.run(_serve(sys.argv[1]))


if __name__ == "__main__":
    main()
