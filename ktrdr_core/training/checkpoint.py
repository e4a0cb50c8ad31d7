"""A checkpoint: everything that a training loop needs to go on as if it had never stopped.

One safetensors file: the tensors, and in its header one JSON text with the rest. Written beside its place, fsynced,
renamed, so a checkpoint that exists is whole. No pickled code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ktrdr_core.errors import CorruptDataError, NotFoundError
from ktrdr_core.storage.durable import write_durably

CHECKPOINT_NAME = "checkpoint.safetensors"
FORMAT_VERSION = 1
_STATE_KEY = "state"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a loop between two batches.

    Attributes:
        fingerprint: SHA-256 of the settings, the network and the rows it belongs to.
        epoch: Epoch under way, 1-indexed; epochs + 1 when all are done.
        batches_done: Batches of that epoch already applied.
        correct: Training rows of that epoch classified right so far.
        history: Metrics of each finished epoch.
        best_epoch: Epoch with the lowest validation loss; 0 before the first ended.
        model: Weights now.
        best: Weights after `best_epoch`; empty before.
        optimizer: Tensors of the optimiser's state, by "parameter index.key".
        shuffle_state: State of the generator of permutations, after the one in use was drawn.
        dropout: For each dropout layer its generator's state, rows of the block of masks in use, rows used.
        permutation: Row order of the epoch under way; empty if none is.
        losses: Loss of each batch applied in that epoch.
    """

    fingerprint: str
    epoch: int
    batches_done: int
    correct: int
    history: list[dict[str, Any]]
    best_epoch: int
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    shuffle_state: Tensor
    dropout: list[tuple[Tensor, int, int]]
    permutation: Tensor
    losses: Tensor


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` to the file `path` so that it is there whole or not at all; return `path`."""
    tensors: dict[str, Tensor] = {
        "rng.shuffle": checkpoint.shuffle_state,
        "permutation": checkpoint.permutation,
        "losses": checkpoint.losses,
    }
    for group in ("model", "best", "optimizer"):
        values: dict[str, Tensor] = getattr(checkpoint, group)
        tensors.update({f"{group}/{name}": value for name, value in values.items()})
    for index, (generator_state, _, _) in enumerate(checkpoint.dropout):
        tensors[f"rng.dropout/{index}"] = generator_state
    state = {
        "format_version": FORMAT_VERSION,
        "fingerprint": checkpoint.fingerprint,
        "epoch": checkpoint.epoch,
        "batches_done": checkpoint.batches_done,
        "correct": checkpoint.correct,
        "history": checkpoint.history,
        "best_epoch": checkpoint.best_epoch,
        "dropout_rows": [[rows, used] for _, rows, used in checkpoint.dropout],
    }
    payload = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {_STATE_KEY: json.dumps(state)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, payload)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in `path`, a file or the directory that holds `checkpoint.safetensors`.

    Raises:
        NotFoundError: There is none.
        CorruptDataError: It is not one, or was written by another version.
    """
    if path.is_dir():
        path = path / CHECKPOINT_NAME
    if not path.is_file():
        raise NotFoundError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[_STATE_KEY])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptDataError(f"{path} is not a checkpoint: {error}") from error
    if state.get("format_version") != FORMAT_VERSION:
        raise CorruptDataError(
            f"{path} has checkpoint format {state.get('format_version')}, this version reads {FORMAT_VERSION}"
        )

    def group(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(f"{prefix}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")
        }

    return Checkpoint(
        fingerprint=state["fingerprint"],
        epoch=state["epoch"],
        batches_done=state["batches_done"],
        correct=state["correct"],
        history=state["history"],
        best_epoch=state["best_epoch"],
        model=group("model"),
        best=group("best"),
        optimizer=group("optimizer"),
        shuffle_state=tensors["rng.shuffle"],
        dropout=[
            (tensors[f"rng.dropout/{index}"], rows, used) for index, (rows, used) in enumerate(state["dropout_rows"])
        ],
        permutation=tensors["permutation"],
        losses=tensors["losses"],
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of the tensors of an optimiser's state, by "parameter index.key"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value.detach().clone()
        for index, values in state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took from an optimiser with the same settings."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
