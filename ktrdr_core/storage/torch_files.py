"""The derived files of an artifact, `model.pt` and `model_full.pt`, and what else of it needs torch.

They are written as they are made: neither weights nor files are in memory beyond what the page cache holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ktrdr_core.data.durable import open_durably
from ktrdr_core.errors import StorageError
from ktrdr_core.storage.artifact import map_weights
from ktrdr_core.storage.artifact_files import CONFIG_FILE, DERIVED_FILES, FEATURES_FILE

if TYPE_CHECKING:
    import torch

_TORCH_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


def has_torch() -> bool:
    """Return whether derived files can be made here, without loading torch."""
    from importlib.util import find_spec

    return find_spec("torch") is not None


def map_torch_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights by name, mapped from the file: memory is used as they are touched, changes stay in memory.

    Each has a storage of its own, as torch.save wants it: of tensors that share one it writes the whole file.

    Raises:
        CorruptDataError: The file is no safetensors file, or a weight is NaN or infinite.
    """
    import torch

    dtypes = {name: getattr(torch, torch_name) for name, torch_name in _TORCH_DTYPES.items()}
    return {
        tensor.name: torch.from_numpy(content).view(dtypes[tensor.dtype]).reshape(tensor.shape)
        for tensor, content in map_weights(directory)
    }


def write_torch_file(directory: Path, name: str, stream: BinaryIO) -> None:
    """Write the derived file `name` of the artifact in `directory` to `stream`.

    To a stream and not to a path: of a path, torch.save writes the name into the file.

    Raises:
        CorruptDataError: The weights are damaged.
    """
    import torch

    state = map_torch_tensors(directory)
    torch.save(state if name == DERIVED_FILES[0] else _full_content(directory, state), stream)


def derive_torch_files(directory: Path) -> None:
    """Write `model.pt` and `model_full.pt` beside the weights they are made from.

    Raises:
        CorruptDataError: The weights are damaged.
        StorageError: The disk takes no writes.
    """
    for name in DERIVED_FILES:
        try:
            with open_durably(directory / name) as stream:
                write_torch_file(directory, name, stream)
        except OSError as error:
            raise StorageError(f"{directory / name} cannot be written ({error}); free some space") from error


def _full_content(directory: Path, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what makes a model usable on its own, as plain tensors and primitives."""
    import torch

    config = json.loads((directory / CONFIG_FILE).read_bytes())
    features = json.loads((directory / FEATURES_FILE).read_bytes())
    scaler = features["scaler"]
    return {
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
