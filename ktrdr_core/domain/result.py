"""TrainingResult: what every execution of a training answers, wherever it ran."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from ktrdr_core.errors import InvalidResultError


class TrainingMetrics(TypedDict):
    """Metrics of `best_epoch`, whose weights are the model's; losses are means per row, accuracies in [0, 1].

    `epochs` is how many were done.
    """

    epochs: int
    best_epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


class TestMetrics(TypedDict):
    """Metrics of the test part; precision, recall and F1 are macro averages over BUY, HOLD, SELL."""

    loss: float
    accuracy: float
    precision: float
    recall: float
    f1_score: float
    majority_baseline_accuracy: float


class ResultConfig(TypedDict):
    strategy_config: dict[str, Any]
    training_config: dict[str, Any]
    model_config: dict[str, Any]
    data_config: dict[str, Any]


class ResultMetadata(TypedDict):
    """Facts of one execution; times are ISO 8601, UTC."""

    start_time: str
    end_time: str
    duration_seconds: float
    device: str
    symbols: list[str]
    timeframes: list[str]
    start_date: str
    end_date: str
    total_samples: int
    training_samples: int
    test_samples: int


class _OptionalResult(TypedDict, total=False):
    error: str
    warnings: list[str]
    checkpoints: list[str]
    early_stopped: bool
    early_stop_epoch: int


class TrainingResult(_OptionalResult):
    """The contract; `warnings` and the rest of `_OptionalResult` may be absent."""

    success: bool
    model_path: str
    model_id: str
    training_metrics: TrainingMetrics
    test_metrics: TestMetrics
    feature_names: list[str]
    feature_importance: dict[str, float]
    config: ResultConfig
    metadata: ResultMetadata
    artifact_digest: str


_SECTIONS: dict[str, type] = {
    "training_metrics": TrainingMetrics,
    "test_metrics": TestMetrics,
    "config": ResultConfig,
    "metadata": ResultMetadata,
}


def validate_training_result(result: Mapping[str, Any]) -> TrainingResult:
    """Return `result` typed, or say what is wrong with it.

    Raises:
        InvalidResultError: (a ValueError) A key is missing, or a value has the wrong type or range.
    """

    def refuse(field: str, rule: str) -> None:
        raise InvalidResultError(f"training result: {field} {rule}", field=field)

    for key in TrainingResult.__required_keys__:
        if key not in result:
            refuse(key, "is missing")
    for name, section_type in _SECTIONS.items():
        section = result[name]
        if not isinstance(section, Mapping):
            refuse(name, f"must be a mapping, was {type(section).__name__}")
        for key in section_type.__annotations__:
            if key not in section:
                refuse(f"{name}.{key}", "is missing")
    if not isinstance(result["success"], bool):
        refuse("success", f"must be true or false, was {result['success']!r}")
    try:
        UUID(str(result["model_id"]))
    except ValueError:
        refuse("model_id", f"must be a UUID, was {result['model_id']!r}")
    for name in ("training_metrics", "test_metrics"):
        for key, value in result[name].items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                refuse(f"{name}.{key}", f"must be a finite number, was {value!r}")
    importance = result["feature_importance"]
    if set(importance) != set(result["feature_names"]):
        refuse("feature_importance", "must name the same features as feature_names")
    for key in ("start_time", "end_time"):
        try:
            datetime.fromisoformat(result["metadata"][key])
        except (TypeError, ValueError):
            refuse(f"metadata.{key}", f"must be ISO 8601, was {result['metadata'][key]!r}")
    return cast(TrainingResult, dict(result))
