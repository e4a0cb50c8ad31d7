"""What changes while a stack of lanes is trained, and how it becomes a checkpoint and back.

Shape suffixes: N rows of an order, B batches of an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ktrdr_core.datasets.sampling import Sampling, epoch_order
from ktrdr_core.errors import NonFiniteLossError
from ktrdr_core.models.network import derive_seed
from ktrdr_core.training.checkpoint import Checkpoint, LaneCheckpoint
from ktrdr_core.training.early_stopping import EarlyStopping
from ktrdr_core.training.lane import Lane, LaneEngine
from ktrdr_core.training.schedule import LearningRateSchedule

# Stream of `derive_seed` for shuffles; the network uses 0, 1, 2, ...
SHUFFLE_STREAM = 1_000_000


class EpochMetrics(TypedDict):
    """Metrics of one finished epoch: losses are means per row, accuracies in [0, 1], `val_mcc` in [-1, 1].

    `train_loss` is what was minimised, with class weights and focus, while the weights changed and with dropout; the
    validation metrics are those of `evaluation.metrics`, which know none of that. Losses of a regression are in squares
    of the targets' units, also where they were learned in others.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_balanced_accuracy: float
    val_mcc: float
    learning_rate: float


class LaneLoop:
    """One lane's part of the loop; consistent between any two batches.

    Args:
        lane: What is trained.
        name: Put into messages; "" for the first lane.
        scale: What a regression's targets were divided by.
    """

    def __init__(self, lane: Lane, name: str = "", scale: float = 1.0) -> None:
        settings = lane.hyperparameters
        self.lane = lane
        self.name = name
        self.scale = scale
        self.schedule = LearningRateSchedule(settings.schedule, settings.learning_rate, settings.epochs)
        self.stopping = EarlyStopping(settings.early_stopping)
        self.shuffle = torch.Generator().manual_seed(derive_seed(settings.seed, SHUFFLE_STREAM))
        self.history: list[EpochMetrics] = []
        self.best: dict[str, Tensor] = {}
        self.early_stop_epoch: int | None = None
        self.order_N: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._has_begun = False  # the engine knows of this epoch
        # Of the batches of this epoch that were applied before the checkpoint it was resumed from.
        self._earlier_losses_B: NDArray[np.float64] = np.empty(0)
        self._earlier_correct = 0

    @property
    def is_over(self) -> bool:
        return self.early_stop_epoch is not None

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by to be in the units of the targets as they came; 1 for a classification."""
        return self.scale**2

    @property
    def num_batches(self) -> int:
        return -(-len(self.order_N) // self.lane.hyperparameters.batch_size)

    def begin_epoch(self) -> NDArray[np.int64] | None:
        """Return the order of the rows, drawn unless the epoch is under way; None if the lane rests."""
        if self.is_over:
            return None
        self._has_begun = True
        if len(self.order_N) == 0:
            settings = self.lane.hyperparameters
            self.order_N = epoch_order(self.lane.train.symbol_ids, cast(Sampling, settings.sampling), self._permute)
        return self.order_N

    def _permute(self, count: int) -> NDArray[np.int64]:
        return torch.randperm(count, generator=self.shuffle).numpy()

    def totals(self, engine: LaneEngine, index: int) -> tuple[NDArray[np.float64], int]:
        """Return the losses of the batches applied in this epoch, and the rows classified right in them."""
        losses_B, correct = engine.epoch_totals(index) if self._has_begun else (np.empty(0), 0)
        return np.concatenate((self._earlier_losses_B, losses_B)), self._earlier_correct + correct

    def means(self, engine: LaneEngine, index: int, epoch: int) -> tuple[float, float]:
        """Return mean loss and accuracy of the rows seen in this epoch.

        Raises:
            NonFiniteLossError: A batch's loss is NaN or infinite; epoch and batch are named.
        """
        losses_B, correct = self.totals(engine, index)
        broken_B = ~np.isfinite(losses_B)
        rate = self.schedule.rate(epoch)
        if broken_B.any():
            batch = int(np.argmax(broken_B)) + 1
            raise NonFiniteLossError(
                f"the loss{self.name} became {losses_B[batch - 1]} at epoch {epoch}, batch {batch}; "
                f"lower the learning rate ({rate:g}), clip the gradient or look for extreme features",
                metadata={"epoch": str(epoch), "batch": str(batch)},
            )
        batch_size = self.lane.hyperparameters.batch_size
        rows = min(len(losses_B) * batch_size, len(self.order_N))
        rows_B = np.full(len(losses_B), batch_size)
        rows_B[-1] = rows - (len(losses_B) - 1) * batch_size
        return float((losses_B * rows_B).sum() / rows) * self.loss_scale, correct / rows

    def finish_epoch(self, metrics: EpochMetrics, engine: LaneEngine, index: int) -> None:
        """Keep an epoch's metrics, and its weights if they are the best."""
        epoch = metrics["epoch"]
        self.history.append(metrics)
        self.schedule.observe(epoch, metrics["val_loss"])
        if self.stopping.observe(epoch, metrics[self.stopping.metric]):
            self.best = engine.weights(index)
        if self.stopping.is_over and epoch < self.lane.hyperparameters.epochs:
            self.early_stop_epoch = epoch
        self.order_N, self._has_begun = self.order_N[:0], False
        self._earlier_losses_B, self._earlier_correct = np.empty(0), 0

    def capture(self, engine: LaneEngine, index: int) -> LaneCheckpoint:
        losses_B, correct = self.totals(engine, index)
        return LaneCheckpoint(
            weights=engine.weights(index),
            best=self.best,
            engine=engine.state(index),
            shuffle_state=self.shuffle.get_state(),
            order=self.order_N,
            losses=losses_B,
            correct=correct,
            history=[dict(metrics) for metrics in self.history],
            schedule=self.schedule.state(),
            stopping=self.stopping.state(),
            early_stop_epoch=self.early_stop_epoch,
        )

    def restore(self, checkpoint: LaneCheckpoint, engine: LaneEngine, index: int) -> None:
        engine.restore(index, checkpoint.weights, checkpoint.engine)
        self.best = checkpoint.best
        self.shuffle.set_state(checkpoint.shuffle_state)
        self.order_N = checkpoint.order
        self._earlier_losses_B, self._earlier_correct = checkpoint.losses, checkpoint.correct
        self.history = [cast(EpochMetrics, dict(metrics)) for metrics in checkpoint.history]
        self.schedule.restore(checkpoint.schedule)
        self.stopping.restore(checkpoint.stopping)
        self.early_stop_epoch = checkpoint.early_stop_epoch


