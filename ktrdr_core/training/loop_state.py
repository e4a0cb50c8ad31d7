"""What changes while a network is trained, and how it becomes a checkpoint and back.

Shape suffixes: N rows, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict, cast

import torch
from torch import Tensor

from ktrdr_core.models.network import Network
from ktrdr_core.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer


class EpochMetrics(TypedDict):
    """Metrics of one finished epoch: losses are means per row, accuracies in [0, 1]."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float


@dataclass
class LoopState:
    """Everything that changes while training; consistent between any two batches."""

    model: Network
    optimizer: torch.optim.Optimizer
    shuffle: torch.Generator
    fingerprint: str
    epoch: int = 1
    batches_done: int = 0
    permutation: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    losses: Tensor = field(default_factory=lambda: torch.empty(0))
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    pending_losses: list[Tensor] = field(default_factory=list)
    pending_logits: list[Tensor] = field(default_factory=list)
    history: list[EpochMetrics] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_val_loss(self) -> float:
        return self.history[self.best_epoch - 1]["val_loss"] if self.best_epoch else math.inf

    def merge(self, y_epoch_N: Tensor, batch_size: int) -> None:
        """Move the pending batches' losses and hits into their totals, without reading them back."""
        if not self.pending_losses:
            return
        first = self.batches_done - len(self.pending_losses)
        self.losses[first : self.batches_done] = torch.stack(self.pending_losses)
        logits_NC = torch.cat(self.pending_logits)
        y_N = y_epoch_N[first * batch_size : first * batch_size + len(logits_NC)]
        self.correct += (logits_NC.argmax(dim=1) == y_N).sum()
        self.pending_losses.clear()
        self.pending_logits.clear()

    def capture(self) -> Checkpoint:
        return Checkpoint(
            fingerprint=self.fingerprint,
            epoch=self.epoch,
            batches_done=self.batches_done,
            correct=int(self.correct),
            history=[dict(metrics) for metrics in self.history],
            best_epoch=self.best_epoch,
            model=copy_weights(self.model),
            best=self.best,
            optimizer=optimizer_tensors(self.optimizer),
            shuffle_state=self.shuffle.get_state(),
            dropout=[layer.random_state() for layer in self.model.dropouts()],
            permutation=self.permutation,
            losses=self.losses[: self.batches_done],
        )

    def restore(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model.load_state_dict(checkpoint.model)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.shuffle.set_state(checkpoint.shuffle_state)
        for layer, (state, rows, used) in zip(self.model.dropouts(), checkpoint.dropout, strict=True):
            layer.restore_random_state(state, rows, used, device)
        self.epoch, self.batches_done = checkpoint.epoch, checkpoint.batches_done
        self.permutation, self.losses = checkpoint.permutation, checkpoint.losses
        self.correct = torch.tensor(checkpoint.correct, device=device)
        self.history = [cast(EpochMetrics, dict(metrics)) for metrics in checkpoint.history]
        self.best_epoch = checkpoint.best_epoch
        self.best = {name: tensor.to(device) for name, tensor in checkpoint.best.items()}


def copy_weights(model: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
