"""What to train: the one description that a library call, a local and a host training share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from enum import StrEnum
from typing import Any

from ktrdr_core.errors import InvalidSpecError


class ExecutionMode(StrEnum):
    AUTO = "auto"
    LOCAL = "local"
    HOST = "host"


class DataMode(StrEnum):
    """Where bars come from: the store of the machine that trains, CSV files there, Interactive Brokers, or the
    backend's store wherever it is trained."""

    LOCAL = "local"
    CSV = "csv"
    IB = "ib"
    BACKEND = "backend"


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """A training as asked for; None means "as the strategy says".

    Attributes:
        strategy_yaml: Text of the strategy file.
        symbols: Instruments; empty means those of the strategy.
        timeframes: Bar lengths such as "1h"; empty means those of the strategy.
        start_date: First day, inclusive, UTC; None means from the first bar.
        end_date: Last day, inclusive, UTC; None means to the last bar.
        data_mode: Where the bars come from; a library call reads the bar store it is given.
        validation_split: Share of validation rows in (0, 1); the training part gives or takes the difference.
        model_type: Overrides `model.type`.
        multi_symbol: Combine several symbols in one model.
        epochs, batch_size, learning_rate: Override `model.training`.
        enable_gpu: False keeps the training on the CPU.
        memory_fraction: Share of the GPU's memory this training may use, in (0, 1].
        mixed_precision: True asks for it where the device has it.
        num_gpus: Devices asked for; 0 means "the best there is".
        require_gpu: Fail rather than run without a GPU.
        execution_mode: None means the backend's default.
        seed: Seed of every random draw.
    """

    strategy_yaml: str
    symbols: tuple[str, ...] = ()
    timeframes: tuple[str, ...] = ()
    start_date: date | None = None
    end_date: date | None = None
    data_mode: DataMode = DataMode.BACKEND
    validation_split: float | None = None
    model_type: str | None = None
    multi_symbol: bool | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    enable_gpu: bool = True
    memory_fraction: float | None = None
    mixed_precision: bool = False
    num_gpus: int = 0
    require_gpu: bool = False
    execution_mode: ExecutionMode | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        def refuse(field: str, value: object, rule: str) -> None:
            raise InvalidSpecError(f"{field} must be {rule}, was {value}", field=f"spec.{field}")

        for field in ("symbols", "timeframes"):
            if isinstance(getattr(self, field), str):  # a text is a sequence of texts too, one for each letter
                refuse(field, repr(getattr(self, field)), "a tuple of names, such as ('A',)")
        for field, kind in (("execution_mode", ExecutionMode), ("data_mode", DataMode)):
            value = getattr(self, field)
            if not isinstance(value, kind) and not (value is None and field == "execution_mode"):
                refuse(field, repr(value), f"one of {', '.join(f'{kind.__name__}.{mode.name}' for mode in kind)}")
        if not self.strategy_yaml.strip():
            raise InvalidSpecError(
                "strategy is empty; give the YAML text of a strategy, or its name", field="spec.strategy"
            )
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise InvalidSpecError(
                f"start_date {self.start_date} is after end_date {self.end_date}; swap them",
                field="spec.start_date",
            )
        for field in ("epochs", "batch_size"):
            value = getattr(self, field)
            if value is not None and value < 1:
                refuse(field, value, "at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < 10:
            refuse("learning_rate", self.learning_rate, "above 0 and below 10")
        if self.validation_split is not None and not 0 < self.validation_split < 1:
            refuse("validation_split", self.validation_split, "above 0 and below 1")
        if self.memory_fraction is not None and not 0 < self.memory_fraction <= 1:
            refuse("memory_fraction", self.memory_fraction, "above 0 and at most 1")
        if self.num_gpus < 0:
            refuse("num_gpus", self.num_gpus, "at least 0")
        if not 0 <= self.seed < 2**63:
            refuse("seed", self.seed, "in [0, 2^63)")

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces; `from_json` reads it back equal."""
        raw = asdict(self)
        for key in ("start_date", "end_date"):
            raw[key] = raw[key].isoformat() if raw[key] else None
        return json.dumps(raw, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> TrainingSpec:
        raw: dict[str, Any] = json.loads(text)
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise InvalidSpecError(f"unknown key {unknown[0]!r} in a stored training spec; known: {sorted(known)}")
        for key in ("symbols", "timeframes"):
            raw[key] = tuple(raw.get(key, ()))
        for key in ("start_date", "end_date"):
            raw[key] = date.fromisoformat(raw[key]) if raw.get(key) else None
        raw["data_mode"] = DataMode(raw.get("data_mode", DataMode.LOCAL))  # what it was when nobody wrote it down
        mode = raw.get("execution_mode")
        raw["execution_mode"] = ExecutionMode(mode) if mode else None
        return cls(**raw)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def with_seed(self, seed: int) -> TrainingSpec:
        """Return a copy with another seed."""
        return replace(self, seed=seed)
