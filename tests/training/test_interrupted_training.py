"""A training that was interrupted goes on from its checkpoint, or begins anew, and ends with the same artifact."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import CorruptDataError, NotFoundError, StorageError
from ktrdr_core.storage.staging import StagedStorage
from ktrdr_core.training.checkpoint import load_checkpoint, save_checkpoint
from ktrdr_core.training.checkpoint_file import LoopPosition
from ktrdr_core.training.run_job import run_training
from tests.kit.builders import strategy_text, write_bars_csv

LSTM: dict[str, Any] = {
    "model.features.lookback_periods": 5,
    "model.training.batch_size": 128,
    "model.type": "lstm",
    "model.architecture": {"hidden_layers": [6, 4], "dropout": 0.2},
}
FOLDS: dict[str, Any] = {"validation": {"method": "walk_forward", "folds": 3, "window": "rolling", "seeds": 2}}


def train(bar_store: DirectoryBarStore, strategy: dict[str, Any], **options: Any) -> TrainingResult:
    spec = TrainingSpec(
        strategy_yaml=strategy_text(**strategy),
        start_date=date(2017, 3, 1),
        end_date=date(2017, 6, 30),
        enable_gpu=False,
        epochs=2,
    )
    return run_training(spec, bar_store=bar_store, model_storage=options.pop("model_storage", None), **options)


def first_checkpoint(bar_store: DirectoryBarStore, strategy: dict[str, Any], directory: Path) -> Path:
    """Train with timed checkpoints and return a copy of the first, taken within the first epoch."""
    kept = directory / "kept.safetensors"

    def keep(path: Path, position: LoopPosition) -> None:
        if not kept.exists():
            shutil.copy(path, kept)

    train(bar_store, strategy, checkpoint_dir=directory / "written", checkpoint_every_s=0.0, checkpoint_callback=keep)
    return kept


@pytest.mark.parametrize("strategy", [FOLDS, LSTM], ids=["mlp with folds", "lstm"])
def test_a_resumed_training_gives_the_same_bits(
    bar_store: DirectoryBarStore, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    positions: list[LoopPosition] = []
    copies = tmp_path / "copies"
    copies.mkdir()

    def keep(path: Path, position: LoopPosition) -> None:
        positions.append(position)
        shutil.copy(path, copies)

    watched = train(
        bar_store, strategy, checkpoint_dir=tmp_path / "own", checkpoint_every_s=0.0, checkpoint_callback=keep
    )
    digest = train(bar_store, strategy)["artifact_digest"]
    assert watched["artifact_digest"] == digest
    assert "checkpoints" not in watched
    assert positions[0] == LoopPosition(epoch=1, batches_done=1)
    for path in copies.iterdir():
        assert train(bar_store, strategy, resume_from=path)["artifact_digest"] == digest


def test_epochs_of_the_checkpoint_that_nobody_heard_of_are_told_again(
    bar_store: DirectoryBarStore, tmp_path: Path
) -> None:
    def told(**options: Any) -> list[tuple[int, float]]:
        epochs: list[tuple[int, float]] = []

        def listen(epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
            if metrics["progress_type"] == "epoch":
                epochs.append((epoch, metrics["val_loss"]))

        strategy = {"model.training.checkpoint_every_epochs": 1}
        train(bar_store, strategy, progress_callback=listen, **options)
        return epochs

    whole = told(checkpoint_dir=tmp_path)
    assert [epoch for epoch, _ in whole] == [1, 2]
    first = tmp_path / "epoch_00000001.safetensors"
    assert told(resume_from=first) == told(resume_from=first, tell_epochs_after=1) == whole[1:]
    assert told(resume_from=first, tell_epochs_after=0) == whole


def damaged(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-10])
    return path


def without_a_tensor(path: Path) -> Path:
    """Take the optimiser's state from the last lane: found only while the others are being restored."""
    checkpoint = load_checkpoint(path)
    *others, last = checkpoint.lanes
    return save_checkpoint(path, replace(checkpoint, lanes=(*others, replace(last, engine={}))))


def of_another_engine(path: Path) -> Path:
    return save_checkpoint(path, replace(load_checkpoint(path), engine="OtherEngine"))


def of_another_job(path: Path) -> Path:
    return save_checkpoint(path, replace(load_checkpoint(path), fingerprint="0" * 64))


def removed(path: Path) -> Path:
    path.unlink()
    return path


