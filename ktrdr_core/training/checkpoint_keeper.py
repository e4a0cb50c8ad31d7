"""When checkpoints of a training are written, how many stay, and what happens when the disk takes none.

A training goes on without a checkpoint: that one could not be written is said, never raised.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktrdr_core.training.checkpoint import NUM_KEPT, Checkpoint, save_checkpoint, save_periodic
from ktrdr_core.training.checkpoint_file import CHECKPOINT_NAME, LoopPosition

logger = logging.getLogger(__name__)

MAX_COST = 0.01
"""Timed checkpoints may take this share of the time, else they become rarer."""
_TIMED_NAME = "timed_{epoch:08d}_{batches_done:08d}.safetensors"

SavedCallback = Callable[[Path, LoopPosition], None]
FailedCallback = Callable[[str], None]


def _forget(path: Path, position: LoopPosition) -> None:
    pass


def _log_failure(message: str) -> None:
    logger.warning("%s", message)


@dataclass(frozen=True, kw_only=True)
class CheckpointPlan:
    """What is wanted of the checkpoints of a training, beside those its strategy asks for.

    Attributes:
        every_s: Write one this often; None only when stopped. They are not in the result, and change nothing of it.
        on_saved: Told of each timed checkpoint and of the one of a stop, once it is on disk. Only the newest two timed
            ones stay there.
        on_failed: Told a sentence when one could not be written, and not again before one was.
        tell_epochs_after: A training that goes on from a checkpoint first reports the epochs in it after this one: an
            earlier attempt finished them, and may have been lost before it told of them. None reports none.
    """

    every_s: float | None = None
    on_saved: SavedCallback = _forget
    on_failed: FailedCallback = _log_failure
    tell_epochs_after: int | None = None


class CheckpointKeeper:
    """Writes the checkpoints of one training into `directory`.

    Args:
        directory: Where they go.
        plan: What is wanted.
        every_epochs: Write a periodic one this often; None never.
        clock: Monotonic seconds.
    """

    def __init__(
        self, directory: Path, plan: CheckpointPlan, *, every_epochs: int | None, clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._plan = plan
        self._every_epochs = every_epochs
        self._clock = clock
        self._is_failing = False
        self._timed: list[Path] = []
        self._due_s = math.inf if plan.every_s is None else clock() + plan.every_s

    def due_within_epoch_s(self) -> float:
        """Return when a timed checkpoint is due within an epoch that begins now, on the clock; infinity if never.

        The end of an epoch is the better moment, there is less to write; only one that is longer than that is not
        waited for.
        """
        if self._plan.every_s is None:
            return math.inf
        return max(self._due_s, self._clock() + self._plan.every_s)

    def after_epoch(self, epoch: int, capture: Callable[[], Checkpoint], periodic: list[str]) -> None:
        """Write what is due after `epoch`; `periodic` are the paths of the periodic ones kept, brought up to date."""
        if self._every_epochs is not None and epoch % self._every_epochs == 0:
            self._attempt(lambda: save_periodic(self._directory, capture(), periodic))
        if self._due_s < math.inf and self._clock() >= self._due_s:
            self.save_timed(capture)

    def save_timed(self, capture: Callable[[], Checkpoint]) -> None:
        """Write a timed checkpoint and set when the next is due."""
        begin_s = self._clock()
        self._attempt(lambda: self._save_timed(capture()))
        end_s = self._clock()
        self._due_s = end_s + max(self._plan.every_s or 0.0, (end_s - begin_s) * (1 / MAX_COST - 1))

    def save_stop(self, checkpoint: Checkpoint) -> str:
        """Write the checkpoint of a stop and return its path; "" if it could not be written."""
        path = self._directory / CHECKPOINT_NAME
        if not self._attempt(lambda: save_checkpoint(path, checkpoint)):
            return ""
        self._plan.on_saved(path, checkpoint.position)
        return str(path)

    def _save_timed(self, checkpoint: Checkpoint) -> None:
        position = checkpoint.position
        name = _TIMED_NAME.format(epoch=position.epoch, batches_done=position.batches_done)
        path = save_checkpoint(self._directory / name, checkpoint)
        self._timed = [kept for kept in self._timed if kept != path] + [path]
        while len(self._timed) > NUM_KEPT:
            self._timed.pop(0).unlink(missing_ok=True)
        self._plan.on_saved(path, position)

    def _attempt(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except OSError as error:
            if not self._is_failing:
                self._plan.on_failed(
                    f"a checkpoint could not be written to {self._directory} ({error}); the training goes on, but what "
                    "it does from here on is lost if it is interrupted: free space there"
                )
            self._is_failing = True
            return False
        self._is_failing = False
        return True
