from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ktrdr_core.errors import CorruptDataError, NotFoundError
from ktrdr_core.storage.artifact import (
    TRAVELLING_FILES,
    artifact_digest,
    artifact_files,
    load_result,
    load_tensors,
    verify_artifact,
    write_artifact,
)
from tests.kit.artifacts import FEATURE_NAMES, make_artifact


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
