"""What a person means by MODEL: a directory on this machine, or a name that the backend knows."""

from __future__ import annotations

from pathlib import Path

from ktrdr_core.errors import ModelNotFoundError

_WEIGHTS = "model.safetensors"


def model_directory(model: str) -> Path | None:
    """Return the model directory that `model` is the path of; None if it is no path but a name.

    Raises:
        ModelNotFoundError: It is a path, and no model is there.
    """
    path = Path(model).expanduser()
    if (path / _WEIGHTS).is_file():
        return path.resolve()
    if path.is_dir() or model.startswith((".", "/", "~")):
        raise ModelNotFoundError(
            f"{model} is no model directory (it has no {_WEIGHTS}); `ktrdr models list` names those there are"
        )
    return None
