"""Real bars, a small strategy, and one training that many tests look at."""

from __future__ import annotations

import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.run_job import run_training
from tests.kit.builders import REPOSITORY, strategy_text
from tests.kit.training import Trained

EPOCHS = 2


@pytest.fixture(scope="session")
def bar_store() -> DirectoryBarStore:
    return DirectoryBarStore(REPOSITORY / "data")


@pytest.fixture(scope="session")
def spec() -> TrainingSpec:
    return TrainingSpec(strategy_yaml=strategy_text(**{"model.training.epochs": EPOCHS}), enable_gpu=False)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, spec: TrainingSpec, bar_store: DirectoryBarStore) -> Trained:
    storage = ModelStorage(tmp_path_factory.mktemp("trained") / "models")
    return Trained(spec, bar_store, storage, run_training(spec, bar_store=bar_store, model_storage=storage))
