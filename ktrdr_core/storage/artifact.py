"""A model artifact: how it is written, and what it tells. Which files it has is in `artifact_files.py`.

A weights file may be larger than the memory: nothing here reads one whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as render_safetensors

from ktrdr_core.data.durable import fsync_directory, fsync_tree
from ktrdr_core.domain.result import TrainingResult, validate_training_result
from ktrdr_core.errors import CorruptDataError, InvalidResultError, NotFoundError
from ktrdr_core.storage.artifact_files import (
    CONFIG_FILE,
    DERIVED_FILES,
    FEATURES_FILE,
    JSON_FILES,
    METADATA_FILE,
    METRICS_FILE,
    TRAVELLING_FILES,
    WEIGHTS_FILE,
    artifact_digest,
    digest_contents,
)
from ktrdr_core.storage.weights_file import WeightsTensor, check_finite, check_weights

# Larger weights get their derived files when somebody wants them, by `ktrdr models export`: for 64 MiB, they took five
# times as long as the upload.
MAX_DERIVED_WEIGHTS_BYTES = 8 << 20
# They are parsed whole. Those of 10,000 epochs have 4 MiB.
MAX_JSON_BYTES = 32 << 20

_NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip


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


def load_result(directory: Path, *, digest: str | None = None) -> TrainingResult:
    """Return the TrainingResult an artifact tells, with `model_path` its directory.

    Args:
        directory: The artifact.
        digest: Its `artifact_digest`, where it is known; else every deterministic file is read for it.

    Raises:
        NotFoundError: A file is missing.
        CorruptDataError: A file is not what it should be.
    """
    contents = {name: _read_json_file(directory / name) for name in JSON_FILES}
    try:
        if digest is None:
            digest = artifact_digest(directory)
        return build_result(contents, digest=digest, model_path=str(directory))
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{directory} is no complete model artifact: {Path(error.filename).name} is missing"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptDataError(f"the model artifact {directory} is damaged: {_describe(error)}") from error


def result_of(artifact: ModelArtifact) -> TrainingResult:
    """Return the TrainingResult of an artifact that is not stored; its `model_path` is empty."""
    contents = artifact.render()
    return build_result(contents, digest=digest_contents(contents), model_path="")


def build_result(contents: Mapping[str, bytes], *, digest: str, model_path: str) -> TrainingResult:
    """Return the TrainingResult that the `contents` of the JSON files tell.

    Raises:
        InvalidResultError: (a ValueError) Something is missing or wrong.
    """
    config, metrics, features, metadata = (_parse_json(contents[name]) for name in JSON_FILES)
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
        "artifact_digest": digest,
        "warnings": list(metadata.get("warnings", ())),
    }
    if metadata.get("checkpoints"):
        result["checkpoints"] = list(metadata["checkpoints"])
    if metrics.get("early_stop_epoch"):
        result |= {"early_stopped": True, "early_stop_epoch": metrics["early_stop_epoch"]}
    return validate_training_result(result)


def load_tensors(directory: Path) -> dict[str, NDArray[Any]]:
    """Return the weights by name, mapped from the file: memory is used as they are touched, changes stay in memory.

    Raises:
        CorruptDataError: The file is no safetensors file, or a weight is NaN or infinite.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for tensor, content in map_weights(directory):
        if tensor.dtype not in _NUMPY_DTYPES:
            raise CorruptDataError(
                f"{directory / WEIGHTS_FILE}: {tensor.name!r} has dtype {tensor.dtype}, which NumPy does not know; "
                "store it as F32"
            )
        tensors[tensor.name] = content.view(_NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)
    return tensors


def map_weights(directory: Path) -> Iterator[tuple[WeightsTensor, NDArray[np.uint8]]]:
    """Check the weights, then yield each tensor with its bytes, mapped from the file; changes stay in memory.

    Raises:
        CorruptDataError: The file is no safetensors file, or a weight is NaN or infinite.
    """
    path = directory / WEIGHTS_FILE
    table = check_weights(path)
    check_finite(path, table)
    content = np.memmap(path, dtype=np.uint8, mode="c")
    for tensor in table.tensors:
        data = np.asarray(content[tensor.offset : tensor.offset + tensor.size_bytes])
        # The format does not promise that values lie where a processor wants them.
        item_bytes = np.dtype(_NUMPY_DTYPES.get(tensor.dtype, "<u2")).itemsize
        yield tensor, data if tensor.offset % item_bytes == 0 else data.copy()


def verify_artifact(directory: Path, *, digest: str | None = None) -> TrainingResult:
    """Return the result of a complete, readable artifact, or raise what is wrong with it.

    Args:
        directory: The artifact; its weights are read once, and once more if `digest` is not given.
        digest: Its `artifact_digest`, where it is known.

    Raises:
        NotFoundError: A file is missing.
        CorruptDataError: A file is not what it should be, or does not belong there.
    """
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        is_known = entry.name in (*TRAVELLING_FILES, *DERIVED_FILES) or entry.name.startswith(".")
        if not is_known or entry.is_symlink():
            raise CorruptDataError(f"{entry} does not belong into a model artifact; remove it")
    result = load_result(directory, digest=digest)
    weights = directory / WEIGHTS_FILE
    if not weights.is_file():
        raise NotFoundError(f"{directory} is no complete model artifact: {WEIGHTS_FILE} is missing")
    check_finite(weights, check_weights(weights))
    return result


def _read_json_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > MAX_JSON_BYTES:
                raise CorruptDataError(f"{path} must have at most {MAX_JSON_BYTES} bytes, has {size_bytes}")
            return file.read(MAX_JSON_BYTES)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFoundError(f"{path.parent} is no complete model artifact: {path.name} is missing") from None


def _parse_json(content: bytes) -> Any:
    value = json.loads(content)
    if b"\\u" in content:
        # An escape may be half a surrogate pair: no text, and nothing can send it on.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _describe(error: Exception) -> str:
    """Return an error's text; a KeyError's is only the key."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _render_json(value: Mapping[str, Any]) -> bytes:
    # Insertion order, not sorted: the order of fuzzy sets in a strategy is the order of its features.
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