@dataclass
class LoopState:
    """Everything that changes while training.

    Attributes:
        engine: Applies the steps.
        lanes: The lanes' own parts.
        fingerprint: Of everything the loop depends on that does not change.
        epoch: Epoch under way, 1-indexed.
        batches_done: Batches of that epoch that were applied; a lane with fewer has had all of its own.
    """

    engine: LaneEngine
    lanes: list[LaneLoop]
    fingerprint: str
    epoch: int = 1
    batches_done: int = 0
    checkpoints: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        epochs = self.lanes[0].lane.hyperparameters.epochs
        return self.epoch > epochs or all(lane.is_over for lane in self.lanes)

    def running(self) -> list[tuple[int, LaneLoop]]:
        """Return the lanes that have not ended, with their places in the stack."""
        return [(index, lane) for index, lane in enumerate(self.lanes) if not lane.is_over]

    def begin_epoch(self) -> int:
        """Begin or go on with the epoch; return its number of batches, which is that of the longest lane."""
        self.engine.begin_epoch([lane.begin_epoch() for lane in self.lanes], self.batches_done)
        return max(lane.num_batches for _, lane in self.running())

    def rates(self) -> list[float]:
        """Return each lane's learning rate in this epoch."""
        return [lane.schedule.rate(self.epoch) for lane in self.lanes]

    def capture(self) -> Checkpoint:
        return Checkpoint(
            fingerprint=self.fingerprint,
            engine=type(self.engine).__name__,
            epoch=self.epoch,
            batches_done=self.batches_done,
            lanes=tuple(lane.capture(self.engine, index) for index, lane in enumerate(self.lanes)),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        self.epoch, self.batches_done = checkpoint.epoch, checkpoint.batches_done
        for index, lane in enumerate(self.lanes):
            lane.restore(checkpoint.lanes[index], self.engine, index)
