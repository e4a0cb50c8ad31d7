"""From protobuf messages to the client's dataclasses of models; the one place that knows both."""

from __future__ import annotations

from ktrdr.models.v1 import lineage_pb2, model_pb2, model_service_pb2
from ktrdr.training.v1 import (
    data_mode_pb2,
    training_result_pb2,
)

from ktrdr_client.model_types import FileCheck, Garbage, Model, ModelFile, ModelPage, ModelVerification
from ktrdr_core.domain.result import TestMetrics, TrainingMetrics
from ktrdr_core.domain.spec import DataMode
from ktrdr_core.storage.stored_model import Lineage, ParentCheckpoint, SeriesDigest
from ktrdr_core.wire.evaluation import evaluation_from_proto
from ktrdr_core.wire.from_proto import (
    time_from_proto,
)

# Unset, and one of a newer backend, is "".
_DATA_MODE = {data_mode_pb2.DataMode.Value(f"DATA_MODE_{mode.name}"): mode.value for mode in DataMode}


def model(message: model_pb2.Model) -> Model:
    """Return the stored version."""
    return Model(
        name=message.name,
        model_id=message.model_id,
        strategy_name=message.strategy_name,
        symbols=tuple(message.symbols),
        timeframes=tuple(message.timeframes),
        version=message.version,
        path=message.path,
        create_time=time_from_proto(message.create_time) if message.HasField("create_time") else None,
        training_id=message.training_id,
        attempt=message.attempt,
        artifact_digest=message.artifact_digest,
        files=tuple(
            ModelFile(name=each.name, size_bytes=each.size_bytes, sha256=each.sha256.hex()) for each in message.files
        ),
        training_metrics=training_metrics(message.training_metrics),
        test_metrics=test_metrics(message.test_metrics),
        feature_importance={each.name: each.importance for each in message.features},
        aliases=tuple(message.aliases),
        evaluation=evaluation_from_proto(message.evaluation) if message.HasField("evaluation") else None,
        lineage=_lineage(message.lineage),
        size_bytes=message.size_bytes,
        is_kept_aside=message.is_kept_aside,
    )


def model_page(message: model_service_pb2.ListModelsResponse) -> ModelPage:
    """Return the page."""
    return ModelPage(models=tuple(model(each) for each in message.models), next_page_token=message.next_page_token)


def model_verification(message: model_service_pb2.VerifyModelResponse) -> ModelVerification:
    """Return what was found of the files of a model."""
    return ModelVerification(
        model=model(message.model),
        checks=tuple(
            FileCheck(name=each.name, is_sound=each.is_sound, problem=each.problem) for each in message.checks
        ),
        is_sound=message.is_sound,
    )


def garbage(message: model_service_pb2.Garbage) -> Garbage:
    """Return what was removed, or would be."""
    return Garbage(name=message.name, size_bytes=message.size_bytes, cause=message.cause)


def _lineage(message: lineage_pb2.Lineage) -> Lineage:
    parent = message.parent_checkpoint
    return Lineage(
        strategy_digest=message.strategy_digest,
        series=tuple(
            SeriesDigest(symbol=each.symbol, timeframe=each.timeframe, num_bars=each.num_bars, digest=each.digest)
            for each in message.series
        ),
        start_date=message.start_date,
        end_date=message.end_date,
        data_mode=_DATA_MODE.get(message.data_mode, ""),
        code_version=message.code_version,
        seed=message.seed if message.HasField("seed") else None,
        parent_checkpoint=(
            ParentCheckpoint(epoch=parent.epoch, sha256=parent.sha256)
            if message.HasField("parent_checkpoint")
            else None
        ),
    )


def training_metrics(message: training_result_pb2.TrainingMetrics) -> TrainingMetrics:
    """Return how the training went."""
    return TrainingMetrics(
        epochs=message.epochs,
        best_epoch=message.best_epoch,
        train_loss=message.train_loss,
        train_accuracy=message.train_accuracy,
        val_loss=message.val_loss,
        val_accuracy=message.val_accuracy,
    )


def test_metrics(message: training_result_pb2.TestMetrics) -> TestMetrics:
    """Return what the test part says."""
    return TestMetrics(
        loss=message.loss,
        accuracy=message.accuracy,
        precision=message.precision,
        recall=message.recall,
        f1_score=message.f1_score,
        majority_baseline_accuracy=message.majority_baseline_accuracy,
    )
