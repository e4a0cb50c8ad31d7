"""The files of a model artifact, and their digests; nothing here knows what is in them.

```
model.safetensors   weights: the truth, and what travels
config.json         strategy, training, model and data configuration
metrics.json        metrics of each epoch, of the best one and of the test part; the evaluation
features.json       feature names and importance, the fitted scaler and fuzzy sets
metadata.json       identity, times, device, versions: all that differs between two equal executions
model.pt            derived: state dict
model_full.pt       derived: architecture, state dict, preprocessing
```
All but the last three depend on the job alone, bit for bit on the same hardware; `artifact_digest` is over them. The
derived files hold plain tensors and primitives, load with `weights_only=True`, and are made where torch is installed
(`torch_files.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ktrdr_core.errors import NotFoundError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
FEATURES_FILE = "features.json"
METADATA_FILE = "metadata.json"
TRAVELLING_FILES = (WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE, FEATURES_FILE, METADATA_FILE)
DETERMINISTIC_FILES = TRAVELLING_FILES[:-1]
DERIVED_FILES = ("model.pt", "model_full.pt")
JSON_FILES = (CONFIG_FILE, METRICS_FILE, FEATURES_FILE, METADATA_FILE)

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of an artifact: its SHA-256 is in hex."""

    name: str
    size_bytes: int
    sha256: str


def artifact_files(directory: Path) -> list[ArtifactFile]:
    """Return the files that are there, travelling ones first, in fixed order; every byte of them is read.

    Raises:
        NotFoundError: A travelling file is missing.
    """
    found = []
    for name in (*TRAVELLING_FILES, *DERIVED_FILES):
        path = directory / name
        if path.is_symlink() or not path.is_file():
            if name in DERIVED_FILES:
                continue
            raise NotFoundError(f"{directory} is no complete model artifact: {name} is missing")
        found.append(hash_file(path))
    return found


def hash_file(path: Path) -> ArtifactFile:
    """Return name, size and SHA-256 of a file."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    size_bytes = 0
    with path.open("rb", buffering=0) as file:
        while num_read := file.readinto(block):
            digest.update(block[:num_read])
            size_bytes += num_read
    return ArtifactFile(path.name, size_bytes, digest.hexdigest())


def artifact_digest(directory: Path) -> str:
    """Return `digest_of_files` of an artifact; equal jobs on equal hardware give equal digests."""
    return digest_of_files(hash_file(directory / name) for name in DETERMINISTIC_FILES)


def digest_contents(contents: Mapping[str, bytes]) -> str:
    """Return what `artifact_digest` returns once `contents` are files."""
    return digest_of_files(
        ArtifactFile(name, len(contents[name]), hashlib.sha256(contents[name]).hexdigest())
        for name in DETERMINISTIC_FILES
    )


def digest_of_files(files: Iterable[ArtifactFile]) -> str:
    """Return the SHA-256, hex, over name, size and SHA-256 of the deterministic files.

    Raises:
        NotFoundError: One of them is not among `files`.
    """
    known = {file.name: file for file in files}
    digest = hashlib.sha256()
    for name in DETERMINISTIC_FILES:
        if name not in known:
            raise NotFoundError(f"{name} is missing among the files of the model artifact")
        digest.update(f"{name}\0{known[name].size_bytes}\0{known[name].sha256}\n".encode())
    return digest.hexdigest()
