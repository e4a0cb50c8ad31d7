"""Artifacts with weights of any size, as they look after a training: normal(0, 0.05), float32."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from pathlib import Path

import numpy as np

from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.artifact_sums import ArtifactSums, write_sums
from tests.kit.artifacts import make_artifact

_BLOCK_BYTES = 64 << 20
_COPY_BYTES = 1 << 20


def write_large_artifact(directory: Path, size_bytes: int, *, seed: int = 1) -> Path:
    """Write an artifact as a worker leaves it, its weights of `size_bytes`, a multiple of 4; return its weights file.

    The values repeat after 64 MiB, which no codec here sees: each works on 1 MiB at most.
    """
    write_artifact(directory, make_artifact(name=f"weights_{size_bytes >> 20}", seed=seed))
    path = directory / "model.safetensors"
    header = json.dumps(
        {"layers.0.weight": {"dtype": "F32", "shape": [size_bytes // 4], "data_offsets": [0, size_bytes]}}
    ).encode()
    rng = np.random.default_rng(seed)
    block = (0.05 * rng.standard_normal(min(size_bytes, _BLOCK_BYTES) // 4, dtype=np.float32)).tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for begin in range(0, size_bytes, _BLOCK_BYTES):
            file.write(block[: size_bytes - begin])
        os.fsync(file.fileno())
    write_sums(directory, ArtifactSums.of(directory))
    return path


def copy_with_digest(source: Path, target: Path) -> float:
    """Copy a file with SHA-256 and fsync, as plainly as it goes; return the seconds it took."""
    begin_s = time.monotonic()
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        buffer = bytearray(_COPY_BYTES)
        view = memoryview(buffer)
        while size := reader.readinto(buffer):
            digest.update(view[:size])
            writer.write(view[:size])
        os.fsync(writer.fileno())
    digest.hexdigest()
    return time.monotonic() - begin_s
