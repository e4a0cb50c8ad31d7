"""The names that others call, and the rows that leave each step."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.evaluation.forward import PaddedRows, compute_logits
from ktrdr_core.training.pipeline import TrainingPipeline
from tests.kit.builders import make_bars, strategy
from tests.kit.training import Trained, make_part

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
    price_data = {"AAA": make_bars(400, 1, symbol="AAA"), "BBB": make_bars(500, 2, symbol="BBB")}
    values = pipeline.calculate_indicators(price_data, config.indicators)
    memberships = pipeline.generate_fuzzy_memberships(values, config.fuzzy_sets)
    features = pipeline.engineer_features(memberships, price_data, config.model.features)
    labels = pipeline.generate_labels(price_data, config.training.labels)
    rows = pipeline.combine_multi_symbol_data(features, labels, price_data)
    for symbol_id, symbol in enumerate(price_data):
        own = rows.symbol_ids == symbol_id
        places = np.searchsorted(price_data[symbol].times, rows.times[own])
        np.testing.assert_array_equal(rows.X[own], features[symbol].X[places])
        np.testing.assert_array_equal(rows.y[own], labels[symbol].y[places])
    assert set(rows.symbol_ids.tolist()) == {0, 1}


def test_steps_of_training_fit_together_without_an_executor(trained: Trained) -> None:
    pipeline = TrainingPipeline(trained.bar_store)
    part: DatasetPart = make_part(120, 1)
    model = pipeline.create_model({"type": "mlp", "hidden_layers": [4]}, input_size=6, seed=3)
    settings = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "enable_gpu": False}
    done = pipeline.train_model(model, part, make_part(40, 2), settings)
    metrics = pipeline.evaluate_model(done, make_part(50, 3))
    assert 0 <= metrics["accuracy"] <= 1
    names = [f"f{index}" for index in range(6)]
    assert set(pipeline.calculate_feature_importance(done, make_part(50, 3), names, seed=1)) == set(names)
    assert compute_logits(done.model, PaddedRows(part.X, "cpu")).shape == (120, 3)
