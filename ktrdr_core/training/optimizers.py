"""Optimisers by name, each in one fixed flavour: fused and default Adam differ in the last bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ktrdr_core.errors import UnsupportedError
from ktrdr_core.training.hyperparameters import BUILT_OPTIMIZERS

_CLASSES: dict[str, type[torch.optim.Adam] | type[torch.optim.AdamW] | type[torch.optim.SGD]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def build_optimizer(name: str, parameters: Sequence[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Return the fused optimiser `name` over `parameters`."""
    if name not in _CLASSES:
        raise UnsupportedError(f"optimizer {name!r} is not built; use one of {', '.join(BUILT_OPTIMIZERS)}")
    return _CLASSES[name](parameters, lr=learning_rate, fused=True)
