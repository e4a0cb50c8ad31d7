"""Small complete model artifacts, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ktrdr_core.storage.artifact import ModelArtifact, write_artifact
from ktrdr_core.storage.artifact_files import WEIGHTS_FILE
from tests.kit.evaluations import make_evaluation

FEATURE_NAMES = ["rsi_14.low", "rsi_14.high"]


def make_artifact(
    *, name: str = "small", symbols: tuple[str, ...] = ("EURUSD",), seed: int = 1, **metadata: Any
) -> ModelArtifact:
    """Return an artifact of a 2-feature network; `seed` decides its weights, `metadata` replaces entries."""
    rng = np.random.default_rng(seed)
    return ModelArtifact(
        tensors={
            "layers.0.weight": rng.normal(size=(3, 2)).astype(np.float32),
            "layers.0.bias": np.zeros(3, dtype=np.float32),
        },
        config={
            "strategy_config": {"name": name},
            "training_config": {"seed": seed},
            "model_config": {"network": {"type": "mlp", "input_size": 2, "hidden_layers": []}},
            "data_config": {"symbols": list(symbols)},
        },
        metrics={
            "training_metrics": {
                "epochs": 2,
                "best_epoch": 1,
                "train_loss": 1.0,
                "train_accuracy": 0.5,
                "val_loss": 1.1,
                "val_accuracy": 0.4,
            },
            "test_metrics": {
                "loss": 1.0,
                "accuracy": 0.5,
                "precision": 0.5,
                "recall": 0.5,
                "f1_score": 0.5,
                "majority_baseline_accuracy": 0.4,
            },
            "evaluation": make_evaluation(),
        },
        features={
            "feature_names": FEATURE_NAMES,
            "feature_importance": {"rsi_14.low": 0.1, "rsi_14.high": 0.0},
            "scaler": {"kind": "standard", "centre": [0.0, 0.5], "scale": [1.0, 2.0]},
            "fuzzy_sets": {},
        },
        metadata={
            "model_id": str(uuid4()),
            "start_time": "2026-01-01T00:00:00.000000Z",
            "end_time": "2026-01-01T00:01:00.000000Z",
            "duration_seconds": 60.0,
            "device": "cpu",
            "symbols": list(symbols),
            "timeframes": ["1h"],
            "start_date": "2017-01-01",
            "end_date": "2017-12-29",
            "total_samples": 100,
            "training_samples": 70,
            "test_samples": 15,
            "warnings": [],
        }
        | metadata,
    )


def write_large_artifact(directory: Path, weights_bytes: int) -> None:
    """Write an artifact whose float32 weights have about `weights_bytes`, without having them in memory."""
    write_artifact(directory, make_artifact())
    block = np.random.default_rng(1).normal(0, 0.05, 1 << 18).astype("<f4")
    num_blocks = max(1, weights_bytes // block.nbytes)
    shape = [num_blocks, len(block)]
    header = json.dumps({"layer": {"dtype": "F32", "shape": shape, "data_offsets": [0, num_blocks * block.nbytes]}})
    padded = header.encode().ljust(-(-len(header) // 8) * 8)
    with (directory / WEIGHTS_FILE).open("wb") as file:
        file.write(len(padded).to_bytes(8, "little") + padded)
        for _ in range(num_blocks):
            file.write(block.tobytes())
