"""What the training loop obeys, read once from the executor's `training_config`. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pydantic import ValidationError

from ktrdr_core.config.model_sections import EarlyStoppingConfig, OptimisationConfig, ScheduleConfig
from ktrdr_core.config.violations import invalid_strategy
from ktrdr_core.errors import FieldViolation, InvalidInputError

SECTION = "training_config"
REQUIRED_KEYS: tuple[str, ...] = ("epochs", "batch_size", "learning_rate")

LossKind = Literal["cross_entropy", "focal", "one_vs_rest", "mse", "huber"]
"""Formulas of `training/losses.py`: softmax cross entropy, focal, sigmoid cross entropy of each class, and two of a
regression."""

# Fields that are checked by the sections of the strategy file, under their name there.
_SECTION_KEYS: dict[str, str] = {
    name: "gpu_memory_fraction" if name == "memory_fraction" else name
    for name in (
        *(key for key in OptimisationConfig.model_fields if key not in ("learning_rate", "gpu_memory_fraction")),
        "memory_fraction",
    )
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "sampling": ("balanced", "proportional"),
    "output_format": ("classification", "regression"),
    "output_activation": ("softmax", "sigmoid", "linear"),
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Settings of one training loop.

    What `config.OptimisationConfig` has too means the same here. The learning rate alone may be any positive number:
    what a strategy file may ask for is narrower than what a library call may try.

    Attributes:
        seed: Seed of weights, shuffles, dropout and permutations.
        enable_gpu: False keeps the training on the CPU.
        require_gpu: Fail rather than run without a GPU.
        num_gpus: Devices asked for; 0 is the best there is, and no training uses more than one.
        memory_fraction: Share of the GPU's memory, in (0, 1]; None is no limit.
        sampling: `balanced` shows each symbol equally often in an epoch.
        num_symbols: Symbols among the rows.
        output_format: What the network answers: a class, or the forward return.
        output_activation: `softmax` or `sigmoid` for a classification, `linear` for a regression.
        buy_threshold: Answer of a regression from which on it is a BUY; above 0.
        sell_threshold: Answer of a regression, taken positive, from which on it is a SELL: 0.001 means -0.1 %.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adam"
    weight_decay: float | None = None
    momentum: float = 0.0
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gradient_clip_norm: float | None = None
    early_stopping: EarlyStoppingConfig | None = None
    loss: str | None = None
    focal_gamma: float = 2.0
    class_weights: str = "none"
    mixed_precision: bool = False
    checkpoint_every_epochs: int | None = None
    memory_fraction: float | None = None
    seed: int = 42
    enable_gpu: bool = True
    require_gpu: bool = False
    num_gpus: int = 0
    sampling: str = "balanced"
    num_symbols: int = 1
    output_format: str = "classification"
    output_activation: str = "softmax"
    buy_threshold: float | None = None
    sell_threshold: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise _refusal("learning_rate", f"learning_rate must be positive and finite, was {self.learning_rate}")
        _parse_sections({name: getattr(self, name) for name in _SECTION_KEYS})
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _refusal(name, f"{name} must be {' or '.join(choices)}, was {getattr(self, name)!r}")
        if self.num_symbols < 1:
            raise _refusal("num_symbols", f"num_symbols must be at least 1, was {self.num_symbols}")
        if self.num_gpus < 0:
            raise _refusal("num_gpus", f"num_gpus must be at least 0, was {self.num_gpus}")
        if not 0 <= self.seed < 2**63:
            raise _refusal("seed", f"seed must be in [0, 2^63), was {self.seed}")
        if self.schedule.warm_up_epochs >= self.epochs:
            raise _refusal(
                "schedule.warm_up_epochs",
                f"schedule.warm_up_epochs ({self.schedule.warm_up_epochs}) must be below epochs ({self.epochs}); "
                "the learning rate would never reach its value",
            )
        self._check_output()

    def _check_output(self) -> None:
        if self.is_regression != (self.output_activation == "linear"):
            raise _refusal(
                "output_activation",
                f"output_activation {self.output_activation} does not fit a {self.output_format}; "
                "a regression takes linear, a classification softmax or sigmoid",
            )
        fitting = ("mse", "huber") if self.is_regression else ("cross_entropy", "focal")
        if self.loss is not None and self.loss not in fitting:
            raise _refusal(
                "loss", f"loss {self.loss} does not fit a {self.output_format}; use {' or '.join(fitting)}, or leave it"
            )
        if self.loss == "focal" and self.output_activation == "sigmoid":
            raise _refusal("loss", "focal loss is of the softmax; use cross_entropy, or output_activation softmax")
        if not self.is_regression:
            return
        if self.class_weights != "none":
            raise _refusal("class_weights", "class_weights belong to a classification; use none")
        for name in ("buy_threshold", "sell_threshold"):
            value = getattr(self, name)
            if value is None or not (math.isfinite(value) and value > 0):
                raise _refusal(name, f"a regression needs {name} above 0 to turn answers into classes, was {value}")

    @property
    def is_regression(self) -> bool:
        return self.output_format == "regression"

    @property
    def thresholds(self) -> tuple[float, float]:
        """(buy, sell) of a regression; out of reach for a classification."""
        return self.buy_threshold or math.inf, self.sell_threshold or math.inf

    @property
    def loss_kind(self) -> LossKind:
        """The formula that is minimised, with nothing left to default."""
        if self.is_regression:
            return "huber" if self.loss == "huber" else "mse"
        if self.output_activation == "sigmoid":
            return "one_vs_rest"
        return "focal" if self.loss == "focal" else "cross_entropy"

    @classmethod
    def from_training_config(cls, training_config: Mapping[str, Any]) -> Hyperparameters:
        """Return the settings in `training_config`; keys that are not the loop's are left alone, None is the default.

        Raises:
            InvalidInputError: (a ValueError) A required key is missing, or a value breaks a rule.
        """
        given = {
            own.name: training_config[own.name] for own in fields(cls) if training_config.get(own.name) is not None
        }
        for key in REQUIRED_KEYS:
            if key not in given:
                raise _refusal(key, f"{SECTION}.{key} is missing; give it")
        for key in ("optimizer", "sampling", "output_format", "output_activation"):
            if isinstance(given.get(key), str):
                given[key] = given[key].lower()
        if training_config.get("gpu_memory_fraction") is not None:
            given.setdefault("memory_fraction", training_config["gpu_memory_fraction"])
        if given.get("output_format") == "regression":
            given.setdefault("output_activation", "linear")
        for key, kind in (("learning_rate", int | float), ("seed", int), ("num_gpus", int), ("num_symbols", int)):
            if key in given and (not isinstance(given[key], kind) or isinstance(given[key], bool)):
                word = "number" if key == "learning_rate" else "whole number"
                raise _refusal(key, f"{key} must be a {word}, was {given[key]!r}")
        parsed = _parse_sections({name: given[name] for name in _SECTION_KEYS if name in given})
        given |= {name: getattr(parsed, _SECTION_KEYS[name]) for name in given.keys() & _SECTION_KEYS.keys()}
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that `from_training_config` reads back equal."""
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        for key in ("schedule", "early_stopping"):
            values[key] = values[key].model_dump(mode="json") if values[key] is not None else None
        return values


def _refusal(name: str, message: str) -> InvalidInputError:
    return InvalidInputError(message, field=f"{SECTION}.{name}")


def _parse_sections(values: Mapping[str, Any]) -> OptimisationConfig:
    """Return `values` checked by the rules of the strategy file, which are written there and nowhere else."""
    try:
        return OptimisationConfig.model_validate({_SECTION_KEYS[name]: value for name, value in values.items()})
    except ValidationError as error:
        found = invalid_strategy(error, source=SECTION, root=OptimisationConfig)
        violations = [
            FieldViolation(f"{SECTION}.{_own_name(violation.field)}", violation.description)
            for violation in found.violations
        ]
        first = violations[0]
        raise InvalidInputError(f"{first.description} ({first.field})", violations=violations) from None


def _own_name(path: str) -> str:
    return path.replace("gpu_memory_fraction", "memory_fraction")
