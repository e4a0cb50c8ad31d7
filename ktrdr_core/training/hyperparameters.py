"""What the training loop obeys, read once from the executor's `training_config`. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ktrdr_core.errors import InvalidInputError, UnsupportedError

BUILT_OPTIMIZERS: tuple[str, ...] = ("adam", "adamw", "sgd")
REQUIRED_KEYS: tuple[str, ...] = ("epochs", "batch_size", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Settings of one training loop.

    Attributes:
        epochs: Passes over the training part.
        batch_size: Rows of an optimiser update.
        learning_rate: Step size, positive and finite.
        optimizer: One of BUILT_OPTIMIZERS.
        seed: Seed of weights, shuffles, dropout and permutations.
        enable_gpu: False keeps the training on the CPU.
        require_gpu: Fail rather than run without a GPU.
        mixed_precision: Train in bfloat16 where the device has it.
        memory_fraction: Share of the GPU's memory, in (0, 1]; None is no limit.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adam"
    seed: int = 42
    enable_gpu: bool = True
    require_gpu: bool = False
    mixed_precision: bool = False
    memory_fraction: float | None = None

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size"):
            if getattr(self, field) < 1:
                raise InvalidInputError(
                    f"{field} must be at least 1, was {getattr(self, field)}", field=f"training_config.{field}"
                )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InvalidInputError(
                f"learning_rate must be positive and finite, was {self.learning_rate}",
                field="training_config.learning_rate",
            )
        if self.optimizer not in BUILT_OPTIMIZERS:
            raise UnsupportedError(
                f"optimizer {self.optimizer!r} is not built; use one of {', '.join(BUILT_OPTIMIZERS)}",
                field="training_config.optimizer",
            )

    @classmethod
    def from_training_config(cls, training_config: Mapping[str, Any]) -> Hyperparameters:
        """Return the settings in `training_config`; keys that are not the loop's are left alone.

        Raises:
            InvalidInputError: (a ValueError) A required key is missing, or a value breaks a rule.
        """
        for key in REQUIRED_KEYS:
            if training_config.get(key) is None:
                raise InvalidInputError(f"training_config.{key} is missing; give it", field=f"training_config.{key}")
        fraction = training_config.get("memory_fraction")
        return cls(
            epochs=int(training_config["epochs"]),
            batch_size=int(training_config["batch_size"]),
            learning_rate=float(training_config["learning_rate"]),
            optimizer=str(training_config.get("optimizer") or "adam").lower(),
            seed=int(training_config.get("seed", 42)),
            enable_gpu=bool(training_config.get("enable_gpu", True)),
            require_gpu=bool(training_config.get("require_gpu", False)),
            mixed_precision=bool(training_config.get("mixed_precision", False)),
            memory_fraction=None if fraction is None else float(fraction),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
