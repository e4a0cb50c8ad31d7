from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ktrdr_core.errors import CorruptDataError, InvalidInputError, NotFoundError
from ktrdr_core.storage.artifact import load_result, load_tensors, verify_artifact, write_artifact
from ktrdr_core.storage.artifact_files import (
    TRAVELLING_FILES,
    artifact_digest,
    artifact_files,
    digest_contents,
    digest_of_files,
)
from tests.kit.artifacts import FEATURE_NAMES, make_artifact
from tests.kit.model_shelf import Shelf


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "artifact", make_artifact())
    return tmp_path / "artifact"


def test_written_artifact_reads_back_equal(artifact_dir: Path) -> None:
    artifact = make_artifact()
    for name, tensor in load_tensors(artifact_dir).items():
        np.testing.assert_array_equal(tensor, artifact.tensors[name])
    result = load_result(artifact_dir)
    assert result["feature_names"] == FEATURE_NAMES
    assert list(result["feature_importance"]) == FEATURE_NAMES
    assert result["model_path"] == str(artifact_dir)
    assert result["artifact_digest"] == artifact_digest(artifact_dir)


def test_files_are_listed_in_fixed_order_with_their_sha256(artifact_dir: Path) -> None:
    files = artifact_files(artifact_dir)
    assert tuple(file.name for file in files) == TRAVELLING_FILES
    for file in files:
        content = (artifact_dir / file.name).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_digest_ignores_what_differs_between_equal_executions(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", make_artifact(device="cpu", duration_seconds=1.0))
    write_artifact(tmp_path / "b", make_artifact(device="cuda:0", duration_seconds=2.0))
    write_artifact(tmp_path / "c", make_artifact(seed=2))
    assert artifact_digest(tmp_path / "a") == artifact_digest(tmp_path / "b") != artifact_digest(tmp_path / "c")


def test_order_of_keys_survives(artifact_dir: Path) -> None:
    raw = json.loads((artifact_dir / "metrics.json").read_text())
    assert list(raw["training_metrics"]) == [
        "epochs",
        "best_epoch",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
    ]


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_missing_file_is_named(artifact_dir: Path, name: str) -> None:
    (artifact_dir / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        verify_artifact(artifact_dir)


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_damaged_file_is_refused(artifact_dir: Path, name: str) -> None:
    (artifact_dir / name).write_bytes((artifact_dir / name).read_bytes()[:-20])
    with pytest.raises(CorruptDataError):
        verify_artifact(artifact_dir)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    artifact = make_artifact()
    artifact.tensors["layers.0.bias"][1] = np.nan
    write_artifact(tmp_path / "artifact", artifact)
    with pytest.raises(CorruptDataError, match=r"layers\.0\.bias"):
        verify_artifact(tmp_path / "artifact")


def test_foreign_file_is_refused(artifact_dir: Path) -> None:
    (artifact_dir / "run.py").write_text("import os")
    with pytest.raises(CorruptDataError, match=r"run\.py"):
        verify_artifact(artifact_dir)


def test_link_in_place_of_a_file_is_refused(artifact_dir: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    (artifact_dir / "config.json").rename(secret)
    (artifact_dir / "config.json").symlink_to(secret)
    with pytest.raises(CorruptDataError, match=r"config\.json"):
        verify_artifact(artifact_dir)


def test_writing_again_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_artifact(tmp_path / "artifact", make_artifact(seed=seed))
    assert load_result(tmp_path / "artifact")["config"]["training_config"] == {"seed": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["artifact"]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_artifact(tmp_path / "artifact", make_artifact(duration_seconds=float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_weights_of_every_dtype_and_place_are_those_the_library_reads(tmp_path: Path) -> None:
    """Three booleans first: what follows them lies where no processor wants a float."""
    rng = np.random.default_rng(1)
    artifact = make_artifact()
    tensors: Any = artifact.tensors
    for dtype in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"):
        tensors[dtype] = (100 * rng.normal(size=(3, 1))).astype(dtype)
    tensors |= {"scalar": np.float32(7), "empty": np.zeros((0, 4), dtype=np.float64)}
    write_artifact(tmp_path / "artifact", artifact)
    header = {
        "flags": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]},
        "floats": {"dtype": "F64", "shape": [2], "data_offsets": [3, 19]},
    }
    unaligned = json.dumps(header).ljust(200).encode()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(
        len(unaligned).to_bytes(8, "little") + unaligned + bytes([1, 0, 1]) + np.array([1.5, -2.5]).tobytes()
    )
    for name in ("artifact", "other"):
        wanted = load_file(tmp_path / name / "model.safetensors")
        found = load_tensors(tmp_path / name)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
            np.testing.assert_array_equal(found[key], tensor)
            assert found[key].flags.aligned


def test_changing_loaded_weights_leaves_the_file_as_it_is(artifact_dir: Path) -> None:
    before = artifact_files(artifact_dir)
    load_tensors(artifact_dir)["layers.0.bias"][:] = 9
    assert artifact_files(artifact_dir) == before


def test_json_file_of_any_size_is_not_read(artifact_dir: Path) -> None:
    os.truncate(artifact_dir / "config.json", 1 << 40)
    with pytest.raises(CorruptDataError, match=r"config\.json must have at most"):
        load_result(artifact_dir, digest="")


def change_json(directory: Path, name: str, change: Callable[[Any], None]) -> None:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))


HOSTILE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "no mapping": ("config.json", lambda content: content.update(strategy_config=[1])),
    "no strategy name": ("config.json", lambda content: content["strategy_config"].clear()),
    "number too large for a float": ("metrics.json", lambda content: content["test_metrics"].update(loss=10**400)),
    "identity that is no UUID": ("metadata.json", lambda content: content.update(model_id=int("1" * 32))),
    "identity in another spelling": ("metadata.json", lambda content: content.update(model_id="{" + "1" * 32 + "}")),
    "importance that is no number": (
        "features.json",
        lambda content: content["feature_importance"].update(dict.fromkeys(content["feature_importance"], "much")),
    ),
    "half a surrogate pair": ("features.json", lambda content: content.update(note="\ud800")),
    "symbols that are no list": ("metadata.json", lambda content: content.update(symbols="EURUSD")),
    "symbol that is no text": ("metadata.json", lambda content: content.update(symbols=[1])),
    "no timeframe": ("metadata.json", lambda content: content.update(timeframes=[])),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_artifact_that_tells_nonsense_is_refused_with_an_error_of_ours(tmp_path: Path, case: str) -> None:
    shelf = Shelf(tmp_path)
    directory = shelf.stage()
    change_json(directory, *HOSTILE[case])
    with pytest.raises((CorruptDataError, InvalidInputError)):
        shelf.storage.publish(directory)
    assert shelf.storage.list() == []
    assert directory.is_dir()


def test_deeply_nested_json_is_refused(artifact_dir: Path) -> None:
    (artifact_dir / "config.json").write_text("[" * 100_000)
    with pytest.raises(CorruptDataError):
        verify_artifact(artifact_dir)


def test_digest_is_of_names_sizes_and_digests(artifact_dir: Path) -> None:
    lines = "".join(
        f"{name}\0{len(content)}\0{hashlib.sha256(content).hexdigest()}\n"
        for name in ("model.safetensors", "config.json", "metrics.json", "features.json")
        for content in [(artifact_dir / name).read_bytes()]
    )
    wanted = hashlib.sha256(lines.encode()).hexdigest()
    assert artifact_digest(artifact_dir) == digest_of_files(artifact_files(artifact_dir)) == wanted
    assert digest_contents({path.name: path.read_bytes() for path in artifact_dir.iterdir()}) == wanted
    with pytest.raises(NotFoundError, match="metrics"):
        digest_of_files([file for file in artifact_files(artifact_dir) if file.name != "metrics.json"])
