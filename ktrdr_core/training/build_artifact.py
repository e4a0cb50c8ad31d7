"""Puts together what a training stores: which fact goes into which file is decided here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import uuid4

from ktrdr_core.clock import to_iso, utc_now
from ktrdr_core.config.strategy import DataSplitConfig, StrategyConfig
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.datasets.leakage import LeakageReport
from ktrdr_core.datasets.rows import Rows
from ktrdr_core.domain.result import TestMetrics, TrainingMetrics
from ktrdr_core.storage.artifact import ModelArtifact
from ktrdr_core.training.environment import describe_environment
from ktrdr_core.training.model_trainer import TrainedModel
from ktrdr_core.training.pipeline import PriceData


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Where the rows came from and what was done to them."""

    price_data: PriceData
    timeframes: tuple[str, ...]
    start_date: date
    end_date: date
    data_mode: str
    shares: DataSplitConfig
    leakage: Mapping[str, LeakageReport]
    rows: Rows
    split: DataSplit

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self.split, name) for name in ("train", "validation", "test")}
        return {
            "symbols": list(self.price_data),
            "timeframes": list(self.timeframes),
            "start_date": self.start_date.isoformat(),
            "end_date": self.end_date.isoformat(),
            "data_mode": self.data_mode,
            "data_split": self.shares.model_dump(),
            "bars": {
                symbol: {"num_bars": len(bars), "sha256": bars.digest()} for symbol, bars in self.price_data.items()
            },
            "rows": {name: len(part) for name, part in parts.items()},
            "warm_up_rows_dropped": self.rows.warm_up_rows,
            "unlabelled_rows_dropped": self.rows.unlabelled_rows,
            "purged_rows": self.split.purged_rows,
            "horizon_bars": self.split.horizon_bars,
            "leakage_check": {symbol: report.to_dict() for symbol, report in self.leakage.items()},
        }


def build_artifact(
    *,
    strategy: StrategyConfig,
    training_config: Mapping[str, Any],
    model_config: Mapping[str, Any],
    data: DataFacts,
    trained: TrainedModel,
    test_metrics: TestMetrics,
    importance: Mapping[str, float],
    warnings: Sequence[str],
    start_time: datetime,
) -> ModelArtifact:
    """Return the artifact of a finished training; what differs between equal executions is in `metadata` alone."""
    best = trained.history[trained.best_epoch - 1]
    training_metrics: TrainingMetrics = {
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "train_loss": best["train_loss"],
        "train_accuracy": best["train_accuracy"],
        "val_loss": best["val_loss"],
        "val_accuracy": best["val_accuracy"],
    }
    strategy_config = strategy.to_dict()
    split, end_time = data.split, utc_now()
    return ModelArtifact(
        tensors={name: tensor.cpu().numpy() for name, tensor in trained.model.state_dict().items()},
        config={
            "strategy_config": strategy_config,
            "training_config": dict(training_config),
            "model_config": {**model_config, "network": trained.model.spec.to_dict()},
            "data_config": data.to_dict(),
            "strategy_digest": hashlib.sha256(json.dumps(strategy_config).encode()).hexdigest(),
        },
        metrics={
            "training_metrics": training_metrics,
            "test_metrics": dict(test_metrics),
            "history": [dict(metrics) for metrics in trained.history],
        },
        features={
            "feature_names": list(split.feature_names),
            "feature_importance": dict(importance),
            "scaler": split.scaler.to_dict(),
        },
        metadata={
            "model_id": str(uuid4()),
            "start_time": to_iso(start_time),
            "end_time": to_iso(end_time),
            "duration_seconds": (end_time - start_time).total_seconds(),
            "device": trained.device.device,
            "symbols": list(split.symbols),
            "timeframes": list(data.timeframes),
            "start_date": data.start_date.isoformat(),
            "end_date": data.end_date.isoformat(),
            "total_samples": len(data.rows),
            "training_samples": len(split.train),
            "test_samples": len(split.test),
            "warnings": list(warnings),
            "environment": describe_environment(trained.device),
        },
    )
