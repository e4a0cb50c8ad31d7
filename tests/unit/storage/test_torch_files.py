"""The derived files; the only tests here that load torch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ktrdr_core.errors import CorruptDataError
from ktrdr_core.storage.artifact import MAX_DERIVED_WEIGHTS_BYTES, load_tensors, write_artifact
from ktrdr_core.storage.artifact_files import DERIVED_FILES, hash_file
from ktrdr_core.storage.torch_files import derive_torch_files, map_torch_tensors, write_torch_file
from tests.kit.artifacts import make_artifact, write_large_artifact
from tests.kit.model_shelf import Shelf


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    artifact = make_artifact()
    tensors: Any = artifact.tensors
    tensors |= {"doubles": np.arange(3.0), "flags": np.array([True, False, True]), "half": np.ones(5, dtype=np.float16)}
    write_artifact(tmp_path / "artifact", artifact)
    return tmp_path / "artifact"


def test_derived_files_hold_the_weights_and_what_makes_them_usable(artifact_dir: Path) -> None:
    derive_torch_files(artifact_dir)
    state, full = (torch.load(artifact_dir / name, weights_only=True) for name in DERIVED_FILES)
    for found in (state, full["state_dict"], map_torch_tensors(artifact_dir)):
        for name, tensor in load_tensors(artifact_dir).items():
            np.testing.assert_array_equal(found[name].numpy(), tensor)
    assert (
        full["preprocessing"]["feature_names"]
        == json.loads((artifact_dir / "features.json").read_text())["feature_names"]
    )
    assert full["architecture"]["type"] == "mlp"


def test_derived_files_are_the_same_bytes_wherever_they_are_written(artifact_dir: Path) -> None:
    derive_torch_files(artifact_dir)
    for name in DERIVED_FILES:
        stream = io.BytesIO()
        write_torch_file(artifact_dir, name, stream)
        assert stream.getvalue() == (artifact_dir / name).read_bytes()


def test_derived_files_have_each_tensor_once(artifact_dir: Path) -> None:
    """Tensors that share a storage would each be saved with the whole of it."""
    derive_torch_files(artifact_dir)
    weights = hash_file(artifact_dir / "model.safetensors").size_bytes
    assert (artifact_dir / "model.pt").stat().st_size < weights + 4000


def test_bfloat16_is_known_to_torch_alone(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\xc0")
    assert map_torch_tensors(tmp_path)["w"].tolist() == [1.0, -2.0]
    with pytest.raises(CorruptDataError, match="BF16"):
        load_tensors(tmp_path)


def test_damaged_weights_are_derived_from_by_nobody(artifact_dir: Path) -> None:
    weights = artifact_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CorruptDataError):
        derive_torch_files(artifact_dir)
    assert not any((artifact_dir / name).exists() for name in DERIVED_FILES)
    assert [path.name for path in artifact_dir.iterdir() if path.name.startswith(".")] == []


def test_only_small_weights_get_derived_files_of_themselves(tmp_path: Path) -> None:
    small = Shelf(tmp_path).storage.save(make_artifact())
    assert {file.name for file in small.files} >= set(DERIVED_FILES)
    write_large_artifact(tmp_path / "large", MAX_DERIVED_WEIGHTS_BYTES)
    artifact = make_artifact()
    tensors: Any = artifact.tensors
    tensors["large"] = load_tensors(tmp_path / "large")["layer"]
    large = Shelf(tmp_path).storage.save(artifact)
    assert not {file.name for file in large.files} & set(DERIVED_FILES)
