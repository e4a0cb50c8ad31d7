"""Puts together what a training stores: which fact goes into which file is decided here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from ktrdr_core.clock import to_iso, utc_now
from ktrdr_core.config.strategy import DataSplitConfig, StrategyConfig
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.datasets.leakage import LeakageReport
from ktrdr_core.datasets.rows import Rows
from ktrdr_core.domain.result import Evaluation, LeakageVerdict, RowReport, TestMetrics, TrainingMetrics
from ktrdr_core.storage.artifact import ModelArtifact
from ktrdr_core.training.checkpoint_file import locate, read_position
from ktrdr_core.training.environment import describe_environment
from ktrdr_core.training.model_trainer import TrainedModel
from ktrdr_core.training.pipeline import PriceData
from ktrdr_core.versions import own_version


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Where the rows came from and what was done to them."""

    price_data: PriceData
    start_date: date
    end_date: date
    data_mode: str
    shares: DataSplitConfig
    rows: Rows
    split: DataSplit

    @property
    def timeframes(self) -> tuple[str, ...]:
        return next(iter(self.price_data.values())).timeframes

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self.split, name) for name in ("train", "validation", "test")}
        return {
            "symbols": list(self.price_data),
            "timeframes": list(self.timeframes),
            "start_date": self.start_date.isoformat(),
            "end_date": self.end_date.isoformat(),
            "data_split": self.shares.model_dump(),
            "bars": {
                symbol: [
                    {"timeframe": bars.timeframe, "num_bars": len(bars), "sha256": bars.digest()}
                    for bars in (own.base, *own.higher)
                ]
                for symbol, own in self.price_data.items()
            },
            "rows": {name: len(part) for name, part in parts.items()},
            "row_counts": [asdict(counts) for counts in self.rows.counts],
            "purged_rows": self.split.purged_rows,
            "embargoed_rows": self.split.embargoed_rows,
            "horizon_bars": self.split.horizon_bars,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedFrom:
    """The checkpoint that a training went on from.

    Attributes:
        epoch: The last finished epoch in it; 0 within the first.
        sha256: SHA-256 of its bytes, hex.
    """

    epoch: int
    sha256: str

    @classmethod
    def read(cls, path: Path) -> ResumedFrom:
        """Return what the checkpoint at `path`, a file or its directory, is.

        Raises:
            NotFoundError: There is none.
            CorruptDataError: It is no whole checkpoint.
        """
        file = locate(path)
        position = read_position(file)
        with file.open("rb") as content:
            return cls(epoch=position.last_epoch, sha256=hashlib.file_digest(content, "sha256").hexdigest())


def row_report(rows: Rows, split: DataSplit) -> RowReport:
    """Return what became of the bars, over all symbols."""
    return {
        "bars": sum(counts.bars for counts in rows.counts),
        "warm_up_rows": sum(counts.warm_up_bars for counts in rows.counts),
        "window_rows": sum(counts.window_bars for counts in rows.counts),
        "unlabelled_rows": sum(counts.unlabelled_bars for counts in rows.counts),
        "purged_rows": split.purged_rows,
        "embargoed_rows": split.embargoed_rows,
        "training_rows": len(split.train),
        "validation_rows": len(split.validation),
        "test_rows": len(split.test),
    }


def leakage_verdict(reports: Mapping[str, LeakageReport], label_spans: int, split: DataSplit) -> LeakageVerdict:
    """Return what was checked for look-ahead, over all symbols; a violation has ended the training before."""
    return {
        "passed": True,
        "cuts": sum(report.cuts for report in reports.values()),
        "perturbations": sum(report.perturbations for report in reports.values()),
        "label_spans": label_spans,
        "num_features": len(split.columns),
        "horizon_bars": split.horizon_bars,
        "purged_rows": split.purged_rows,
        "embargoed_rows": split.embargoed_rows,
    }


def build_artifact(
    *,
    strategy: StrategyConfig,
    fitted: StrategyConfig,
    training_config: Mapping[str, Any],
    model_config: Mapping[str, Any],
    data: DataFacts,
    trained: TrainedModel,
    test_metrics: TestMetrics,
    evaluation: Evaluation,
    warnings: Sequence[str],
    start_time: datetime,
    resumed_from: ResumedFrom | None = None,
) -> ModelArtifact:
    """Return the artifact of a finished training; what differs between equal executions is in `metadata` alone.

    `fitted` is the strategy with the fuzzy sets that its training part gave it.
    """
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
            "evaluation": dict(evaluation),
            "early_stop_epoch": trained.early_stop_epoch,
            "history": [dict(metrics) for metrics in trained.history],
        },
        features={
            "feature_names": list(split.feature_names),
            "columns": [asdict(column) for column in split.columns],
            "feature_importance": {feature["name"]: feature["mean"] for feature in evaluation["importance"]},
            "scaler": split.scaler.to_dict(),
            "fuzzy_sets": fitted.to_dict()["fuzzy_sets"],
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
            "data_mode": data.data_mode,
            "code_version": own_version(),
            **({} if resumed_from is None else {"resumed_from": asdict(resumed_from)}),
            "total_samples": len(data.rows),
            "training_samples": len(split.train),
            "test_samples": len(split.test),
            "warnings": list(warnings),
            "checkpoints": list(trained.checkpoints),
            "environment": describe_environment(trained.device),
        },
    )
