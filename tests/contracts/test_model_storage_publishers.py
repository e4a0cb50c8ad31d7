"""Publishers in other processes: the same store, no version lost or given twice."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.model_storage import ModelStorage
from tests.kit.artifacts import make_artifact

NUM_PROCESSES = 4
EACH = 5


def publish_some(root: str, number: int) -> None:
    storage = ModelStorage(Path(root) / "models")
    for index in range(EACH):
        seed = number * EACH + index
        directory = Path(root) / f"staged_{seed}"
        write_artifact(directory, make_artifact(seed=seed))
        storage.publish(directory, training_id=f"t{seed}", attempt=1)
        # Everybody also delivers the same upload, as an outbox does that missed the answer.
        shared = Path(root) / f"shared_{os.getpid()}_{index}"
        write_artifact(shared, make_artifact(name="shared", seed=1, model_id="7c9e6679-7425-40de-944b-e07fc1f90ae7"))
        storage.publish(shared, training_id="shared", attempt=1)


def test_concurrent_publishers_lose_and_double_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=publish_some, args=(str(tmp_path), number)) for number in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * NUM_PROCESSES
    storage = ModelStorage(tmp_path / "models")
    models = storage.list("small")
    assert sorted(model.version for model in models) == list(range(1, NUM_PROCESSES * EACH + 1))
    assert {model.training_id for model in models} == {f"t{seed}" for seed in range(NUM_PROCESSES * EACH)}
    assert [model.version for model in storage.list("shared")] == [1]
    assert storage.load("small/EURUSD_1h_latest").version == NUM_PROCESSES * EACH
    assert [entry.name for entry in tmp_path.iterdir()] == ["models"]
