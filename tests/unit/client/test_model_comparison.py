"""What differs between two models is told once, and nothing that is equal is told."""

from __future__ import annotations

from typing import Any

import pytest
from ktrdr_client.model_comparison import (
    ModelComparison,
    SeriesVerdict,
    ValueDifference,
    compare_models,
    flatten,
)

from tests.kit.read_models import BARS, make_read_model

OTHER_BARS = {"EURUSD": [{**BARS["EURUSD"][0], "sha256": "cc" * 32}, BARS["EURUSD"][1]]}


def against(**changes: Any) -> ModelComparison:
    """Compare a model with one that was changed."""
    return compare_models(make_read_model(), make_read_model(name="small/EURUSD_1h_v2", **changes))


def as_dict(differences: tuple[ValueDifference, ...]) -> dict[str, tuple[Any, Any]]:
    return {own.path: (own.first, own.second) for own in differences}


def test_equal_models_differ_in_nothing() -> None:
    comparison = against()
    assert comparison.is_identical
    assert comparison.has_same_weights
    assert comparison.has_same_rows
    assert {metric.difference for metric in comparison.metrics} == {0}
    assert [own.verdict for own in comparison.series] == [SeriesVerdict.SAME, SeriesVerdict.SAME]
    assert (comparison.config, comparison.data, comparison.lineage) == ((), (), ())
    assert (comparison.features_added, comparison.features_removed, comparison.has_other_order) == ((), (), False)


def test_metrics_stand_side_by_side_with_the_second_less_the_first() -> None:
    comparison = against(**{"test_metrics.accuracy": 0.625, "evaluation.calibration.brier_score": 0.5})
    found = {(metric.part, metric.name): metric for metric in comparison.metrics}
    accuracy = found["test", "accuracy"]
    assert (accuracy.first, accuracy.second, accuracy.difference) == (0.5, 0.625, 0.125)
    assert found["calibration", "brier_score"].second == 0.5
    assert ("test", "majority_baseline_accuracy") in found
    assert ("validation", "val_loss") in found
    assert not any(part == "regression" for part, _ in found)  # neither is one


def test_metric_that_one_model_lacks_has_no_difference() -> None:
    comparison = against(**{"evaluation.regression": {"r_squared": 0.25}})
    (r_squared,) = (metric for metric in comparison.metrics if metric.part == "regression")
    assert (r_squared.first, r_squared.second, r_squared.difference) == (None, 0.25, None)


def test_same_range_with_other_bars_is_its_own_verdict() -> None:
    comparison = against(**{"config.data_config.bars": OTHER_BARS})
    hours, four_hours = comparison.series
    assert (hours.timeframe, hours.verdict) == ("1h", SeriesVerdict.OTHER_BARS)
    assert (hours.first_digest, hours.second_digest) == ("aa" * 32, "cc" * 32)
    assert four_hours.verdict is SeriesVerdict.SAME
    assert not comparison.has_same_bars
    assert not comparison.has_same_rows
    assert comparison.data == ()


def test_other_range_is_told_with_its_dates() -> None:
    comparison = against(**{"config.data_config.bars": OTHER_BARS, "config.data_config.end_date": "2017-06-30"})
    assert comparison.series[0].verdict is SeriesVerdict.OTHER_RANGE
    assert as_dict(comparison.data) == {"end_date": ("2017-12-29", "2017-06-30")}


def test_other_dates_over_the_same_bars_are_the_same_bars() -> None:
    comparison = against(**{"config.data_config.end_date": "2017-12-31"})
    assert comparison.has_same_bars
    assert not comparison.has_same_rows


def test_series_of_one_model_alone_are_told() -> None:
    moved = {"USDJPY": BARS["EURUSD"][:1]}
    comparison = against(**{"config.data_config.bars": moved})
    assert [(own.symbol, own.timeframe, own.verdict) for own in comparison.series] == [
        ("EURUSD", "1h", SeriesVerdict.ONLY_FIRST),
        ("EURUSD", "4h", SeriesVerdict.ONLY_FIRST),
        ("USDJPY", "1h", SeriesVerdict.ONLY_SECOND),
    ]
    assert comparison.series[2].first_num_bars is None