@pytest.mark.parametrize(
    ("strategy", "spoil"),
    [
        *((FOLDS, spoil) for spoil in (damaged, without_a_tensor, of_another_engine, of_another_job, removed)),
        (LSTM, without_a_tensor),  # this engine restores weights into the network itself, before it finds the gap
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_or_a_warning(
    bar_store: DirectoryBarStore, tmp_path: Path, strategy: dict[str, Any], spoil: Callable[[Path], Path]
) -> None:
    path = spoil(first_checkpoint(bar_store, strategy, tmp_path))
    with pytest.raises((CorruptDataError, NotFoundError)):
        train(bar_store, strategy, resume_from=path)
    warnings: list[tuple[str, str]] = []
    begun_anew = train(
        bar_store,
        strategy,
        resume_from=path,
        must_resume=False,
        warning_callback=lambda reason, message: warnings.append((reason, message)),
    )
    fresh = train(bar_store, strategy)
    assert begun_anew["artifact_digest"] == fresh["artifact_digest"]
    assert begun_anew["warnings"] == fresh["warnings"]
    (message,) = [message for reason, message in warnings if reason == "CHECKPOINT_UNUSABLE"]
    assert str(path) in message


def test_a_checkpoint_that_can_be_used_is_no_warning(bar_store: DirectoryBarStore, tmp_path: Path) -> None:
    path = first_checkpoint(bar_store, LSTM, tmp_path)
    epochs: list[int] = []
    warnings: list[str] = []
    train(
        bar_store,
        LSTM,
        resume_from=path,
        must_resume=False,
        warning_callback=lambda reason, message: warnings.append(reason),
        progress_callback=lambda epoch, total, metrics: epochs.append(epoch),
    )
    assert "CHECKPOINT_UNUSABLE" not in warnings
    assert set(epochs) == {1, 2}


def test_a_checkpoint_of_other_bars_is_not_gone_on_from(bar_store: DirectoryBarStore, tmp_path: Path) -> None:
    path = first_checkpoint(bar_store, LSTM, tmp_path)
    bars = bar_store.load("EURUSD", "1h")
    close = bars.close.copy()
    close[2_000] = (bars.high[2_000] + bars.low[2_000]) / 2  # one bar of the range; no rule is broken
    write_bars_csv(tmp_path / "changed", replace(bars, close=close))
    changed = DirectoryBarStore(tmp_path / "changed")
    with pytest.raises(CorruptDataError, match="another job"):
        train(changed, LSTM, resume_from=path)
    warnings: list[str] = []
    begun_anew = train(
        changed,
        LSTM,
        resume_from=path,
        must_resume=False,
        warning_callback=lambda reason, message: warnings.append(reason),
    )
    assert "CHECKPOINT_UNUSABLE" in warnings
    assert begun_anew["artifact_digest"] == train(changed, LSTM)["artifact_digest"]
    assert "resumed_from" not in begun_anew["metadata"]


def test_what_was_gone_on_from_is_told_beside_the_model(bar_store: DirectoryBarStore, tmp_path: Path) -> None:
    path = first_checkpoint(bar_store, LSTM, tmp_path)
    resumed = dict(train(bar_store, LSTM, resume_from=path)["metadata"])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert resumed["resumed_from"] == {"epoch": 0, "sha256": sha256}
    assert "resumed_from" not in train(bar_store, LSTM)["metadata"]


def test_a_failing_checkpoint_is_a_warning_that_is_not_of_the_model(
    bar_store: DirectoryBarStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    warnings: list[str] = []
    result = train(
        bar_store,
        LSTM,
        checkpoint_dir=tmp_path / "file" / "checkpoints",
        checkpoint_every_s=0.0,
        warning_callback=lambda reason, message: warnings.append(reason),
    )
    assert warnings.count("CHECKPOINT_FAILED") == 1
    fresh = train(bar_store, LSTM)
    assert (result["artifact_digest"], result["warnings"]) == (fresh["artifact_digest"], fresh["warnings"])


def test_a_defect_of_the_checkpoint_callback_does_not_cost_the_training(
    bar_store: DirectoryBarStore, tmp_path: Path
) -> None:
    def fail(path: Path, position: LoopPosition) -> None:
        raise RuntimeError("defect")

    assert train(bar_store, LSTM, checkpoint_dir=tmp_path, checkpoint_every_s=0.0, checkpoint_callback=fail)["success"]


def test_a_model_that_cannot_be_stored_fails_with_the_reason_of_the_disk(
    bar_store: DirectoryBarStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StorageError, match=r"could not be stored \(.*/file.*\), and nothing of it was kept"):
        train(bar_store, LSTM, model_storage=StagedStorage(tmp_path / "file" / "artifact"))
