"""A checkpoint: everything that a training loop needs to go on as if it had never stopped.

One safetensors file: the tensors of every lane, and in its header one JSON text with the rest. Written beside its
place, fsynced, renamed, so a checkpoint that exists is whole. No pickled code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ktrdr_core.data.durable import write_durably
from ktrdr_core.errors import CorruptDataError
from ktrdr_core.training.checkpoint_file import FORMAT_VERSION, STATE_KEY, LoopPosition, locate, parse_state

# Checkpoints of a kind that are kept: the newest, and one before it.
NUM_KEPT = 2
_PERIODIC_NAME = "epoch_{epoch:08d}.safetensors"
_TENSOR_GROUPS = ("weights", "best", "engine")
_PLAIN_FIELDS = ("correct", "history", "schedule", "stopping", "early_stop_epoch")


@dataclass(frozen=True, kw_only=True, eq=False)
class LaneCheckpoint:
    """State of one lane.

    Attributes:
        weights: Weights now.
        best: Weights of the best epoch; empty before the first ended.
        engine: `LaneEngine.state`: optimiser, dropout.
        shuffle_state: State of the generator of shuffles, after the order in use was drawn.
        order: Rows of the epoch under way in the order they are seen; empty if none is.
        losses: Mean loss of each batch applied in that epoch, float64.
        correct: Training rows of that epoch classified right so far.
        history: Metrics of each finished epoch.
        schedule: State of the learning rate's schedule.
        stopping: State of early stopping, the best epoch with it.
        early_stop_epoch: Epoch after which patience ran out; None while it has not.
    """

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    engine: dict[str, Tensor]
    shuffle_state: Tensor
    order: NDArray[np.int64]
    losses: NDArray[np.float64]
    correct: int
    history: list[dict[str, Any]]
    schedule: dict[str, Any]
    stopping: dict[str, Any]
    early_stop_epoch: int | None

    @property
    def best_epoch(self) -> int:
        """Epoch of `best`; 0 before the first ended."""
        return int(self.stopping["best_epoch"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """State of a loop between two batches.

    Attributes:
        fingerprint: SHA-256 of the settings, the networks and the rows it belongs to.
        engine: Kind of engine that it was taken from; another cannot go on with it.
        epoch: Epoch under way, 1-indexed; epochs + 1 when all are done.
        batches_done: Batches of that epoch already applied.
        lanes: The lanes.
    """

    fingerprint: str
    engine: str
    epoch: int
    batches_done: int
    lanes: tuple[LaneCheckpoint, ...]

    @property
    def position(self) -> LoopPosition:
        return LoopPosition(epoch=self.epoch, batches_done=self.batches_done)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` to the file `path` so that it is there whole or not at all; return `path`."""
    tensors: dict[str, Tensor] = {}
    for index, lane in enumerate(checkpoint.lanes):
        for group in _TENSOR_GROUPS:
            values: dict[str, Tensor] = getattr(lane, group)
            tensors.update({f"{index}/{group}/{name}": value for name, value in values.items()})
        tensors[f"{index}/shuffle"] = lane.shuffle_state
        tensors[f"{index}/order"] = torch.from_numpy(lane.order)
        tensors[f"{index}/losses"] = torch.from_numpy(lane.losses)
    state = {
        "format_version": FORMAT_VERSION,
        "fingerprint": checkpoint.fingerprint,
        "engine": checkpoint.engine,
        "epoch": checkpoint.epoch,
        "batches_done": checkpoint.batches_done,
        "lanes": [{name: getattr(lane, name) for name in _PLAIN_FIELDS} for lane in checkpoint.lanes],
    }
    payload = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {STATE_KEY: json.dumps(state)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, payload)
    return path


def save_periodic(directory: Path, checkpoint: Checkpoint, kept: list[str]) -> None:
    """Write the checkpoint of a finished epoch into `directory` and remove all but the newest of `kept`.

    Args:
        directory: Where they go.
        checkpoint: Taken between two epochs.
        kept: Paths of those written before, oldest first; brought up to date.
    """
    path = directory / _PERIODIC_NAME.format(epoch=checkpoint.epoch - 1)
    kept.append(str(save_checkpoint(path, checkpoint)))
    while len(kept) > NUM_KEPT:
        Path(kept.pop(0)).unlink(missing_ok=True)


def find_periodic(directory: Path, before_epoch: int) -> list[str]:
    """Return the periodic checkpoints in `directory` of epochs below `before_epoch`, oldest first."""
    latest = _PERIODIC_NAME.format(epoch=before_epoch)
    return [str(path) for path in sorted(directory.glob("epoch_*.safetensors")) if path.name < latest]


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in `path`, a file or the directory that holds `checkpoint.safetensors`.

    Raises:
        NotFoundError: There is none.
        CorruptDataError: It is not one, or was written by another version.
    """
    path = locate(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = parse_state(path, file.metadata())
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptDataError(f"{path} is not a checkpoint: {error}") from error
    try:
        lanes = tuple(_lane_of(tensors, f"{index}/", plain) for index, plain in enumerate(state["lanes"]))
        return Checkpoint(lanes=lanes, **{name: state[name] for name in _LOOP_FIELDS})
    except (KeyError, TypeError) as error:
        raise CorruptDataError(f"{path} is not a whole checkpoint: {error} is missing or wrong") from error


_LOOP_FIELDS = ("fingerprint", "engine", "epoch", "batches_done")


def _lane_of(tensors: dict[str, Tensor], prefix: str, plain: dict[str, Any]) -> LaneCheckpoint:
    def group(name: str) -> dict[str, Tensor]:
        start = f"{prefix}{name}/"
        return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}

    return LaneCheckpoint(
        weights=group("weights"),
        best=group("best"),
        engine=group("engine"),
        shuffle_state=tensors[f"{prefix}shuffle"],
        order=tensors[f"{prefix}order"].numpy(),
        losses=tensors[f"{prefix}losses"].numpy(),
        **{name: plain[name] for name in _PLAIN_FIELDS},
    )
