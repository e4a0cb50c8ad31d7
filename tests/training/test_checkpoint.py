from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ktrdr_core.errors import CancellationError, CorruptDataError, NotFoundError
from ktrdr_core.training.checkpoint import load_checkpoint, save_checkpoint
from ktrdr_core.training.checkpoint_file import CHECKPOINT_NAME
from ktrdr_core.training.eager_engine import EagerEngine
from ktrdr_core.training.engines import EngineBuilder, build_engine
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.model_trainer import TrainedModel
from tests.kit.training import (
    CountingToken,
    make_network,
    make_part,
    make_settings,
    make_trainer,
    make_window_part,
    recorder,
)

TRAIN, VALIDATION = make_part(200, 1), make_part(60, 2)
BATCHES = 13
# Everything that a loop can remember at once.
BUSY: dict[str, Any] = {
    "schedule": {"type": "plateau", "factor": 0.5, "every_epochs": 1, "warm_up_epochs": 1},
    "early_stopping": {"metric": "val_mcc", "patience": 2},
    "class_weights": "balanced",
    "gradient_clip_norm": 1.0,
    "num_symbols": 2,
    "epochs": 4,
}


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
    assert left.early_stop_epoch == right.early_stop_epoch
    for name, tensor in left.model.state_dict().items():
        assert torch.equal(tensor, right.model.state_dict()[name])
    for own, other in zip(left.checkpoint.lanes, right.checkpoint.lanes, strict=True):
        for group in ("weights", "best", "engine"):
            assert getattr(own, group).keys() == getattr(other, group).keys()
            for name, tensor in getattr(own, group).items():
                assert torch.equal(tensor, getattr(other, group)[name]), (group, name)


# Question 1 precedes the loop; each epoch asks once, once a batch, and once a block of validation.
@pytest.mark.parametrize("engine", [build_engine, EagerEngine], ids=["stack", "eager"])
@pytest.mark.parametrize(
    ("limit", "epoch", "batches_done"),
    [
        (2, 1, 0),
        (3, 1, 0),
        (9, 1, 6),
        (3 + BATCHES, 1, BATCHES),
        (4 + BATCHES, 2, 0),
        (5 + BATCHES, 2, 0),
        (3 + 2 * BATCHES, 2, BATCHES - 2),
    ],
    ids=["at once", "before batch 1", "in epoch 1", "validation", "between epochs", "epoch 2, no batch", "in epoch 2"],
)
def test_resumed_training_ends_with_the_bits_of_one_never_stopped(
    tmp_path: Path, engine: EngineBuilder, limit: int, epoch: int, batches_done: int
) -> None:
    path = stop(tmp_path, limit, engine_builder=engine)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.epoch, checkpoint.batches_done) == (epoch, batches_done)
    assert_same(run(resume_from=path, engine_builder=engine), run(engine_builder=engine))


def busy_lanes(kind: str) -> list[Lane]:
    """Two lanes of different lengths, of two symbols each; the second hardly moves and stops early."""
    spec: dict[str, Any] = {} if kind == "mlp" else {"type": kind, "window_bars": 4, "hidden_layers": (6,)}
    window_bars = spec.get("window_bars", 1)
    return [
        Lane(
            make_network(seed=index, dropout=0.3, **spec),
            make_window_part(count, 10 + index, window_bars=window_bars, num_symbols=2),
            make_window_part(40, 20 + index, window_bars=window_bars, num_symbols=2),
            make_settings(**BUSY, seed=index, learning_rate=1e-9 if index else 0.03),
        )
        for index, count in enumerate((120, 70))
    ]


def run_busy(
    kind: str,
    engine: EngineBuilder,
    token: CountingToken | None = None,
    *,
    checkpoint_dir: Path | None = None,
    resume_from: Path | None = None,
) -> tuple[TrainedModel, ...]:
    trainer = make_trainer(None, token, engine_builder=engine, **BUSY, seed=0)
    return trainer.train_lanes(busy_lanes(kind), checkpoint_dir=checkpoint_dir, resume_from=resume_from)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [("mlp", build_engine), ("mlp", EagerEngine), ("lstm", EagerEngine)],
    ids=["mlp, stack", "mlp, eager", "lstm"],
)
def test_resumed_lanes_with_everything_switched_on_end_with_the_same_bits(
    tmp_path: Path, kind: str, engine: EngineBuilder
) -> None:
    token = CountingToken(10**9)
    whole = run_busy(kind, engine, token)
    assert {trained.early_stop_epoch is None for trained in whole} == {True, False}
    for limit in range(2, token.asked + 1, 3):
        directory = tmp_path / str(limit)
        with pytest.raises(CancellationError) as caught:
            run_busy(kind, engine, CountingToken(limit, save_checkpoint=True), checkpoint_dir=directory)
        resumed = run_busy(kind, engine, resume_from=Path(caught.value.checkpoint_path))
        for own, other in zip(whole, resumed, strict=True):
            assert_same(own, other)


