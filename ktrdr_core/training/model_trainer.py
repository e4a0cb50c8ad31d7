"""The training loop: epochs, orders of rows, learning rates, the best weights, progress, cancellation, checkpoints.

What a step computes is an engine's business. Nothing is read back from it but at a report and at the end of an epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.domain.cancellation import CancellationToken, raise_if_cancelled
from ktrdr_core.domain.progress import ProgressCallback
from ktrdr_core.errors import CancellationError, CorruptDataError, InvalidInputError, NonFiniteLossError
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.metrics import balanced_accuracy, compute_loss, confusion_matrix, matthews_correlation
from ktrdr_core.models.network import Network
from ktrdr_core.training.batch_stride import BatchStride
from ktrdr_core.training.checkpoint import Checkpoint, find_periodic, load_checkpoint
from ktrdr_core.training.checkpoint_keeper import CheckpointKeeper, CheckpointPlan
from ktrdr_core.training.device import DeviceCapabilities
from ktrdr_core.training.engines import EngineBuilder, build_engine
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.loop_state import EpochMetrics, LaneLoop, LoopState
from ktrdr_core.training.losses import predicted_classes
from ktrdr_core.training.target_scale import scale_targets, target_scale, unscale_answers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What the loop hands back for a lane.

    Attributes:
        model: The network with the weights of `best_epoch`, in evaluation mode.
        history: Metrics of each epoch.
        best_epoch: Epoch with the best value of the metric that chooses, 1-indexed.
        device: Device it was trained on.
        checkpoint: The loop's last state, with all lanes.
        early_stop_epoch: Epoch after which patience ran out; None if every epoch was done.
        checkpoints: Paths of the periodic checkpoints that were kept, oldest first.
    """

    model: Network
    history: tuple[EpochMetrics, ...]
    best_epoch: int
    device: DeviceCapabilities
    checkpoint: Checkpoint
    early_stop_epoch: int | None = None
    checkpoints: tuple[str, ...] = ()


