"""Who this trainer is: a name made once, which outlives restarts and changes of its address."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

from ktrdr_core.data.durable import write_durably
from ktrdr_core.errors import CorruptDataError

_NAME = "trainer_id"


def load_trainer_id(state_dir: Path) -> str:
    """Return the identity of the trainer whose state is in `state_dir`, made if it has none; blocking.

    Raises:
        CorruptDataError: What is there is no identity.
        OSError: It can be neither read nor made.
    """
    path = state_dir / _NAME
    if path.exists():
        return _read(path)
    trainer_id = str(uuid4())
    state_dir.mkdir(parents=True, exist_ok=True)
    write_durably(path, f"{trainer_id}\n".encode())
    return trainer_id


def _read(path: Path) -> str:
    try:
        return str(UUID(path.read_text().strip()))
    except ValueError:
        raise CorruptDataError(f"{path} holds no trainer_id; remove it, and the trainer gets a new identity") from None
