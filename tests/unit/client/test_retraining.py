"""The request that makes a model again, and why the second one differs."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from ktrdr_client.model_comparison import compare_models
from ktrdr_client.model_types import Model
from ktrdr_client.retraining import causes, is_deletable, retraining_spec

from ktrdr_core.config.loader import parse_strategy
from ktrdr_core.domain.spec import DataMode, ExecutionMode
from ktrdr_core.errors import CorruptDataError
from tests.kit.read_models import BARS, make_read_model

ORIGINAL = make_read_model()
MADE = Model(
    name="small/EURUSD_1h_v2",
    model_id="00000000-0000-4000-8000-000000000002",
    strategy_name="small",
    symbols=("EURUSD",),
    timeframes=("1h",),
    version=2,
    path="/models/small/EURUSD_1h_v2",
    create_time=None,
    training_id="training-2",
    attempt=1,
    artifact_digest="d1",
    files=(),
    training_metrics=ORIGINAL.result["training_metrics"],
    test_metrics=ORIGINAL.result["test_metrics"],
    feature_importance={},
    aliases=("latest",),
)


def test_spec_is_that_of_the_training() -> None:
    asked: dict[str, Any] = {
        "config.training_config.seed": 7,
        "config.training_config.enable_gpu": False,
        "config.training_config.memory_fraction": 0.5,
        "config.training_config.mixed_precision": True,
        "metadata.data_mode": "csv",
    }
    spec = retraining_spec(make_read_model(**asked), ExecutionMode.HOST)
    assert (spec.start_date, spec.end_date) == (date(2017, 1, 1), date(2017, 12, 29))
    assert (spec.seed, spec.data_mode, spec.execution_mode) == (7, DataMode.CSV, ExecutionMode.HOST)
    assert (spec.enable_gpu, spec.memory_fraction, spec.mixed_precision) == (False, 0.5, True)
    # What the strategy says already is not asked for a second time.
    assert (spec.symbols, spec.timeframes, spec.epochs, spec.validation_split) == ((), (), None, None)


@pytest.mark.parametrize("learning_rate", [1e-05, 2.5e-07, 0.01])
def test_strategy_is_read_back_as_it_was_trained(learning_rate: float) -> None:
    stored: dict[str, Any] = {
        "config.strategy_config.model.training.learning_rate": learning_rate,
        "config.strategy_config.description": "yes: no, 'quoted' \u2013 and #more",
        "config.strategy_config.version": "1.0",
    }
    model = make_read_model(**stored)
    strategy = parse_strategy(retraining_spec(model, None).strategy_yaml)
    # As text, for the order of fuzzy sets is the order of features.
    assert json.dumps(strategy.to_dict()) == json.dumps(model.config["strategy_config"])
    assert strategy.model.training.learning_rate == learning_rate


def test_model_of_an_earlier_version_was_trained_on_the_bars_of_its_machine() -> None:
    model = make_read_model()
    del model.result["metadata"]["data_mode"]  # type: ignore[typeddict-item]
    assert retraining_spec(model, None).data_mode is DataMode.LOCAL


@pytest.mark.parametrize(
    "changes",
    [
        {"config.training_config": {}},
        {"config.data_config.start_date": "yesterday"},
        {"config.data_config": {}},
        {"metadata.data_mode": "moon"},
        {"config.training_config.seed": None},
    ],
)
def test_model_that_does_not_tell_how_it_was_trained_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptDataError, match=r"small/EURUSD_1h_v1 does not tell how it was trained"):
        retraining_spec(make_read_model(**changes), None)


def test_only_the_copy_that_this_training_published_may_be_deleted() -> None:
    assert is_deletable(ORIGINAL, MADE, "training-2")
    assert not is_deletable(ORIGINAL, MADE, "training-3")
    assert not is_deletable(ORIGINAL, replace(MADE, name=ORIGINAL.name), "training-2")
    assert not is_deletable(ORIGINAL, replace(MADE, model_id=ORIGINAL.result["model_id"]), "training-2")
    assert not is_deletable(ORIGINAL, replace(MADE, version=0), "training-2")


def causes_of(**changes: Any) -> list[str]:
    return causes(compare_models(ORIGINAL, make_read_model(digest="d2", **changes)))


def test_changed_bars_are_the_first_cause() -> None:
    other = {"EURUSD": [{**BARS["EURUSD"][0], "sha256": "cc", "num_bars": 6226}, BARS["EURUSD"][1]]}
    found = causes_of(
        weights="w2",
        **{
            "config.data_config.bars": other,
            "config.data_config.rows.train": 101,
            "metadata.environment.cpu_capability": "AVX512",
        },
    )
    assert found == [
        "EURUSD 1h: same range, other bars (6,225 bars in the first, 6,226 bars in the second)",
        "lineage: environment.cpu_capability was 'AVX2', is 'AVX512'",
    ]


def test_rows_are_a_cause_where_the_bars_are_the_same() -> None:
    assert causes_of(weights="w2", **{"config.data_config.rows.train": 101}) == ["data: rows.train was 100, is 101"]


def test_equal_weights_are_said() -> None:
    found = causes_of(**{"config.training_config.num_gpus": 1})
    assert found[0] == "configuration: training.num_gpus was 0, is 1"
    assert found[1].startswith("the weights are the same, bit for bit")


def test_difference_without_a_cause_is_called_what_it_is() -> None:
    (only,) = causes_of(weights="w2")
    assert "the weights differ all the same" in only


def test_long_lists_of_causes_are_cut_short() -> None:
    found = causes_of(weights="w2", **{f"config.training_config.x{index}": index for index in range(15)})
    assert len(found) == 11
    assert found[-1] == "configuration: and 5 more (ktrdr models compare tells all)"
