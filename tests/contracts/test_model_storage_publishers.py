"""Many processes on one store: no version lost or given twice, one winner of a compare-and-set, nobody in the way."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from ktrdr_core.errors import ModelNotFoundError, WriteConflictError
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.model_query import ModelQuery
from ktrdr_core.storage.model_storage import ModelStorage
from tests.kit.artifacts import make_artifact
from tests.kit.eventually import PATIENCE_S

NUM_PROCESSES = 4
EACH = 5
SET = "small/EURUSD_1h"


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


def raise_alias(root: str, number: int) -> None:
    """Move an alias one version up, again and again, as long as nobody else has."""
    storage = ModelStorage(Path(root) / "models")
    done = 0
    while done < EACH:
        try:
            current = storage.get(f"{SET}_champion").version
        except ModelNotFoundError:
            current = 0
        try:
            model = storage.set_alias(SET, "champion", current + 1, expected=current)
            assert model is not None
        except WriteConflictError:
            continue
        done += 1


def change_everything(root: str, number: int) -> None:
    """Publish, list, delete and collect garbage, all at once with the others; one deletes the index."""
    storage = ModelStorage(Path(root) / "models")
    for index in range(EACH):
        directory = Path(root) / f"staged_{number}_{index}"
        write_artifact(directory, make_artifact(seed=index))
        published = storage.publish(directory)
        assert published.name in [model.name for model in storage.list()]
        if number == 0:
            (storage.root / ".index.sqlite").unlink(missing_ok=True)
        if index % 2:
            storage.delete(published.name)
        storage.collect_garbage(keep_versions=NUM_PROCESSES * EACH, dry_run=False)
        storage.query(ModelQuery(alias="latest"), limit=5)


def run_in_processes(target: Callable[[str, int], None], root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(str(root), number)) for number in range(NUM_PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0] * NUM_PROCESSES


def test_of_many_who_move_an_alias_each_step_has_one_winner(tmp_path: Path) -> None:
    storage = ModelStorage(tmp_path / "models")
    for seed in range(NUM_PROCESSES * EACH):
        storage.publish(stage(tmp_path, seed))
    run_in_processes(raise_alias, tmp_path)
    assert storage.get(f"{SET}_champion").version == NUM_PROCESSES * EACH


def test_all_changes_at_once_leave_what_was_not_deleted(tmp_path: Path) -> None:
    run_in_processes(change_everything, tmp_path)
    storage = ModelStorage(tmp_path / "models")
    models = storage.list()
    assert len(models) == NUM_PROCESSES * (EACH - EACH // 2)
    for model in models:
        assert storage.load(model.name).digest == model.digest
    assert storage.get(f"{SET}_latest").version == max(model.version for model in models)
    assert [path.name for path in (tmp_path / "models" / ".staging").iterdir()] == []


def stage(root: Path, seed: int) -> Path:
    directory = root / f"staged_{seed}"
    write_artifact(directory, make_artifact(seed=seed))
    return directory


def test_concurrent_publishers_lose_and_double_nothing(tmp_path: Path) -> None:
    run_in_processes(publish_some, tmp_path)
    storage = ModelStorage(tmp_path / "models")
    models = storage.list("small")
    assert sorted(model.version for model in models) == list(range(1, NUM_PROCESSES * EACH + 1))
    assert {model.training_id for model in models} == {f"t{seed}" for seed in range(NUM_PROCESSES * EACH)}
    assert [model.version for model in storage.list("shared")] == [1]
    assert storage.load("small/EURUSD_1h_latest").version == NUM_PROCESSES * EACH
    assert [entry.name for entry in tmp_path.iterdir()] == ["models"]
