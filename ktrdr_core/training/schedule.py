"""The learning rate of each epoch. Needs no torch.

With lr the learning rate asked for, W warm-up epochs, E epochs in all, f the factor, n `every_epochs` and e the epoch,
1-indexed, the rate is lr e / (W + 1) in the W epochs of the warm-up, and then, with t = e - 1 - W:

    constant      lr
    step          lr f ** floor(t / n)
    exponential   lr f ** t
    cosine        lr (f + (1 - f) (1 + cos(pi t / (E - 1 - W))) / 2), f lr in the last epoch; f is 0 if not given
    plateau       lr f ** k; k grows by one after n epochs in a row without a validation loss below the lowest one

Source of the cosine: I. Loshchilov, F. Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017, without the
restarts; of the warm-up: P. Goyal et al., Accurate, Large Minibatch SGD, 2017.
"""

from __future__ import annotations

import math
from typing import Any

from ktrdr_core.config.model_sections import ScheduleConfig


class LearningRateSchedule:
    """Tells each epoch's rate; only `plateau` remembers anything.

    Args:
        config: The schedule.
        learning_rate: lr.
        epochs: E.
    """

    def __init__(self, config: ScheduleConfig, learning_rate: float, epochs: int) -> None:
        self._config = config
        self._learning_rate = learning_rate
        self._epochs = epochs
        self._lowest_loss = math.inf
        self._epochs_without_gain = 0
        self._reductions = 0

    def rate(self, epoch: int) -> float:
        """Return the rate of `epoch`, 1-indexed; for `plateau`, given the losses observed so far."""
        warm_up = self._config.warm_up_epochs
        if epoch <= warm_up:
            return self._learning_rate * epoch / (warm_up + 1)
        return self._learning_rate * self._multiple(epoch - 1 - warm_up)

    def _multiple(self, t: int) -> float:
        factor, every = self._config.factor, self._config.every_epochs
        match self._config.type:
            case "step":
                return float((factor or 1.0) ** (t // (every or 1)))
            case "exponential":
                return float((factor or 1.0) ** t)
            case "cosine":
                last = max(self._epochs - 1 - self._config.warm_up_epochs, 1)
                floor = factor or 0.0
                return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * t / last)) / 2.0
            case "plateau":
                return float((factor or 1.0) ** self._reductions)
            case "constant":
                return 1.0

    def observe(self, epoch: int, val_loss: float) -> None:
        """Note the validation loss after `epoch`; epochs of the warm-up are not held against it."""
        if val_loss < self._lowest_loss:
            self._lowest_loss, self._epochs_without_gain = val_loss, 0
            return
        if epoch <= self._config.warm_up_epochs:
            return
        self._epochs_without_gain += 1
        if self._epochs_without_gain >= (self._config.every_epochs or math.inf):
            self._reductions, self._epochs_without_gain = self._reductions + 1, 0

    def state(self) -> dict[str, Any]:
        """Return what `restore` puts back, as JSON values; the lowest loss is None before the first epoch."""
        return {
            "lowest_loss": None if math.isinf(self._lowest_loss) else self._lowest_loss,
            "epochs_without_gain": self._epochs_without_gain,
            "reductions": self._reductions,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._lowest_loss = math.inf if state["lowest_loss"] is None else float(state["lowest_loss"])
        self._epochs_without_gain = int(state["epochs_without_gain"])
        self._reductions = int(state["reductions"])
