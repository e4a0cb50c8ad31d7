"""Models of a store and the questions about them, to their messages and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktrdr.models.v1 import lineage_pb2, model_order_pb2, model_pb2, model_service_pb2
from ktrdr.training.v1 import data_mode_pb2, training_result_pb2

from ktrdr_core.domain.spec import DataMode
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.storage.model_query import ModelOrder, ModelQuery
from ktrdr_core.wire.evaluation import evaluation_to_proto
from ktrdr_core.wire.from_proto import time_from_proto
from ktrdr_core.wire.to_proto import (
    data_mode_to_proto,
    test_metrics_to_proto,
    time_to_proto,
    training_metrics_to_proto,
)

if TYPE_CHECKING:
    from ktrdr_core.storage.stored_model import Lineage, ModelSummary, StoredModel


def model_to_proto(model: StoredModel) -> model_pb2.Model:
    """Return the message of a stored version with all that is known of it."""
    message = model_summary_to_proto(model)
    message.evaluation.CopyFrom(evaluation_to_proto(model.result["evaluation"]))
    return message


def model_summary_to_proto(model: ModelSummary) -> model_pb2.Model:
    """Return the message of a stored version without its evaluation, which is by far its largest part."""
    return model_pb2.Model(
        name=model.name,
        model_id=model.model_id,
        strategy_name=model.strategy_name,
        symbols=model.symbols,
        timeframes=model.timeframes,
        version=model.version,
        path=str(model.path),
        create_time=time_to_proto(model.create_time),
        training_id=model.training_id,
        attempt=model.attempt,
        artifact_digest=model.digest,
        files=[
            model_pb2.ModelFile(name=file.name, size_bytes=file.size_bytes, sha256=bytes.fromhex(file.sha256))
            for file in model.files
        ],
        training_metrics=training_metrics_to_proto(model.training_metrics),
        test_metrics=test_metrics_to_proto(model.test_metrics),
        features=[
            training_result_pb2.FeatureImportance(name=name, importance=importance)
            for name, importance in model.feature_importance.items()
        ],
        aliases=model.aliases,
        lineage=lineage_to_proto(model.lineage),
        size_bytes=model.size_bytes,
        is_kept_aside=model.is_kept_aside,
    )


def lineage_to_proto(lineage: Lineage) -> lineage_pb2.Lineage:
    """Return the message of a lineage; a data mode that this version does not know stays unset."""
    parent = lineage.parent_checkpoint
    return lineage_pb2.Lineage(
        strategy_digest=lineage.strategy_digest,
        series=[
            lineage_pb2.SeriesDigest(
                symbol=each.symbol, timeframe=each.timeframe, num_bars=each.num_bars, digest=each.digest
            )
            for each in lineage.series
        ],
        start_date=lineage.start_date,
        end_date=lineage.end_date,
        data_mode=(
            data_mode_to_proto(DataMode(lineage.data_mode))
            if lineage.data_mode in list(DataMode)
            else data_mode_pb2.DATA_MODE_UNSPECIFIED
        ),
        code_version=lineage.code_version,
        seed=lineage.seed,
        parent_checkpoint=(
            None if parent is None else lineage_pb2.ParentCheckpoint(epoch=parent.epoch, sha256=parent.sha256)
        ),
    )


def model_query_to_proto(
    query: ModelQuery, *, page_size: int = 0, page_token: str = ""
) -> model_service_pb2.ListModelsRequest:
    """Return the request of a page; `page_size` 0 leaves it to the service."""
    return model_service_pb2.ListModelsRequest(
        page_size=page_size,
        page_token=page_token,
        strategy_name=query.strategy_name,
        symbol=query.symbol,
        timeframe=query.timeframe,
        training_id=query.training_id,
        alias=query.alias,
        series_digest=query.series_digest,
        start_time=None if query.start_time is None else time_to_proto(query.start_time),
        end_time=None if query.end_time is None else time_to_proto(query.end_time),
        order=model_order_pb2.ModelOrder.Value(f"MODEL_ORDER_{query.order.name}"),
        kept_aside=query.kept_aside,
    )


def model_query_from_proto(message: model_service_pb2.ListModelsRequest) -> ModelQuery:
    """Return what a request asks for; its page is left out.

    Raises:
        InvalidInputError: A time or the order is none.
    """
    return ModelQuery(
        strategy_name=message.strategy_name,
        symbol=message.symbol,
        timeframe=message.timeframe,
        training_id=message.training_id,
        alias=message.alias,
        series_digest=message.series_digest,
        start_time=time_from_proto(message.start_time, field="start_time") if message.HasField("start_time") else None,
        end_time=time_from_proto(message.end_time, field="end_time") if message.HasField("end_time") else None,
        order=_order_from_proto(message.order),
        kept_aside=message.kept_aside,
    )


def _order_from_proto(value: model_order_pb2.ModelOrder.ValueType) -> ModelOrder:
    if value == model_order_pb2.MODEL_ORDER_UNSPECIFIED:
        return ModelOrder.NEWEST
    if value not in model_order_pb2.ModelOrder.values():
        known = ", ".join(model_order_pb2.ModelOrder.keys()[1:])
        raise InvalidInputError(f"order must be one of {known}, was {value}", field="order")
    return ModelOrder[model_order_pb2.ModelOrder.Name(value).removeprefix("MODEL_ORDER_")]
