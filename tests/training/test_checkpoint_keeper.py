"""When checkpoints are written by time, how many stay, and that a training does not notice."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ktrdr_core.errors import CancellationError
from ktrdr_core.training.checkpoint import load_checkpoint
from ktrdr_core.training.checkpoint_file import CHECKPOINT_NAME, LoopPosition, read_position
from ktrdr_core.training.checkpoint_keeper import CheckpointPlan
from ktrdr_core.training.device import DeviceCapabilities, DeviceManager
from ktrdr_core.training.eager_engine import EagerEngine
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.model_trainer import ModelTrainer, TrainedModel
from tests.kit.training import CountingToken, make_network, make_part, make_settings

TRAIN, VALIDATION = make_part(200, 1), make_part(60, 2)
BATCHES = 13


class Bench:
    """A training whose every batch takes a second, and whose every checkpoint takes `cost_s`."""

    def __init__(self, directory: Path, *, cost_s: float = 0.0, token: CountingToken | None = None) -> None:
        self.directory = directory
        self.now_s = 1_000.0
        self.cost_s = cost_s
        self.token = token
        self.saved: list[tuple[float, LoopPosition, Path]] = []
        self.failures: list[str] = []

    def on_saved(self, path: Path, position: LoopPosition) -> None:
        assert read_position(path) == position
        self.now_s += self.cost_s
        self.saved.append((self.now_s, position, path))

    def on_failed(self, message: str) -> None:
        self.failures.append(message)

    def build_engine(self, lanes: Sequence[Lane], device: DeviceCapabilities) -> EagerEngine:
        bench = self

        class SlowEngine(EagerEngine):
            def step(self, learning_rates: Sequence[float]) -> None:
                super().step(learning_rates)
                bench.now_s += 1.0

        return SlowEngine(lanes, device)

    def train(self, every_s: float | None, *, resume_from: Path | None = None, **settings: Any) -> TrainedModel:
        hyperparameters = make_settings(**settings)
        trainer = ModelTrainer(
            hyperparameters,
            DeviceManager.select(enable_gpu=False),
            None,
            self.token,
            clock=lambda: self.now_s,
            engine_builder=self.build_engine,
        )
        (trained,) = trainer.train_lanes(
            [Lane(make_network(), TRAIN, VALIDATION, hyperparameters)],
            checkpoint_dir=self.directory,
            checkpoint_plan=CheckpointPlan(every_s=every_s, on_saved=self.on_saved, on_failed=self.on_failed),
            resume_from=resume_from,
        )
        return trained

    @property
    def positions(self) -> list[tuple[int, int]]:
        return [(position.epoch, position.batches_done) for _, position, _ in self.saved]


def assert_same(left: TrainedModel, right: TrainedModel) -> None:
    assert left.history == right.history
    assert left.best_epoch == right.best_epoch
    assert left.checkpoints == right.checkpoints
    for name, tensor in left.model.state_dict().items():
        assert torch.equal(tensor, right.model.state_dict()[name])


def test_short_epochs_are_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.train(20.0, epochs=8)
    assert bench.positions == [(3, 0), (5, 0), (7, 0), (9, 0)]


def test_an_epoch_longer_than_the_interval_is_not_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.train(5.0, epochs=2)
    assert bench.positions == [(1, 5), (1, 10), (2, 5), (2, 10)]


def test_an_interval_that_has_passed_is_kept_to_at_the_next_end_of_an_epoch(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.train(12.0, epochs=3)
    assert bench.positions == [(1, 12), (2, 12), (3, 12)]
    bench = Bench(tmp_path)
    bench.train(13.0, epochs=3)
    assert bench.positions == [(2, 0), (3, 0), (4, 0)]


def test_costly_checkpoints_become_rare(tmp_path: Path) -> None:
    bench = Bench(tmp_path, cost_s=2.0)
    bench.train(1.0, epochs=60)
    ends_s = [end_s for end_s, _, _ in bench.saved]
    assert 3 <= len(ends_s) <= 60 * BATCHES / 200 + 1
    assert all(later - earlier >= 200.0 for earlier, later in itertools.pairwise(ends_s))


def test_nothing_is_written_by_time_unless_wanted(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.train(None)
    assert bench.saved == []
    assert list(tmp_path.iterdir()) == []


def test_the_newest_two_stay_and_each_leads_to_the_same_bits(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole").train(None, epochs=3)
    bench = Bench(tmp_path / "timed")
    assert_same(bench.train(5.0, epochs=3), whole)
    paths = [path for _, _, path in bench.saved]
    assert len(paths) == 6
    assert sorted(bench.directory.iterdir()) == paths[-2:]
    for path in paths[-2:]:
        assert_same(Bench(tmp_path / "again").train(None, epochs=3, resume_from=path), whole)


def test_every_timed_checkpoint_leads_to_the_same_bits(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    whole = Bench(tmp_path / "whole").train(None, epochs=2)

    class Copying(Bench):
        def on_saved(self, path: Path, position: LoopPosition) -> None:
            super().on_saved(path, position)
            shutil.copy(path, copies)

    Copying(tmp_path / "timed").train(1.0, epochs=2)
    found = sorted(copies.iterdir())
    assert len(found) > BATCHES
    for path in found:
        assert_same(Bench(tmp_path / "again").train(None, epochs=2, resume_from=path), whole)


def test_they_are_apart_from_those_the_strategy_asks_for(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 6, "checkpoint_every_epochs": 2}
    whole = Bench(tmp_path).train(None, **settings)
    shutil.rmtree(tmp_path)
    assert_same(Bench(tmp_path).train(5.0, **settings), whole)
    assert [path.name[:5] for path in sorted(tmp_path.iterdir())] == ["epoch", "epoch", "timed", "timed"]


def test_files_of_a_longer_run_before_do_not_count_as_newer(tmp_path: Path) -> None:
    Bench(tmp_path).train(5.0, epochs=4)
    again = Bench(tmp_path)
    again.train(5.0, epochs=1)
    assert all(path.exists() for _, _, path in again.saved)


def test_a_stop_is_told_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, token=CountingToken(9, save_checkpoint=True))
    with pytest.raises(CancellationError) as caught:
        bench.train(None)
    assert [(path, position) for _, position, path in bench.saved] == [
        (tmp_path / CHECKPOINT_NAME, LoopPosition(epoch=1, batches_done=6))
    ]
    assert caught.value.checkpoint_path == str(tmp_path / CHECKPOINT_NAME)


@pytest.mark.parametrize("settings", [{}, {"checkpoint_every_epochs": 1}])
def test_a_disk_that_takes_none_costs_a_warning_and_nothing_else(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("no directory")
    bench = Bench(tmp_path / "file" / "checkpoints")
    trained = bench.train(None if settings else 5.0, epochs=3, **settings)
    assert trained.history == Bench(tmp_path / "whole").train(None, epochs=3).history
    assert trained.checkpoints == ()
    (failure,) = bench.failures
    assert "Not a directory" in failure
    assert str(bench.directory) in failure


def test_the_end_of_a_failure_is_noticed_and_the_next_is_told_again(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"

    class Flaky(Bench):
        def on_saved(self, path: Path, position: LoopPosition) -> None:
            super().on_saved(path, position)
            if len(self.saved) in (2, 3):
                shutil.rmtree(directory)
                directory.write_text("no directory")

        def on_failed(self, message: str) -> None:
            super().on_failed(message)
            directory.unlink()

    bench = Flaky(directory)
    bench.train(5.0, epochs=4)
    assert len(bench.failures) == 2
    assert len(bench.saved) == 6


def test_a_stop_that_cannot_be_saved_stops_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    bench = Bench(tmp_path / "file" / "checkpoints", token=CountingToken(9, save_checkpoint=True))
    with pytest.raises(CancellationError) as caught:
        bench.train(None)
    assert caught.value.checkpoint_path == ""
    assert len(bench.failures) == 1
    assert bench.saved == []


def test_a_position_orders_checkpoints_and_names_the_last_epoch_in_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.train(5.0, epochs=2)
    positions = [position for _, position, _ in bench.saved]
    assert positions == sorted(positions)
    assert [position.last_epoch for position in positions] == [0, 0, 1, 1]
    last = load_checkpoint(bench.saved[-1][2])
    assert last.position == positions[-1]
