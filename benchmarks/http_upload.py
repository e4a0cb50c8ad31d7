"""The usual way to hand a model over, for comparison: torch.save, gzip, base64, a JSON POST to a FastAPI server.

`python -m benchmarks.http_upload --size-mb 512` prints its rate alone; that takes about a minute and 7 GB of memory.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.weights import write_large_artifact
from tests.kit.processes import ServiceProcess

MB = 10**6
LIMIT_S = 600.0
"""Of one upload; httpx's default of 5 s fails every model above some 50 MB."""


def serve(directory: Path) -> None:
    """Serve until SIGTERM: each POST is decoded into a file of `directory` and fsynced."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/models/{name}")
    def receive(name: str, message: dict[str, Any]) -> dict[str, int]:
        content = gzip.decompress(base64.b64decode(message["model_data_base64"]))
        with (directory / f"{int(name)}.pt").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return {"size_bytes": len(content)}

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


def send(address: str, weights: Path) -> float:
    """Send the weights of a safetensors file once and return the seconds it took, from tensors to the answer."""
    import httpx
    from safetensors.torch import load_file
    from torch import save

    state = load_file(weights)
    begin_s = time.monotonic()
    buffer = io.BytesIO()
    save(state, buffer)
    data = base64.b64encode(gzip.compress(buffer.getvalue())).decode()
    message = {"model_data_base64": data, "epochs": 1}
    answer = httpx.post(f"http://{address}/models/1", json=message, timeout=LIMIT_S)
    answer.raise_for_status()
    assert answer.json()["size_bytes"] == len(buffer.getbuffer())
    return time.monotonic() - begin_s


def measure(weights: Path, directory: Path) -> float:
    """Return the seconds that one upload of the weights takes; both sides are processes of their own."""
    directory.mkdir(exist_ok=True)
    server = ServiceProcess("benchmarks.http_upload", "--serve", str(directory))
    try:
        command = [sys.executable, "-m", "benchmarks.http_upload", "--send", server.address, str(weights)]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=LIMIT_S).stdout)
    finally:
        server.end(signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=512)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--send", nargs=2)
    arguments, _ = parser.parse_known_args()  # ServiceProcess adds the flags of every service
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.send:
        print(send(arguments.send[0], Path(arguments.send[1])))
    else:
        with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
            weights = write_large_artifact(Path(name) / "artifact", arguments.size_mb * MB)
            rate = arguments.size_mb / measure(weights, Path(name) / "http")
            print(f"torch.save + gzip + base64 + JSON POST, {arguments.size_mb} MB: {rate:.1f} MB/s")


if __name__ == "__main__":
    main()
