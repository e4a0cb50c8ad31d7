"""Turns the callbacks of a training into progress events: three levels, one overall fraction that never goes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import (
    STEP_TITLES,
    BatchDetail,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    StateDetail,
    StepDetail,
    TrainingStep,
    WarningDetail,
    overall_fraction,
)
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.execution.found_checkpoint import describe_checkpoint
from ktrdr_core.training.checkpoint_file import LoopPosition

MIN_BATCH_INTERVAL_S = 0.1
"""Batch events go out at most this often; the trainer's own stride aims at 0.3 s."""


def _ignore(checkpoint: SessionCheckpoint) -> None:
    pass


class ProgressTracker:
    """Receives the callbacks of one session and sends events.

    Args:
        send: Takes each event; its answer is ignored.
        attempt: Number of the session within its training.
        begin_s: When the session began, on `monotonic`.
        monotonic: Clock in seconds.
        send_checkpoint: Takes each checkpoint; its answer is ignored.

    Attributes:
        step: Step under way; None before the first.
        checkpoint: The newest checkpoint of the session; None before the first.
    """

    def __init__(
        self,
        send: Callable[[ProgressEvent], object],
        *,
        attempt: int,
        begin_s: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        send_checkpoint: Callable[[SessionCheckpoint], object] = _ignore,
    ) -> None:
        self._send = send
        self._send_checkpoint = send_checkpoint
        self._attempt = attempt
        self._monotonic = monotonic
        self._begin_s = monotonic() if begin_s is None else begin_s
        self._overall = 0.0
        self._training_begin_s: float | None = None
        self._training_fraction = 0.0
        self._fraction_at_start = 0.0
        self._last_batch_s = float("-inf")
        self.step: TrainingStep | None = None
        self.checkpoint: SessionCheckpoint | None = None

    @property
    def has_training_begun(self) -> bool:
        return self._training_begin_s is not None

    def report_running(self, message: str) -> None:
        self._emit(StateDetail(state=TrainingState.RUNNING, message=message))

    def report_step(self, step: TrainingStep) -> None:
        """Report that `step` begins (the `step_callback` of TrainingExecutor)."""
        self.step = step
        if step is TrainingStep.TRAINING:
            self._training_begin_s = self._monotonic()
        self._advance(step, 0.0)
        self._emit(StepDetail(step=step, title=STEP_TITLES[step]))

    def report_progress(self, epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
        """Report an epoch that ended, or batches within one (the `progress_callback` of TrainingExecutor)."""
        if metrics.get("progress_type") == "batch":
            self._report_batch(epoch, total_epochs, metrics)
        else:
            self._report_epoch(epoch, total_epochs, metrics)

    def report_warning(self, reason: str, message: str) -> None:
        """Report a warning (the `warning_callback` of TrainingExecutor)."""
        self._emit(WarningDetail(reason=reason, message=message))

    def report_checkpoint(self, path: Path, position: LoopPosition) -> None:
        """Report a checkpoint that is on disk (the `checkpoint_callback` of TrainingExecutor)."""
        self.checkpoint = describe_checkpoint(path, position)
        self._send_checkpoint(self.checkpoint)

    def _report_epoch(self, epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
        self._advance_training(epoch, total_epochs, epoch)
        self._emit(
            EpochDetail(
                epoch=epoch,
                total_epochs=total_epochs,
                train_loss=float(metrics["train_loss"]),
                train_accuracy=float(metrics["train_accuracy"]),
                val_loss=float(metrics["val_loss"]),
                val_accuracy=float(metrics["val_accuracy"]),
                learning_rate=float(metrics["learning_rate"]),
                rows_per_second=float(metrics.get("rows_per_second", 0.0)),
            )
        )

    def _report_batch(self, epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
        batch, num_batches = int(metrics["batch"]), int(metrics["total_batches_per_epoch"])
        self._advance_training(epoch, total_epochs, epoch - 1 + batch / num_batches)
        now_s = self._monotonic()
        if now_s - self._last_batch_s < MIN_BATCH_INTERVAL_S:
            return
        self._last_batch_s = now_s
        self._emit(
            BatchDetail(
                epoch=epoch,
                total_epochs=total_epochs,
                batch=batch,
                total_batches_per_epoch=num_batches,
                train_loss=float(metrics["train_loss"]),
                train_accuracy=float(metrics["train_accuracy"]),
                learning_rate=float(metrics["learning_rate"]),
                rows_per_second=float(metrics.get("rows_per_second", 0.0)),
            )
        )

    def _advance_training(self, epoch: int, total_epochs: int, epochs_done: float) -> None:
        if not self._training_fraction:
            # A resumed training begins in its middle: only what this session did tells its pace.
            self._fraction_at_start = (epoch - 1) / total_epochs
        self._training_fraction = max(self._training_fraction, epochs_done / total_epochs)
        self._advance(TrainingStep.TRAINING, self._training_fraction)

    def _advance(self, step: TrainingStep, fraction: float) -> None:
        self._overall = max(self._overall, overall_fraction(step, fraction))

    def _remaining_s(self, now_s: float) -> float | None:
        """Estimate the seconds left from the pace of the epochs; None while there is no pace."""
        if self.step is TrainingStep.COMPLETE:
            return 0.0
        done = self._training_fraction - self._fraction_at_start
        if self.step is not TrainingStep.TRAINING or self._training_begin_s is None or done <= 0.0:
            return None
        return (now_s - self._training_begin_s) * (1.0 - self._training_fraction) / done

    def _emit(self, detail: ProgressDetail) -> None:
        now_s = self._monotonic()
        self._send(
            ProgressEvent(
                create_time=utc_now(),
                attempt=self._attempt,
                overall=self._overall,
                elapsed_s=max(0.0, now_s - self._begin_s),
                remaining_s=self._remaining_s(now_s),
                detail=detail,
            )
        )
