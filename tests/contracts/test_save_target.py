"""What every place that a training saves to must do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ktrdr_core.storage.artifact import load_tensors
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, artifact_digest, artifact_files
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.staging import StagedStorage
from ktrdr_core.storage.stored_model import SaveTarget
from tests.kit.artifacts import make_artifact

TARGETS: dict[str, Callable[[Path], SaveTarget]] = {
    "model store": lambda root: ModelStorage(root / "models"),
    "staged": lambda root: StagedStorage(root / "work" / "artifact"),
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> SaveTarget:
    return TARGETS[request.param](tmp_path)


def test_saved_artifact_is_complete_where_it_says(target: SaveTarget) -> None:
    artifact = make_artifact()
    model = target.save(artifact)
    assert set(TRAVELLING_FILES) <= {file.name for file in model.files}
    assert list(model.files) == artifact_files(model.path)
    assert model.digest == model.result["artifact_digest"] == artifact_digest(model.path)
    assert model.result["model_path"] == str(model.path)
    assert (model.strategy_name, model.symbols, model.timeframes) == ("small", ("EURUSD",), ("1h",))
    np.testing.assert_array_equal(load_tensors(model.path)["layers.0.weight"], artifact.tensors["layers.0.weight"])


def test_digest_depends_on_the_artifact_alone(target: SaveTarget, tmp_path: Path) -> None:
    artifact = make_artifact(seed=3)
    assert target.save(artifact).digest == StagedStorage(tmp_path / "elsewhere").save(artifact).digest


def test_failed_save_leaves_nothing_that_looks_saved(target: SaveTarget, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        target.save(make_artifact(duration_seconds=float("inf")))
    assert not list(tmp_path.rglob("*.json"))