class ModelTrainer:
    """Trains networks; the same seed, rows and device give the same bits.

    Neither the caller's global random state nor its number of threads is changed afterwards.

    Args:
        hyperparameters: What the loop obeys.
        device: Where it runs.
        progress_callback: Told of each epoch and of every N batches of the first lane; its exceptions are logged and
            training goes on. While the first lane rests and others go on, it hears their batches with its last metrics.
        cancellation_token: Asked at each epoch, at each batch and before each callback.
        clock: Monotonic seconds.
        engine_builder: Chooses the engine.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        device: DeviceCapabilities,
        progress_callback: ProgressCallback | None = None,
        cancellation_token: CancellationToken | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        engine_builder: EngineBuilder = build_engine,
    ) -> None:
        self._settings = hyperparameters
        self._capabilities = device
        self._callback = progress_callback
        self._token = cancellation_token
        self._clock = clock
        self._build_engine = engine_builder

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
            checkpoint_dir: Where checkpoints go: every `checkpoint_every_epochs`, and one when the token is cancelled
                and asks for it. One that cannot be written is a warning.
            resume_from: A checkpoint of the same job to go on from, bit for bit.

        Raises:
            CancellationError: The token was cancelled.
            NonFiniteLossError: A loss became NaN or infinite; the model is not to be used.
            NotFoundError: There is nothing at `resume_from`.
            CorruptDataError: It is no whole checkpoint, or one of another job. The model is not to be used.
        """
        lane = Lane(model, train, validation, self._settings)
        return self.train_lanes([lane], checkpoint_dir=checkpoint_dir, resume_from=resume_from)[0]

    def train_lanes(
        self,
        lanes: Sequence[Lane],
        *,
        checkpoint_dir: Path | None = None,
        checkpoint_plan: CheckpointPlan | None = None,
        resume_from: Path | None = None,
    ) -> tuple[TrainedModel, ...]:
        """Train several networks side by side, each as if it were alone; see `train`.

        Args:
            lanes: At least one; their settings are the trainer's but for seed and learning rate. Progress is that of
                the first.
            checkpoint_dir: See `train`; a checkpoint holds all lanes.
            checkpoint_plan: What else is wanted of the checkpoints in `checkpoint_dir`.
            resume_from: See `train`; a checkpoint of the same lanes.
        """
        self._check_lanes(lanes)
        raise_if_cancelled(self._token)
        with deterministic_torch(self._capabilities.device):
            self._limit_memory()
            loops = []
            for index, lane in enumerate(lanes):
                scale = target_scale(lane)
                loops.append(LaneLoop(scale_targets(lane, scale), f" of lane {index}" if index else "", scale))
            engine = self._build_engine([lane_loop.lane for lane_loop in loops], self._capabilities)
            loop = LoopState(engine, loops, _fingerprint(lanes))
            if resume_from is not None:
                self._resume(loop, resume_from, checkpoint_dir)
                self._tell_again(loop, checkpoint_plan)
            keeper = self._build_keeper(checkpoint_dir, checkpoint_plan)
            try:
                self._run(loop, keeper)
            except CancellationError as error:
                if keeper is not None and getattr(self._token, "save_checkpoint", False):
                    error.checkpoint_path = keeper.save_stop(loop.capture())
                raise
            return self._results(loop)

    def _check_lanes(self, lanes: Sequence[Lane]) -> None:
        if not lanes:
            raise InvalidInputError("there is no lane to train; give at least one")
        for index, lane in enumerate(lanes):
            for name, part in (("training", lane.train), ("validation", lane.validation)):
                if len(part) == 0:
                    raise InvalidInputError(f"the {name} part has no rows; give more bars")
                if lane.hyperparameters.is_regression and len(part.targets) != len(part):
                    raise InvalidInputError(
                        f"the {name} part has {len(part.targets)} targets for {len(part)} rows; "
                        "a regression needs labels that are forward returns"
                    )
            own = lane.hyperparameters
            if replace(own, seed=self._settings.seed, learning_rate=self._settings.learning_rate) != self._settings:
                raise InvalidInputError(
                    f"lane {index} has other settings than the trainer; only seed and learning_rate may differ"
                )

    def _build_keeper(self, directory: Path | None, plan: CheckpointPlan | None) -> CheckpointKeeper | None:
        if directory is None:
            return None
        every_epochs = self._settings.checkpoint_every_epochs
        return CheckpointKeeper(directory, plan or CheckpointPlan(), every_epochs=every_epochs, clock=self._clock)

    def _limit_memory(self) -> None:
        if self._capabilities.device_type == "cuda" and self._settings.memory_fraction is not None:
            device = torch.device(self._capabilities.device)
            torch.cuda.set_per_process_memory_fraction(self._settings.memory_fraction, device)

    def _resume(self, loop: LoopState, path: Path, checkpoint_dir: Path | None) -> None:
        checkpoint = load_checkpoint(path)
        if checkpoint.fingerprint != loop.fingerprint:
            raise CorruptDataError(
                f"{path} is a checkpoint of another job (other rows, settings or network); start anew"
            )
        if checkpoint.engine != type(loop.engine).__name__:
            raise CorruptDataError(
                f"{path} was taken from a {checkpoint.engine}, and this device is trained on by a "
                f"{type(loop.engine).__name__}; go on where it was taken, or start anew"
            )
        try:
            loop.restore(checkpoint)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CorruptDataError(f"{path} is not a whole checkpoint: {error}") from error
        if checkpoint_dir is not None:
            loop.checkpoints = find_periodic(checkpoint_dir, before_epoch=loop.epoch)

    def _tell_again(self, loop: LoopState, plan: CheckpointPlan | None) -> None:
        """Report the epochs of the checkpoint that nobody may have heard of."""
        if plan is None or plan.tell_epochs_after is None:
            return
        first = loop.lanes[0]
        for metrics in first.history:
            if metrics["epoch"] > plan.tell_epochs_after:
                self._report("epoch", metrics["epoch"], first.num_batches, first.num_batches, dict(metrics), 0.0)

    def _run(self, loop: LoopState, keeper: CheckpointKeeper | None) -> None:
        stride = BatchStride(self._clock)
        while not loop.is_over:
            raise_if_cancelled(self._token)
            start_s = self._clock()
            batches_before = loop.batches_done
            self._run_epoch(loop, stride, keeper)
            num_batches, metrics = self._finish_epoch(loop)
            if keeper is not None:
                keeper.after_epoch(loop.epoch - 1, loop.capture, loop.checkpoints)
            if metrics is not None:
                batch_time = (self._clock() - start_s) / max(num_batches - batches_before, 1)
                self._report("epoch", metrics["epoch"], num_batches, num_batches, dict(metrics), batch_time)

    def _run_epoch(self, loop: LoopState, stride: BatchStride, keeper: CheckpointKeeper | None) -> None:
        num_batches, step, clock = loop.begin_epoch(), loop.engine.step, self._clock
        due_s = math.inf if keeper is None else keeper.due_within_epoch_s()
        is_timed = due_s < math.inf
        rates = loop.rates()
        is_cancelled = self._token.is_cancelled if self._token is not None else _never
        first = loop.lanes[0]
        reported_batches = 0 if self._callback is None else num_batches if first.is_over else first.num_batches
        while loop.batches_done < num_batches:
            if is_cancelled():
                raise_if_cancelled(self._token)
            step(rates)
            loop.batches_done += 1
            if loop.batches_done < reported_batches and stride.count_batch():
                self._report_batch(loop, reported_batches, stride.mark_update())
            if is_timed and clock() >= due_s and keeper is not None and loop.batches_done < num_batches:
                keeper.save_timed(loop.capture)
                due_s = keeper.due_within_epoch_s()

    def _finish_epoch(self, loop: LoopState) -> tuple[int, EpochMetrics | None]:
        """Judge and keep the epoch; return the first lane's number of batches and its metrics, None if it rested."""
        num_batches = loop.lanes[0].num_batches
        finished = [(index, lane, self._judge_epoch(loop, lane, index)) for index, lane in loop.running()]
        # From here on nothing is cancelled: the epoch is kept by all lanes or by none.
        for index, lane, metrics in finished:
            lane.finish_epoch(metrics, loop.engine, index)
        loop.epoch, loop.batches_done = loop.epoch + 1, 0
        first_index, _, first_metrics = finished[0]
        return num_batches, first_metrics if first_index == 0 else None

    def _judge_epoch(self, loop: LoopState, lane: LaneLoop, index: int) -> EpochMetrics:
        train_loss, train_accuracy = lane.means(loop.engine, index, loop.epoch)
        outputs_NC = loop.engine.validation_outputs(index, lambda: raise_if_cancelled(self._token))
        settings, part = lane.lane.hyperparameters, lane.lane.validation
        activation = cast(Literal["softmax", "sigmoid", "linear"], settings.output_activation)
        with np.errstate(over="ignore", invalid="ignore"):
            val_loss = compute_loss(outputs_NC, part.y, output_activation=activation, targets_N=part.targets)
        val_loss *= lane.loss_scale
        if not math.isfinite(val_loss):
            raise NonFiniteLossError(
                f"the validation loss{lane.name} became {val_loss} after epoch {loop.epoch}, batch {lane.num_batches}; "
                f"lower the learning rate ({lane.schedule.rate(loop.epoch):g}) or clip the gradient",
                metadata={"epoch": str(loop.epoch), "batch": str(lane.num_batches)},
            )
        counts_CC = confusion_matrix(part.y, predicted_classes(torch.from_numpy(outputs_NC), settings).numpy())
        return EpochMetrics(
            epoch=loop.epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=float(np.trace(counts_CC) / len(part)),
            val_balanced_accuracy=balanced_accuracy(counts_CC),
            val_mcc=matthews_correlation(counts_CC),
            learning_rate=lane.schedule.rate(loop.epoch),
        )

    def _results(self, loop: LoopState) -> tuple[TrainedModel, ...]:
        checkpoint = loop.capture()
        results = []
        for lane in loop.lanes:
            model = lane.lane.model
            model.load_state_dict(lane.best)
            unscale_answers(model, lane.scale)
            model.eval()
            results.append(
                TrainedModel(
                    model=model,
                    history=tuple(lane.history),
                    best_epoch=lane.stopping.best_epoch,
                    device=self._capabilities,
                    checkpoint=checkpoint,
                    early_stop_epoch=lane.early_stop_epoch,
                    checkpoints=tuple(loop.checkpoints),
                )
            )
        return tuple(results)

    def _report_batch(self, loop: LoopState, num_batches: int, batch_time: float) -> None:
        lane = loop.lanes[0]
        last = lane.history[-1] if lane.history else None
        if lane.is_over and last is not None:
            train_loss, train_accuracy = last["train_loss"], last["train_accuracy"]
        else:
            train_loss, train_accuracy = lane.means(loop.engine, 0, loop.epoch)
        metrics: dict[str, Any] = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            **{name: last[name] if last else None for name in _VALIDATION_METRICS},
            "learning_rate": lane.schedule.rate(loop.epoch),
        }
        self._report("batch", loop.epoch, loop.batches_done, num_batches, metrics, batch_time)

    def _report(
        self, progress_type: str, epoch: int, batch: int, num_batches: int, metrics: dict[str, Any], batch_time: float
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


_VALIDATION_METRICS: tuple[Literal["val_loss", "val_accuracy", "val_balanced_accuracy", "val_mcc"], ...] = (
    "val_loss",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_mcc",
)


def _never() -> bool:
    return False


def _fingerprint(lanes: Sequence[Lane]) -> str:
    digest = hashlib.sha256()
    hashed: dict[int, bytes] = {}
    for lane in lanes:
        digest.update(json.dumps([lane.hyperparameters.to_dict(), lane.model.spec.to_dict()], sort_keys=True).encode())
        for part in (lane.train, lane.validation):
            # Parts share matrices, the largest of what is hashed.
            if id(part.matrix) not in hashed:
                hashed[id(part.matrix)] = hashlib.sha256(np.ascontiguousarray(part.matrix).data).digest()
            digest.update(hashed[id(part.matrix)])
            digest.update(f"{part.matrix.shape} {part.window_bars}".encode())
            for column in (part.rows, part.y, part.targets, part.symbol_ids):
                digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()
