"""The names that others call, and the rows that leave each step."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.training.pipeline import TrainingPipeline
from tests.kit.builders import make_bars, strategy
from tests.kit.splits import make_split
from tests.kit.training import Trained

STEPS = [
    "load_price_data",
    "calculate_indicators",
    "generate_fuzzy_memberships",
    "engineer_features",
    "generate_labels",
    "combine_multi_symbol_data",
    "split_data",
    "create_model",
    "train_model",
    "evaluate_model",
    "calculate_feature_importance",
    "save_model",
]


@pytest.mark.parametrize("step", STEPS)
def test_step_is_a_plain_function_and_only_training_takes_callbacks(step: str) -> None:
    method = getattr(TrainingPipeline, step)
    assert not inspect.iscoroutinefunction(method)
    has_callbacks = {"progress_callback", "cancellation_token"} <= set(inspect.signature(method).parameters)
    assert has_callbacks is (step == "train_model")


def test_train_model_takes_the_arguments_of_the_contract_in_order() -> None:
    names = list(inspect.signature(TrainingPipeline.train_model).parameters)
    assert names[:7] == [
        "self",
        "model",
        "train_data",
        "val_data",
        "training_config",
        "progress_callback",
        "cancellation_token",
    ]


def test_rows_of_several_symbols_are_never_paired_across_them(bar_store: DirectoryBarStore) -> None:
    pipeline, config = TrainingPipeline(bar_store), strategy()
    price_data = {
        "AAA": SymbolBars(make_bars(400, 1, symbol="AAA")),
        "BBB": SymbolBars(make_bars(500, 2, symbol="BBB")),
    }
    values = pipeline.calculate_indicators(price_data, config)
    memberships = pipeline.generate_fuzzy_memberships(values, price_data, config)
    features = pipeline.engineer_features(memberships, values, price_data)
    labels = pipeline.generate_labels(price_data, config)
    rows = pipeline.combine_multi_symbol_data(features, labels, price_data)
    for symbol_id, symbol in enumerate(price_data):
        own = rows.symbol_ids == symbol_id
        places = np.searchsorted(price_data[symbol].base.times, rows.times[own])
        np.testing.assert_array_equal(rows.matrix[rows.positions[own]], features[symbol].X[places])
        np.testing.assert_array_equal(rows.y[own], labels[symbol].y[places])
    assert set(rows.symbol_ids.tolist()) == {0, 1}


def test_steps_of_training_fit_together_without_an_executor(trained: Trained) -> None:
    pipeline = TrainingPipeline(trained.bar_store)
    split, price_data, config = make_split(trained)
    model = pipeline.create_model({"type": "mlp", "hidden_layers": [4]}, input_size=len(split.columns), seed=3)
    settings = {"epochs": 2, "batch_size": 64, "learning_rate": 0.01, "enable_gpu": False}
    done = pipeline.train_model(model, split.train, split.validation, settings)
    metrics, evaluation = pipeline.evaluate_model(done, split, price_data, config, seed=1)
    assert 0 < metrics["accuracy"] < 1
    assert sum(map(sum, evaluation["confusion_matrix"])) == len(split.test)
    importance = pipeline.calculate_feature_importance(done, split, config, seed=1)
    assert [feature["name"] for feature in importance.features] == list(split.feature_names)
