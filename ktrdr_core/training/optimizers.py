"""Optimisers by name, each in one fixed flavour: fused and default Adam differ in the last bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ktrdr_core.training.hyperparameters import Hyperparameters

# Devices on which torch has a fused kernel of adam, adamw and sgd; rmsprop has one nowhere.
FUSED_DEVICES: tuple[str, ...] = ("cpu", "cuda", "mps")


def build_optimizer(
    settings: Hyperparameters, parameters: Sequence[torch.nn.Parameter], device_type: str
) -> torch.optim.Optimizer:
    """Return the optimiser of `settings` over `parameters`, fused where the device has that."""
    chosen: dict[str, Any] = {"lr": settings.learning_rate}
    if settings.weight_decay is not None:
        chosen["weight_decay"] = settings.weight_decay
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, **chosen)
    chosen["fused"] = device_type in FUSED_DEVICES
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, **chosen)
        case "adamw":
            return torch.optim.AdamW(parameters, **chosen)
        case _:
            return torch.optim.SGD(parameters, momentum=settings.momentum, **chosen)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of the tensors of an optimiser's state on the CPU, by "parameter index.key"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value.detach().cpu().clone()
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
