"""Which epoch is the best, and when waiting for a better one ends. Needs no torch."""

from __future__ import annotations

from typing import Any

from ktrdr_core.config.model_sections import EarlyStoppingConfig, StoppingMetric

_FALLING: frozenset[StoppingMetric] = frozenset({"val_loss"})


class EarlyStopping:
    """Follows one metric of the validation part.

    The best epoch is the first of those with the best value. Patience is another matter: an epoch counts as an
    improvement if it beats the last improvement by more than `min_delta`, so that creeping gains do not prolong a
    training for ever, and after `patience` epochs in a row without one the training ends.

    Args:
        config: None chooses the best epoch by the validation loss and never ends anything.
    """

    def __init__(self, config: EarlyStoppingConfig | None) -> None:
        self._config = config
        self.metric: StoppingMetric = config.metric if config is not None else "val_loss"
        self.best_epoch = 0
        self._best: float | None = None
        self._reference: float | None = None
        self._epochs_waited = 0

    def observe(self, epoch: int, value: float) -> bool:
        """Note the metric after `epoch`; return whether it is the best so far."""
        gain = -value if self.metric in _FALLING else value
        is_best = self._best is None or gain > self._best
        if is_best:
            self._best, self.best_epoch = gain, epoch
        min_delta = self._config.min_delta if self._config is not None else 0.0
        if self._reference is None or gain > self._reference + min_delta:
            self._reference, self._epochs_waited = gain, 0
        else:
            self._epochs_waited += 1
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self._config is not None and self._epochs_waited >= self._config.patience

    def state(self) -> dict[str, Any]:
        """Return what `restore` puts back, as JSON values."""
        return {
            "best_epoch": self.best_epoch,
            "best": self._best,
            "reference": self._reference,
            "epochs_waited": self._epochs_waited,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.best_epoch, self._epochs_waited = int(state["best_epoch"]), int(state["epochs_waited"])
        self._best, self._reference = state["best"], state["reference"]