def test_configuration_is_told_by_path_and_what_a_training_copies_of_it_once() -> None:
    comparison = against(
        **{
            "config.strategy_config.indicators.0.period": 21,
            "config.strategy_config.model.training.epochs": 9,
            "config.training_config.epochs": 9,
            "config.training_config.mixed_precision": True,
            "config.model_config.network.hidden_layers": [4],
        }
    )
    assert as_dict(comparison.config) == {
        "strategy.indicators[0].period": (14, 21),
        "strategy.model.training.epochs": (3, 9),
        "training.mixed_precision": (False, True),
        "model.network.hidden_layers": ([], None),
        "model.network.hidden_layers[0]": (None, 4),
    }


def test_shares_of_the_parts_are_told_with_the_strategy_and_the_rows_are_others_all_the_same() -> None:
    changes = {"config.strategy_config.training.data_split.test": 0.2, "config.data_config.data_split.test": 0.2}
    comparison = against(**changes)
    assert as_dict(comparison.config) == {"strategy.training.data_split.test": (0.15, 0.2)}
    assert comparison.data == ()
    assert not comparison.has_same_rows


def test_setting_that_differs_otherwise_than_the_strategy_is_told() -> None:
    comparison = against(
        **{"config.strategy_config.model.training.epochs": 9, "config.training_config.epochs": 4},
    )
    assert as_dict(comparison.config)["training.epochs"] == (3, 4)


def test_seed_version_device_and_data_mode_are_lineage() -> None:
    comparison = against(
        **{
            "config.training_config.seed": 7,
            "metadata.code_version": "0.2.0",
            "metadata.data_mode": "local",
            "metadata.device": "cuda:0",
            "metadata.environment.device": "cuda:0",
            "metadata.environment.cpu_capability": "AVX512",
            "metadata.environment.versions.ktrdr": "0.2.0",
            "metadata.environment.versions.torch": "2.14.0",
            "metadata.resumed_from": {"epoch": 2, "sha256": "ff"},
            "metadata.duration_seconds": 99.0,
        }
    )
    assert as_dict(comparison.lineage) == {
        "seed": (42, 7),
        "code_version": ("0.1.0", "0.2.0"),
        "data_mode": ("backend", "local"),
        "device": ("cpu", "cuda:0"),
        "environment.cpu_capability": ("AVX2", "AVX512"),
        "environment.versions.torch": ("2.13.0", "2.14.0"),
        "resumed_from.epoch": (None, 2),
        "resumed_from.sha256": (None, "ff"),
    }
    assert comparison.config == ()


def test_data_mode_of_an_earlier_version_is_found_where_it_was() -> None:
    first = make_read_model(**{"config.data_config.data_mode": "local"})
    del first.result["metadata"]["data_mode"]  # type: ignore[typeddict-item]
    comparison = compare_models(first, make_read_model())
    assert as_dict(comparison.lineage) == {"data_mode": ("local", "backend")}
    assert comparison.data == ()


@pytest.mark.parametrize(
    ("names", "added", "removed", "other_order"),
    [
        (["rsi_14.low", "macd.up"], ("macd.up",), ("rsi_14.high",), False),
        (["rsi_14.high", "rsi_14.low"], (), (), True),
        (["rsi_14.low", "rsi_14.high", "a", "b"], ("a", "b"), (), False),
    ],
)
def test_features_are_compared_by_name_and_order(
    names: list[str], added: tuple[str, ...], removed: tuple[str, ...], other_order: bool
) -> None:
    comparison = against(feature_names=names)
    assert (comparison.features_added, comparison.features_removed) == (added, removed)
    assert comparison.has_other_order is other_order


def test_digests_decide_what_is_the_same() -> None:
    comparison = against(digest="d2")
    assert (comparison.is_identical, comparison.has_same_weights) == (False, True)
    assert not against(weights="w2").has_same_weights


def test_one_and_true_differ_and_one_and_one_point_zero_do_not() -> None:
    comparison = against(**{"config.training_config.enable_gpu": 1, "config.training_config.epochs": 3.0})
    assert as_dict(comparison.config) == {"training.enable_gpu": (True, 1)}


def test_value_that_is_none_is_as_good_as_absent() -> None:
    assert against(**{"config.training_config.early_stopping": None}).config == ()


def test_flatten_names_each_leaf() -> None:
    assert flatten({"a": [{"b": 1}, []], "c": {}, "d": {"e.f": None}}) == {
        "a[0].b": 1,
        "a[1]": [],
        "c": {},
        "d.e.f": None,
    }
    assert flatten(3, "x") == {"x": 3}
