"""A stack of trainings, and what applies their steps.

A lane is one network with its own rows, shuffle, dropout stream and learning rate. A training is one lane; the folds of
a validation are further lanes of the same stack. What a lane computes does not depend on the lanes beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.models.network import Network
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.losses import balanced_class_weights


@dataclass(frozen=True, eq=False)
class Lane:
    """One training of a stack.

    Attributes:
        model: A freshly initialised network.
        train: Rows to learn from.
        validation: Rows that choose the best epoch.
        hyperparameters: What the loop obeys; lanes of a stack may differ in seed and learning rate alone.
    """

    model: Network
    train: DatasetPart
    validation: DatasetPart
    hyperparameters: Hyperparameters

    @cached_property
    def class_weights(self) -> NDArray[np.float64] | None:
        """Weight of each class in the loss, shape (3,), from the training rows; None if all are 1."""
        is_balanced = self.hyperparameters.class_weights == "balanced"
        return balanced_class_weights(self.train.y) if is_balanced else None


class LaneEngine(Protocol):
    """Applies optimiser steps to K lanes; owns their weights, optimiser state and dropout streams while it does.

    Nothing here draws shuffles, chooses learning rates, stops early or reports: ModelTrainer does.
    """

    def begin_epoch(self, orders: Sequence[NDArray[np.int64] | None], first_batch: int = 0) -> None:
        """Begin an epoch.

        Args:
            orders: For each lane, positions in its training part in the order in which they are to be seen (they may
                repeat), or None for a lane that rests.
            first_batch: Batches of this epoch that were applied before a checkpoint was taken; a lane may have fewer.
        """

    def step(self, learning_rates: Sequence[float]) -> None:
        """Apply the next batch to every lane that has one left; nothing is read back from a device."""

    def epoch_totals(self, lane: int) -> tuple[NDArray[np.float64], int]:
        """Return the mean loss of each batch applied in this epoch since `first_batch`, and how many of their rows were
        classified right; this may wait for a device. Asking changes nothing."""

    def validation_outputs(self, lane: int, check: Callable[[], None]) -> NDArray[np.float32]:
        """Return the network's answers (N, C) to the validation rows, without dropout.

        Args:
            lane: Which.
            check: Called before each block of rows; may raise to end early.
        """

    def weights(self, lane: int) -> dict[str, Tensor]:
        """Return copies of the weights, by the names of the network's state dict, on the CPU."""

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return copies of everything else that the next step depends on: optimiser, dropout; on the CPU."""

    def restore(self, lane: int, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Put back what `weights` and `state` returned, bit for bit."""
