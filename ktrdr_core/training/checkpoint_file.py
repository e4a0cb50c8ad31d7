"""The file of a checkpoint seen from outside: its names, its header, whether it is whole. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ktrdr_core.errors import CorruptDataError, NotFoundError

CHECKPOINT_NAME = "checkpoint.safetensors"
FORMAT_VERSION = 2
STATE_KEY = "state"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LoopPosition:
    """How far a training loop has come; a later position is the greater one.

    Attributes:
        epoch: Epoch under way, 1-indexed; epochs + 1 when all are done.
        batches_done: Batches of that epoch already applied.
    """

    epoch: int
    batches_done: int

    @property
    def last_epoch(self) -> int:
        """The last finished epoch; 0 within the first."""
        return self.epoch - 1


def locate(path: Path) -> Path:
    """Return the file of the checkpoint at `path`, which is it or the directory that holds `checkpoint.safetensors`.

    Raises:
        NotFoundError: There is none.
    """
    file = path / CHECKPOINT_NAME if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"there is no checkpoint at {file}")
    return file


def read_position(path: Path) -> LoopPosition:
    """Return where the checkpoint in the file `path` was taken; its tensors are only counted, not read.

    Raises:
        CorruptDataError: It is no whole checkpoint, or was written by another version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            state = parse_state(path, file.metadata())
    except (SafetensorError, OSError) as error:
        raise CorruptDataError(f"{path} is not a checkpoint: {error}") from error
    return LoopPosition(epoch=state["epoch"], batches_done=state["batches_done"])


def parse_state(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    """Return the plain part of a checkpoint from the metadata of its file.

    Raises:
        CorruptDataError: There is none, or another version wrote it.
    """
    try:
        state = json.loads((metadata or {})[STATE_KEY])
    except (KeyError, ValueError) as error:
        raise CorruptDataError(f"{path} is not a checkpoint: {error}") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise CorruptDataError(
            f"{path} has checkpoint format {version}, this version reads {FORMAT_VERSION}; start the training anew, or "
            "go on with the version that wrote it"
        )
    if not all(isinstance(state.get(name), int) for name in ("epoch", "batches_done")):
        raise CorruptDataError(f"{path} is not a whole checkpoint: its position is missing or wrong")
    return dict(state)
