"""What is read of a model for a comparison, made without training."""

from __future__ import annotations

import copy
from typing import Any

from ktrdr_client.model_comparison import ReadModel

from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.storage.artifact import result_of
from tests.kit.artifacts import make_artifact
from tests.kit.builders import strategy

BARS = {
    "EURUSD": [
        {"timeframe": "1h", "num_bars": 6225, "sha256": "aa" * 32},
        {"timeframe": "4h", "num_bars": 1557, "sha256": "bb" * 32},
    ]
}


def make_read_model(
    *, name: str = "small/EURUSD_1h_v1", digest: str = "d1", weights: str = "w1", **changes: Any
) -> ReadModel:
    """Return a model that tells everything a training tells of itself; a key `config.a.b` of `changes` sets that place.

    The places are those of a TrainingResult; `**{"config.training_config.seed": 7}`.
    """
    result: Any = copy.deepcopy(_result())
    result["artifact_digest"] = digest
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = result
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = copy.deepcopy(value)
    return ReadModel(name=name, result=result, weights_sha256=weights)


def _result() -> TrainingResult:
    artifact = make_artifact(
        data_mode="backend",
        code_version="0.1.0",
        environment={
            "python": "3.11.9",
            "versions": {"ktrdr": "0.1.0", "torch": "2.13.0"},
            "cpu_capability": "AVX2",
            "device": "cpu",
        },
    )
    stored: Any = artifact.config
    stored["strategy_config"] = strategy().to_dict()
    stored["strategy_digest"] = "ee" * 32
    stored["training_config"] = {
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 1e-05,
        "seed": 42,
        "enable_gpu": True,
        "require_gpu": False,
        "num_gpus": 0,
        "memory_fraction": None,
        "mixed_precision": False,
        "validation_split": 0.15,
    }
    stored["data_config"] = {
        "symbols": ["EURUSD"],
        "timeframes": ["1h", "4h"],
        "start_date": "2017-01-01",
        "end_date": "2017-12-29",
        "data_split": {"train": 0.7, "validation": 0.15, "test": 0.15},
        "bars": BARS,
        "rows": {"train": 100, "validation": 20, "test": 20},
    }
    return result_of(artifact)
