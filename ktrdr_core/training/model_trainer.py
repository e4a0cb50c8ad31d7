"""The training loop.

Rows are gathered once an epoch and sliced, the optimiser is fused, and nothing is read back from the device but at a
report and at the end of an epoch: at small batches the cost of a step is the number of calls, not arithmetic.

Shape suffixes: N rows, F features, B batches of an epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.domain.cancellation import CancellationToken, raise_if_cancelled
from ktrdr_core.domain.progress import ProgressCallback
from ktrdr_core.errors import CancellationError, CorruptDataError, InvalidInputError, NonFiniteLossError
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.forward import PaddedRows, compute_logits
from ktrdr_core.evaluation.metrics import accuracy, cross_entropy
from ktrdr_core.models.network import Network, derive_seed
from ktrdr_core.training.batch_stride import BatchStride
from ktrdr_core.training.checkpoint import CHECKPOINT_NAME, Checkpoint, load_checkpoint, save_checkpoint
from ktrdr_core.training.device import DeviceCapabilities
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.loop_state import EpochMetrics, LoopState, copy_weights
from ktrdr_core.training.optimizers import build_optimizer

logger = logging.getLogger(__name__)

# Stream of `derive_seed` for shuffles; the network uses 0, 1, 2, ...
SHUFFLE_STREAM = 1_000_000
# Batches whose losses and logits are held as separate tensors before they are merged on the device.
_MERGE_BATCHES = 256


@dataclass(frozen=True)
class TrainedModel:
    """What the loop hands back.

    Attributes:
        model: The network with the weights of `best_epoch`, in evaluation mode.
        history: Metrics of each epoch.
        best_epoch: Epoch with the lowest validation loss, 1-indexed.
        device: Device it was trained on.
        checkpoint: The loop's last state.
    """

    model: Network
    history: tuple[EpochMetrics, ...]
    best_epoch: int
    device: DeviceCapabilities
    checkpoint: Checkpoint


class ModelTrainer:
    """Trains a network; the same seed, rows and device give the same bits.

    Neither the caller's global random state nor its number of threads is changed afterwards.

    Args:
        hyperparameters: What the loop obeys.
        device: Where it runs.
        progress_callback: Told of each epoch and of every N batches; its exceptions are logged and training goes on.
        cancellation_token: Asked at each epoch, at each batch and before each callback.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        device: DeviceCapabilities,
        progress_callback: ProgressCallback | None = None,
        cancellation_token: CancellationToken | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = hyperparameters
        self._capabilities = device
        self._device = torch.device(device.device)
        self._callback = progress_callback
        self._token = cancellation_token
        self._clock = clock

    def train(
        self,
        model: Network,
        train: DatasetPart,
        validation: DatasetPart,
        *,
        checkpoint_dir: Path | None = None,
        resume_from: Path | None = None,
    ) -> TrainedModel:
        """Train `model` in place and return it with its best weights.

        Args:
            model: A fresh network; moved to the device.
            train: Rows to learn from.
            validation: Rows that choose the best epoch.
            checkpoint_dir: Where a checkpoint goes when the token is cancelled and asks for one.
            resume_from: A checkpoint of the same job to go on from, bit for bit.

        Raises:
            CancellationError: The token was cancelled.
            NonFiniteLossError: A loss became NaN or infinite.
            CorruptDataError: `resume_from` belongs to another job.
        """
        for name, part in (("training", train), ("validation", validation)):
            if len(part) == 0:
                raise InvalidInputError(f"the {name} part has no rows; give more bars")
        raise_if_cancelled(self._token)
        with deterministic_torch(self._capabilities.device):
            self._limit_memory()
            model.to(self._device).train()
            loop = self._build_loop(model, train, validation)
            if resume_from is not None:
                checkpoint = load_checkpoint(resume_from)
                if checkpoint.fingerprint != loop.fingerprint:
                    raise CorruptDataError(
                        f"{resume_from} is a checkpoint of another job (other rows, settings or network); start anew"
                    )
                loop.restore(checkpoint, self._device)
            try:
                self._run(loop, train, validation)
            except CancellationError as error:
                if checkpoint_dir is not None and getattr(self._token, "save_checkpoint", False):
                    error.checkpoint_path = str(save_checkpoint(checkpoint_dir / CHECKPOINT_NAME, loop.capture()))
                raise
            final = loop.capture()
            model.load_state_dict(loop.best)
            model.eval()
        return TrainedModel(model, tuple(loop.history), loop.best_epoch, self._capabilities, final)

    def _build_loop(self, model: Network, train: DatasetPart, validation: DatasetPart) -> LoopState:
        settings = self._settings
        return LoopState(
            model=model,
            optimizer=build_optimizer(settings.optimizer, list(model.parameters()), settings.learning_rate),
            shuffle=torch.Generator().manual_seed(derive_seed(settings.seed, SHUFFLE_STREAM)),
            fingerprint=_fingerprint(settings, model, train, validation),
        )

    def _limit_memory(self) -> None:
        if self._capabilities.device_type == "cuda" and self._settings.memory_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(self._settings.memory_fraction, self._device)

    def _run(self, loop: LoopState, train: DatasetPart, validation: DatasetPart) -> None:
        x_NF = torch.from_numpy(train.X).to(self._device)
        y_N = torch.from_numpy(train.y).to(self._device)
        validation_rows = PaddedRows(validation.X, self._capabilities.device)
        num_rows, batch_size = len(train), self._settings.batch_size
        num_batches = -(-num_rows // batch_size)
        stride = BatchStride(self._clock)
        while loop.epoch <= self._settings.epochs:
            raise_if_cancelled(self._token)
            start_s = self._clock()
            num_batches_left = num_batches - loop.batches_done
            losses_B = torch.zeros(num_batches, device=self._device)
            if len(loop.permutation) == 0:
                loop.permutation = torch.randperm(num_rows, generator=loop.shuffle)
                loop.correct = torch.zeros((), dtype=torch.int64, device=self._device)
            losses_B[: loop.batches_done] = loop.losses[: loop.batches_done].to(self._device)
            loop.losses = losses_B
            order_N = loop.permutation.to(self._device)
            self._run_epoch(loop, x_NF.index_select(0, order_N), y_N.index_select(0, order_N), stride)
            metrics = self._finish_epoch(loop, num_rows, validation_rows, validation.y)
            batch_time = (self._clock() - start_s) / max(num_batches_left, 1)
            self._report(loop, "epoch", metrics["epoch"], num_batches, num_batches, dict(metrics), batch_time)

    def _run_epoch(self, loop: LoopState, x_epoch_NF: Tensor, y_epoch_N: Tensor, stride: BatchStride) -> None:
        model, step, batch_size = loop.model, loop.optimizer.step, self._settings.batch_size
        parameters = list(model.parameters())
        is_cancelled = self._token.is_cancelled if self._token is not None else _never
        precision = self._precision()
        first = loop.batches_done
        x_batches, y_batches = torch.split(x_epoch_NF, batch_size), torch.split(y_epoch_N, batch_size)
        for x_BF, y_B in zip(x_batches[first:], y_batches[first:], strict=True):
            if is_cancelled():
                loop.merge(y_epoch_N, batch_size)
                raise_if_cancelled(self._token)
            with precision:
                logits_BC = model(x_BF)
                loss = torch_cross_entropy(logits_BC, y_B)
            for parameter in parameters:
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            step()
            loop.pending_losses.append(loss.detach())
            loop.pending_logits.append(logits_BC.detach())
            loop.batches_done += 1
            if len(loop.pending_losses) == _MERGE_BATCHES:
                loop.merge(y_epoch_N, batch_size)
            if self._callback is not None and stride.count_batch() and loop.batches_done < len(x_batches):
                batch_time = stride.mark_update()
                loop.merge(y_epoch_N, batch_size)
                self._report_batch(loop, len(x_batches), len(y_epoch_N), batch_time)
        loop.merge(y_epoch_N, batch_size)

    def _finish_epoch(
        self, loop: LoopState, num_rows: int, validation_rows: PaddedRows, validation_y_N: np.ndarray[Any, Any]
    ) -> EpochMetrics:
        train_loss = self._mean_loss(loop, num_rows)
        logits_NC = compute_logits(loop.model, validation_rows, check=lambda: raise_if_cancelled(self._token))
        val_loss = cross_entropy(logits_NC, validation_y_N)
        if not math.isfinite(val_loss):
            raise NonFiniteLossError(
                f"the validation loss became {val_loss} after epoch {loop.epoch}; "
                f"lower the learning rate ({self._settings.learning_rate})",
                metadata={"epoch": str(loop.epoch)},
            )
        metrics = EpochMetrics(
            epoch=loop.epoch,
            train_loss=train_loss,
            train_accuracy=int(loop.correct) / num_rows,
            val_loss=val_loss,
            val_accuracy=accuracy(logits_NC, validation_y_N),
            learning_rate=self._settings.learning_rate,
        )
        is_best = val_loss < loop.best_val_loss
        loop.history.append(metrics)
        if is_best:
            loop.best, loop.best_epoch = copy_weights(loop.model), loop.epoch
        loop.epoch, loop.batches_done = loop.epoch + 1, 0
        loop.permutation, loop.losses = loop.permutation[:0], loop.losses[:0]
        return metrics

    def _mean_loss(self, loop: LoopState, num_rows: int) -> float:
        """Return the mean loss per row over the batches done; the sum always runs over the same tensor, so a report's
        timing changes nothing."""
        losses_B = loop.losses[: loop.batches_done].cpu().double()
        is_finite_B = torch.isfinite(losses_B)
        if not bool(is_finite_B.all()):
            batch = int((~is_finite_B).nonzero()[0]) + 1
            raise NonFiniteLossError(
                f"the loss became {float(losses_B[batch - 1])} at epoch {loop.epoch}, batch {batch}; "
                f"lower the learning rate ({self._settings.learning_rate}) or look for extreme features",
                metadata={"epoch": str(loop.epoch), "batch": str(batch)},
            )
        batch_size = self._settings.batch_size
        rows_done = min(loop.batches_done * batch_size, num_rows)
        rows_B = torch.full_like(losses_B, batch_size)
        rows_B[-1] = rows_done - (loop.batches_done - 1) * batch_size
        return float((losses_B * rows_B).sum() / rows_done)

    def _report_batch(self, loop: LoopState, num_batches: int, num_rows: int, batch_time: float) -> None:
        last = loop.history[-1] if loop.history else None
        rows_done = loop.batches_done * self._settings.batch_size
        metrics = {
            "train_loss": self._mean_loss(loop, num_rows),
            "train_accuracy": int(loop.correct) / rows_done,
            "val_loss": last["val_loss"] if last else None,
            "val_accuracy": last["val_accuracy"] if last else None,
            "learning_rate": self._settings.learning_rate,
        }
        self._report(loop, "batch", loop.epoch, loop.batches_done, num_batches, metrics, batch_time)

    def _report(
        self,
        loop: LoopState,
        progress_type: str,
        epoch: int,
        batch: int,
        num_batches: int,
        metrics: dict[str, Any],
        batch_time: float,
    ) -> None:
        if self._callback is None:
            return
        raise_if_cancelled(self._token)
        total_epochs = self._settings.epochs
        metrics |= {
            "progress_type": progress_type,
            "epoch": epoch,
            "total_epochs": total_epochs,
            "batch": batch,
            "total_batches_per_epoch": num_batches,
            "batch_time": batch_time,
            "rows_per_second": self._settings.batch_size / batch_time if batch_time > 0 else 0.0,
        }
        try:
            self._callback(epoch, total_epochs, metrics)
        except CancellationError:
            raise
        except Exception:  # a watcher's defect must not cost the training
            logger.exception("progress callback failed at epoch %d, batch %d; training goes on", epoch, batch)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._settings.mixed_precision and self._capabilities.supports_mixed_precision:
            return torch.autocast(self._capabilities.device_type, dtype=torch.bfloat16)
        return nullcontext()


def _never() -> bool:
    return False


def _fingerprint(settings: Hyperparameters, model: Network, train: DatasetPart, validation: DatasetPart) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([settings.to_dict(), model.spec.to_dict()], sort_keys=True).encode())
    for part in (train, validation):
        digest.update(np.ascontiguousarray(part.X).data)
        digest.update(np.ascontiguousarray(part.y).data)
    return digest.hexdigest()