def test_regression_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output_format": "regression", "buy_threshold": 0.005, "sell_threshold": 0.005}
    part, validation = make_window_part(120, 1, window_bars=1), make_window_part(40, 2, window_bars=1)

    def train(token: CountingToken | None = None, **places: Any) -> TrainedModel:
        network = make_network(num_outputs=1, output_activation="linear")
        return make_trainer(None, token, **settings).train(network, part, validation, **places)

    with pytest.raises(CancellationError) as caught:
        train(CountingToken(15, save_checkpoint=True), checkpoint_dir=tmp_path)
    assert_same(train(resume_from=Path(caught.value.checkpoint_path)), train())


def test_training_stopped_twice_ends_with_the_same_bits(tmp_path: Path) -> None:
    first = stop(tmp_path / "a", 9)
    second = stop(tmp_path / "b", 20, resume_from=first)
    assert_same(run(resume_from=second), run())


def test_training_stopped_again_before_its_first_batch_loses_nothing(tmp_path: Path) -> None:
    first = stop(tmp_path / "a", 9)
    second = stop(tmp_path / "b", 2, resume_from=first)
    assert load_checkpoint(second).batches_done == 6
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


@pytest.mark.parametrize("engine", [build_engine, EagerEngine], ids=["stack", "eager"])
def test_periodic_checkpoints_are_kept_the_newest_two_and_can_be_gone_on_from(
    tmp_path: Path, engine: EngineBuilder
) -> None:
    settings: dict[str, Any] = {"epochs": 7, "checkpoint_every_epochs": 2, "engine_builder": engine}
    whole = run(checkpoint_dir=tmp_path, **settings)
    assert [Path(path).name for path in whole.checkpoints] == [
        "epoch_00000004.safetensors",
        "epoch_00000006.safetensors",
    ]
    assert sorted(str(path) for path in tmp_path.iterdir()) == list(whole.checkpoints)
    for path, epoch in zip(whole.checkpoints, (5, 7), strict=True):
        checkpoint = load_checkpoint(Path(path))
        assert (checkpoint.epoch, checkpoint.batches_done) == (epoch, 0)
        assert_same(run(resume_from=Path(path), **settings), whole)


def test_resumed_training_goes_on_with_the_periodic_checkpoints_of_the_first(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 6, "checkpoint_every_epochs": 1}
    path = stop(tmp_path, 3 * (BATCHES + 2) + 5, **settings)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        CHECKPOINT_NAME,
        "epoch_00000002.safetensors",
        "epoch_00000003.safetensors",
    ]
    resumed = run(checkpoint_dir=tmp_path, resume_from=path, **settings)
    assert [Path(kept).name for kept in resumed.checkpoints] == [
        "epoch_00000005.safetensors",
        "epoch_00000006.safetensors",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        CHECKPOINT_NAME,
        *(Path(kept).name for kept in resumed.checkpoints),
    ]


def test_going_on_from_the_older_of_two_periodic_checkpoints_writes_the_newer_anew(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 5, "checkpoint_every_epochs": 1}
    whole = run(checkpoint_dir=tmp_path, **settings)
    again = run(checkpoint_dir=tmp_path, resume_from=Path(whole.checkpoints[0]), **settings)
    assert again.checkpoints == whole.checkpoints
    assert sorted(str(path) for path in tmp_path.iterdir()) == list(whole.checkpoints)


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


@pytest.mark.parametrize(
    "change",
    [{"seed": 7}, {"learning_rate": 0.02}, {"epochs": 4}, {"schedule": {"type": "cosine"}}, {"loss": "focal"}],
    ids=str,
)
def test_checkpoint_of_another_job_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = stop(tmp_path, 9)
    with pytest.raises(CorruptDataError, match="another job"):
        run(resume_from=path, **change)


@pytest.mark.parametrize("field", ["matrix", "y", "rows", "symbol_ids"])
def test_checkpoint_of_other_rows_is_refused(tmp_path: Path, field: str) -> None:
    path = stop(tmp_path, 9)
    other = getattr(TRAIN, field).copy()
    other[5] = other[6]
    if field == "symbol_ids":
        other[5] = 1
    part = replace(TRAIN, **{field: other})
    with pytest.raises(CorruptDataError, match="another job"):
        make_trainer().train(make_network(), part, VALIDATION, resume_from=path)


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = stop(tmp_path, 9)
    with pytest.raises(CorruptDataError, match="another job"):
        make_trainer().train(make_network(hidden_layers=(8, 6)), TRAIN, VALIDATION, resume_from=path)


def test_checkpoint_of_another_engine_is_refused(tmp_path: Path) -> None:
    path = stop(tmp_path, 9)
    with pytest.raises(CorruptDataError, match="taken from a StackEngine"):
        run(resume_from=path, engine_builder=EagerEngine)


def test_checkpoint_of_version_1_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_NAME
    save_file({"permutation": torch.arange(3)}, path, {"state": json.dumps({"format_version": 1})})
    with pytest.raises(CorruptDataError, match="checkpoint format 1, this version reads 2"):
        run(resume_from=path)


def test_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_NAME
    state = {"format_version": 2, "fingerprint": "", "engine": "", "epoch": 1, "batches_done": 0, "lanes": [{}]}
    save_file({"0/order": torch.arange(3)}, path, {"state": json.dumps(state)})
    with pytest.raises(CorruptDataError, match="not a whole checkpoint"):
        load_checkpoint(path)


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = stop(tmp_path, 9)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptDataError, match="not a checkpoint"):
        load_checkpoint(path)


def test_missing_checkpoint_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")
