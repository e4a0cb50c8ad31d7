"""The files of a trained model.

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
derived files hold plain tensors and primitives, load with `weights_only=True`, and are made where torch is installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as render_safetensors

from ktrdr_core.data.durable import fsync_directory, fsync_tree, write_durably
from ktrdr_core.domain.result import TrainingResult, validate_training_result
from ktrdr_core.errors import CorruptDataError, InvalidResultError, NotFoundError, StorageError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
FEATURES_FILE = "features.json"
METADATA_FILE = "metadata.json"
TRAVELLING_FILES = (WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE, FEATURES_FILE, METADATA_FILE)
DETERMINISTIC_FILES = TRAVELLING_FILES[:-1]
DERIVED_FILES = ("model.pt", "model_full.pt")


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of an artifact: its SHA-256 is in hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelArtifact:
    """A trained model before it is files.

    Attributes:
        tensors: Weights by name.
        config: `TrainingResult.config`; `model_config.network` is the architecture, the strategy is whole.
        metrics: `training_metrics`, `test_metrics`, `evaluation`, `history`.
        features: `feature_names`, `columns`, `feature_importance`, `scaler`, `fuzzy_sets` (as fitted).
        metadata: `model_id`, `TrainingResult.metadata`'s keys, `warnings`, `environment`.
    """

    tensors: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    features: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def render(self) -> dict[str, bytes]:
        """Return the content of each travelling file, in fixed order."""
        weights = {name: np.ascontiguousarray(tensor) for name, tensor in self.tensors.items()}
        return {
            WEIGHTS_FILE: render_safetensors(weights),
            CONFIG_FILE: _render_json(self.config),
            METRICS_FILE: _render_json(self.metrics),
            FEATURES_FILE: _render_json(self.features),
            METADATA_FILE: _render_json(self.metadata),
        }


def write_artifact(directory: Path, artifact: ModelArtifact) -> None:
    """Write the travelling files into a new `directory`; it appears complete, or not at all.

    An artifact that is there already is replaced.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{uuid4().hex}")
    staging.mkdir()
    try:
        for name, content in artifact.render().items():
            (staging / name).write_bytes(content)
        fsync_tree(staging)
        if directory.exists():
            shutil.rmtree(directory)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    fsync_directory(directory.parent)


def artifact_files(directory: Path) -> list[ArtifactFile]:
    """Return the files that are there, travelling ones first, in fixed order.

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
        content = path.read_bytes()
        found.append(ArtifactFile(name, len(content), hashlib.sha256(content).hexdigest()))
    return found


def artifact_digest(directory: Path) -> str:
    """Return the SHA-256, hex, over the deterministic files: equal jobs on equal hardware give equal digests."""
    return digest_contents({name: (directory / name).read_bytes() for name in DETERMINISTIC_FILES})


def digest_contents(contents: Mapping[str, bytes]) -> str:
    """Return what `artifact_digest` returns once `contents` are files."""
    digest = hashlib.sha256()
    for name in DETERMINISTIC_FILES:
        digest.update(f"{name}\0{len(contents[name])}\0".encode())
        digest.update(contents[name])
    return digest.hexdigest()


def load_result(directory: Path) -> TrainingResult:
    """Return the TrainingResult an artifact tells, with `model_path` its directory.

    Raises:
        NotFoundError: A file is missing.
        CorruptDataError: A file is not what it should be.
    """
    contents = {}
    for name in TRAVELLING_FILES:
        try:
            contents[name] = (directory / name).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"{directory} is no complete model artifact: {name} is missing") from None
    try:
        return build_result(contents, model_path=str(directory))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"the model artifact {directory} is damaged: {error}") from error


def build_result(contents: Mapping[str, bytes], *, model_path: str) -> TrainingResult:
    """Return the TrainingResult that the travelling files' `contents` tell.

    Raises:
        InvalidResultError: (a ValueError) Something is missing or wrong.
    """
    config, metrics, features, metadata = (
        json.loads(contents[name]) for name in (CONFIG_FILE, METRICS_FILE, FEATURES_FILE, METADATA_FILE)
    )
    names = features["feature_names"]
    importance = features["feature_importance"]
    if set(names) != set(importance):
        raise InvalidResultError("feature_importance must name the same features as feature_names")
    result: dict[str, Any] = {
        "success": True,
        "model_path": model_path,
        "model_id": metadata["model_id"],
        "training_metrics": metrics["training_metrics"],
        "test_metrics": metrics["test_metrics"],
        "evaluation": metrics["evaluation"],
        "feature_names": names,
        "feature_importance": {name: importance[name] for name in names},
        "config": config,
        "metadata": {key: metadata[key] for key in metadata if key not in ("model_id", "warnings", "checkpoints")},
        "artifact_digest": digest_contents(contents),
        "warnings": list(metadata.get("warnings", ())),
    }
    if metadata.get("checkpoints"):
        result["checkpoints"] = list(metadata["checkpoints"])
    if metrics.get("early_stop_epoch"):
        result |= {"early_stopped": True, "early_stop_epoch": metrics["early_stop_epoch"]}
    return validate_training_result(result)


def load_tensors(directory: Path) -> dict[str, NDArray[Any]]:
    """Return the weights by name.

    Raises:
        CorruptDataError: The file is no safetensors file, or a weight is NaN or infinite.
    """
    try:
        tensors: dict[str, NDArray[Any]] = parse_safetensors((directory / WEIGHTS_FILE).read_bytes())
    except SafetensorError as error:
        raise CorruptDataError(f"{directory / WEIGHTS_FILE} is no safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CorruptDataError(f"{directory / WEIGHTS_FILE}: {name} has values that are NaN or infinite")
    return tensors


def verify_artifact(directory: Path) -> TrainingResult:
    """Return the result of a complete, readable artifact, or raise what is wrong with it."""
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        is_known = entry.name in (*TRAVELLING_FILES, *DERIVED_FILES) or entry.name.startswith(".")
        if not is_known or entry.is_symlink():
            raise CorruptDataError(f"{entry} does not belong into a model artifact; remove it")
    result = load_result(directory)
    load_tensors(directory)
    return result


def has_torch() -> bool:
    """Return whether derived files can be made here, without loading torch."""
    from importlib.util import find_spec

    return find_spec("torch") is not None


def derive_torch_files(directory: Path) -> None:
    """Write `model.pt` and `model_full.pt` beside the weights they are made from; needs torch.

    Raises:
        StorageError: The disk takes no writes.
    """
    import torch

    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in load_tensors(directory).items()}
    config = json.loads((directory / CONFIG_FILE).read_bytes())
    features = json.loads((directory / FEATURES_FILE).read_bytes())
    scaler = features["scaler"]
    full = {
        "architecture": config["model_config"]["network"],
        "state_dict": state,
        "preprocessing": {
            "feature_names": features["feature_names"],
            "scaler_kind": scaler["kind"],
            "scaler_centre": torch.tensor(scaler["centre"], dtype=torch.float64),
            "scaler_scale": torch.tensor(scaler["scale"], dtype=torch.float64),
            "fuzzy_sets": features["fuzzy_sets"],
        },
        "strategy_config": config["strategy_config"],
    }
    for name, content in zip(DERIVED_FILES, (state, full), strict=True):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        try:
            write_durably(directory / name, buffer.getbuffer())
        except OSError as error:
            raise StorageError(f"{directory / name} cannot be written ({error}); free some space") from error


def _render_json(value: Mapping[str, Any]) -> bytes:
    # Insertion order, not sorted: the order of fuzzy sets in a strategy is the order of its features.
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
