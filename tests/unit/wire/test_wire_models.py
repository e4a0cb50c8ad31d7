"""Models and questions about them survive the wire."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ktrdr.models.v1 import model_order_pb2, model_service_pb2
from ktrdr_client import decode_models

from ktrdr_core.domain.spec import DataMode
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.storage.artifact_files import ArtifactFile
from ktrdr_core.storage.model_query import ModelOrder, ModelQuery
from ktrdr_core.storage.stored_model import Lineage, ModelSummary, ParentCheckpoint, SeriesDigest
from ktrdr_core.wire.models import model_query_from_proto, model_query_to_proto, model_summary_to_proto

TEXT = st.text(max_size=12)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  made aware
LINEAGES = st.builds(
    Lineage,
    strategy_digest=TEXT,
    series=st.lists(
        st.builds(SeriesDigest, symbol=TEXT, timeframe=TEXT, num_bars=st.integers(0, 2**40), digest=TEXT), max_size=3
    ).map(tuple),
    start_date=TEXT,
    end_date=TEXT,
    data_mode=st.sampled_from(["", *DataMode]),
    code_version=TEXT,
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    parent_checkpoint=st.none() | st.builds(ParentCheckpoint, epoch=st.integers(0, 2**31 - 1), sha256=TEXT),
)


def a_summary(lineage: Lineage) -> ModelSummary:
    return ModelSummary(
        name="s/EURUSD_1h_v3",
        path=Path("/models/s/EURUSD_1h_v3"),
        model_id="id",
        strategy_name="s",
        symbols=("EURUSD", "GBPUSD"),
        timeframes=("1h", "4h"),
        version=3,
        create_time=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        training_id="t",
        attempt=2,
        digest="ab" * 32,
        files=(ArtifactFile("model.safetensors", 100, "cd" * 32), ArtifactFile("config.json", 7, "ef" * 32)),
        training_metrics={
            "epochs": 9,
            "best_epoch": 4,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "val_loss": 1.5,
            "val_accuracy": 0.25,
        },
        test_metrics={
            "loss": 2.0,
            "accuracy": 0.75,
            "precision": 0.5,
            "recall": 0.25,
            "f1_score": 0.125,
            "majority_baseline_accuracy": 0.625,
        },
        feature_importance={"z": 0.5, "a": 0.25},
        lineage=lineage,
        aliases=("latest", "champion"),
        is_kept_aside=True,
    )


@given(LINEAGES)
def test_client_reads_every_field_of_a_summary(lineage: Lineage) -> None:
    summary = a_summary(lineage)
    read = decode_models.model(model_summary_to_proto(summary))
    for field in fields(summary):
        name = {"digest": "artifact_digest"}.get(field.name, field.name)
        ours, theirs = getattr(summary, field.name), getattr(read, name)
        if field.name == "lineage":
            ours, theirs = asdict(ours), asdict(theirs)
        elif field.name == "files":
            ours, theirs = (
                [(f.name, f.size_bytes, f.sha256) for f in ours],
                [(f.name, f.size_bytes, f.sha256) for f in theirs],
            )
        elif field.name == "path":
            ours = str(ours)
        assert ours == theirs, name
    assert list(read.feature_importance) == ["z", "a"], "in model order"
    assert read.size_bytes == summary.size_bytes == 107
    assert read.evaluation is None


def test_data_mode_that_this_version_does_not_know_is_empty() -> None:
    assert decode_models.model(model_summary_to_proto(a_summary(Lineage(data_mode="tape")))).lineage.data_mode == ""


@given(
    st.builds(
        ModelQuery,
        strategy_name=TEXT,
        symbol=TEXT,
        timeframe=TEXT,
        training_id=TEXT,
        alias=TEXT,
        series_digest=TEXT,
        start_time=st.none() | TIMES,
        end_time=st.none() | TIMES,
        order=st.sampled_from(ModelOrder),
        kept_aside=st.booleans(),
    )
)
def test_query_reads_back_equal(query: ModelQuery) -> None:
    assert model_query_from_proto(model_query_to_proto(query, page_size=3, page_token="t")) == query  # noqa: S106


def test_query_of_an_empty_request_is_for_all_newest_first() -> None:
    assert model_query_from_proto(model_service_pb2.ListModelsRequest()) == ModelQuery()


def test_unknown_order_is_refused_with_those_there_are() -> None:
    request = model_service_pb2.ListModelsRequest(order=99)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"order must be one of MODEL_ORDER_NEWEST, .* was 99"):
        model_query_from_proto(request)


def test_every_order_has_a_message() -> None:
    assert {f"MODEL_ORDER_{order.name}" for order in ModelOrder} == set(model_order_pb2.ModelOrder.keys()[1:])
