from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ktrdr_core.errors import CancellationError, CorruptDataError, NotFoundError
from ktrdr_core.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
from ktrdr_core.training.model_trainer import TrainedModel
from tests.kit.training import CountingToken, make_network, make_part, make_trainer, recorder

TRAIN, VALIDATION = make_part(200, 1), make_part(60, 2)
BATCHES = 13


def run(
    *,
    token: CountingToken | None = None,
    checkpoint_dir: Path | None = None,
    resume_from: Path | None = None,
    **kw: Any,
) -> TrainedModel:
    callback = kw.pop("progress_callback", None)
    return make_trainer(callback, token, **kw).train(
        make_network(), TRAIN, VALIDATION, checkpoint_dir=checkpoint_dir, resume_from=resume_from
    )


def stop(directory: Path, limit: int, **kw: Any) -> Path:
    """Cancel at the `limit`-th question and return the checkpoint's path."""
    with pytest.raises(CancellationError) as caught:
        run(token=CountingToken(limit, save_checkpoint=True), checkpoint_dir=directory, **kw)
    return Path(caught.value.checkpoint_path)


def assert_same(left: TrainedModel, right: TrainedModel) -> None:
    assert left.history == right.history
    assert left.best_epoch == right.best_epoch
    for name, tensor in left.model.state_dict().items():
        assert torch.equal(tensor, right.model.state_dict()[name])


# Question 1 precedes the loop; each epoch asks once, once a batch, and once a block of validation.
@pytest.mark.parametrize(
    ("limit", "epoch", "batches_done"),
    [
        (3, 1, 0),
        (9, 1, 6),
        (3 + BATCHES, 1, BATCHES),
        (4 + BATCHES, 2, 0),
        (5 + BATCHES, 2, 0),
        (3 + 2 * BATCHES, 2, BATCHES - 2),
    ],
    ids=["before batch 1", "in epoch 1", "before validation", "between epochs", "epoch 2, no batch", "in epoch 2"],
)
def test_resumed_training_ends_with_the_bits_of_one_never_stopped(
    tmp_path: Path, limit: int, epoch: int, batches_done: int
) -> None:
    path = stop(tmp_path, limit)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.epoch, checkpoint.batches_done) == (epoch, batches_done)
    assert_same(run(resume_from=path), run())


def test_training_stopped_twice_ends_with_the_same_bits(tmp_path: Path) -> None:
    first = stop(tmp_path / "a", 9)
    second = stop(tmp_path / "b", 20, resume_from=first)
    assert_same(run(resume_from=second), run())


def test_resumed_training_reports_only_what_is_left(tmp_path: Path) -> None:
    path = stop(tmp_path, 2 + BATCHES + 4)
    seen: list[dict[str, Any]] = []
    run(resume_from=path, progress_callback=recorder(seen))
    assert [metrics["epoch"] for metrics in seen if metrics["progress_type"] == "epoch"] == [2, 3]


def test_checkpoint_of_a_finished_loop_gives_the_model_at_once(tmp_path: Path) -> None:
    finished = run()
    path = save_checkpoint(tmp_path / CHECKPOINT_NAME, finished.checkpoint)
    assert_same(run(resume_from=path), finished)


def test_checkpoint_may_be_named_by_its_directory(tmp_path: Path) -> None:
    path = stop(tmp_path, 9)
    assert path == tmp_path / CHECKPOINT_NAME
    assert load_checkpoint(tmp_path).batches_done == 6
    assert [entry.name for entry in tmp_path.iterdir()] == [CHECKPOINT_NAME]


def test_no_checkpoint_is_written_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CancellationError) as caught:
        run(token=CountingToken(9), checkpoint_dir=tmp_path)
    assert caught.value.checkpoint_path == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"seed": 7}, {"learning_rate": 0.02}, {"epochs": 4}], ids=str)
def test_checkpoint_of_another_job_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = stop(tmp_path, 9)
    with pytest.raises(CorruptDataError, match="another job"):
        run(resume_from=path, **change)


def test_checkpoint_of_other_rows_is_refused(tmp_path: Path) -> None:
    path = stop(tmp_path, 9)
    with pytest.raises(CorruptDataError, match="another job"):
        make_trainer().train(make_network(), make_part(200, 5), VALIDATION, resume_from=path)


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = stop(tmp_path, 9)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptDataError, match="not a checkpoint"):
        load_checkpoint(path)


def test_missing_checkpoint_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")
