"""An upload costs neither side memory that grows with it, and neither side's event loop stands still."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ktrdr_core.storage.artifact import write_artifact
from tests.kit.artifacts import make_artifact
from tests.kit.builders import REPOSITORY

SIZE_BYTES = 256 << 20
MAX_PEAK_BYTES = 64 << 20
MAX_BUSY_S = 0.020


@contextmanager
def a_side(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.upload_sides", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


def say(side: subprocess.Popen[str]) -> None:
    assert side.stdin is not None
    side.stdin.write("\n")
    side.stdin.flush()


def hear(side: subprocess.Popen[str]) -> str:
    assert side.stdout is not None
    return side.stdout.readline().strip()


def large_artifact(directory: Path, size_bytes: int) -> None:
    """Write an artifact whose weights do not fit into the memory that is allowed."""
    write_artifact(directory, make_artifact())
    values = np.random.default_rng(1).normal(0, 0.05, 1 << 20).astype(np.float32).tobytes()
    num_blocks = size_bytes // len(values)
    header = json.dumps({"w": {"dtype": "F32", "shape": [num_blocks << 20], "data_offsets": [0, num_blocks << 22]}})
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        for _ in range(num_blocks):
            file.write(values)


def upload(tmp_path: Path, size_bytes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Upload twice, so that what is loaded once is loaded; return what the second one cost sender and receiver."""
    small, large = tmp_path / "small", tmp_path / "large"
    write_artifact(small, make_artifact())
    large_artifact(large, size_bytes)
    with a_side("receive", str(tmp_path / "state")) as receiver:
        address = hear(receiver)
        with a_side("send", address, str(tmp_path / "artifact")) as sender:
            assert hear(sender) == "ready"
            for directory in (small, large):
                (tmp_path / "artifact").unlink(missing_ok=True)
                (tmp_path / "artifact").symlink_to(directory)
                say(receiver)
                assert hear(receiver) == "measuring"
                say(sender)
                sent = json.loads(hear(sender))
                say(receiver)
                received = json.loads(hear(receiver))
    return sent, received


def test_memory_of_both_sides_is_bounded_and_their_loops_are_free(tmp_path: Path) -> None:
    sent, received = upload(tmp_path, SIZE_BYTES)
    assert sent["version"] == 2
    for side in (sent, received):
        assert side["peak_bytes"] < MAX_PEAK_BYTES, (sent, received)
        assert side["busy_s"] < MAX_BUSY_S, (sent, received)
