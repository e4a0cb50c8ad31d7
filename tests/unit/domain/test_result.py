"""validate_training_result names what is missing or wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ktrdr_core.domain.result import validate_training_result
from ktrdr_core.errors import InvalidResultError
from tests.kit.evaluations import make_evaluation

GOOD: dict[str, Any] = {
    "success": True,
    "model_path": "/models/s/EURUSD_1h_v1",
    "model_id": "0b9e7f7e-5d0c-4a53-9d0e-1f2a3b4c5d6e",
    "training_metrics": {
        "epochs": 2,
        "best_epoch": 1,
        "train_loss": 1.0,
        "train_accuracy": 0.4,
        "val_loss": 1.0,
        "val_accuracy": 0.4,
    },
    "test_metrics": {
        "loss": 1.0,
        "accuracy": 0.4,
        "precision": 0.4,
        "recall": 0.4,
        "f1_score": 0.4,
        "majority_baseline_accuracy": 0.4,
    },
    "feature_names": ["rsi_14.oversold"],
    "feature_importance": {"rsi_14.oversold": 0.01},
    "config": {"strategy_config": {}, "training_config": {}, "model_config": {}, "data_config": {}},
    "metadata": {
        "start_time": "2017-01-01T00:00:00Z",
        "end_time": "2017-01-01T00:00:01Z",
        "duration_seconds": 1.0,
        "device": "cpu",
        "symbols": ["EURUSD"],
        "timeframes": ["1h"],
        "start_date": "2017-01-01",
        "end_date": "2017-12-31",
        "total_samples": 10,
        "training_samples": 7,
        "test_samples": 1,
    },
    "artifact_digest": "00",
    "evaluation": make_evaluation(),
}


def test_complete_result_is_accepted() -> None:
    assert validate_training_result(GOOD) == GOOD


@pytest.mark.parametrize("path", ["model_id", "test_metrics.accuracy", "metadata.device", "config.data_config"])
def test_missing_key_is_named(path: str) -> None:
    bad = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    target = bad
    for parent in parents:
        target = target[parent]
    del target[last]
    with pytest.raises(InvalidResultError, match=f"{path} is missing"):
        validate_training_result(bad)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "model_id", "model-1"),
        (None, "success", "yes"),
        (None, "feature_importance", {}),
        ("training_metrics", "val_loss", float("nan")),
        ("metadata", "start_time", "yesterday"),
    ],
)
def test_wrong_value_is_named(section: str | None, key: str, value: Any) -> None:
    bad = copy.deepcopy(GOOD)
    (bad[section] if section else bad)[key] = value
    with pytest.raises(ValueError, match=key):
        validate_training_result(bad)
