from __future__ import annotations

import json
from typing import Any

import pytest

from ktrdr_core.config.model_sections import OptimisationConfig
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.training.hyperparameters import REQUIRED_KEYS, Hyperparameters

CONFIG: dict[str, Any] = {"epochs": 20, "batch_size": 32, "learning_rate": 0.01}
REGRESSION: dict[str, Any] = {"output_format": "regression", "buy_threshold": 0.001, "sell_threshold": 0.002}


def parse(**values: Any) -> Hyperparameters:
    return Hyperparameters.from_training_config({**CONFIG, **values})


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_missing_key_is_a_value_error_that_names_it(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Hyperparameters.from_training_config({name: value for name, value in CONFIG.items() if name != key})


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "momentum"),
        ({"momentum": 0.9}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"gradient_clip_norm": 0.0}, "gradient_clip_norm"),
        ({"memory_fraction": 1.5}, "memory_fraction"),
        ({"gpu_memory_fraction": 0.0}, "memory_fraction"),
        ({"schedule": {"type": "step"}}, "schedule"),
        ({"schedule": {"type": "exponential", "factor": 0.0}}, "schedule.factor"),
        ({"schedule": {"warm_up_epochs": 20}}, "schedule.warm_up_epochs"),
        ({"early_stopping": {"metric": "val_luck"}}, "early_stopping.metric"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience"),
        ({"checkpoint_every_epochs": 0}, "checkpoint_every_epochs"),
        ({"class_weights": "heavy"}, "class_weights"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"num_gpus": -1}, "num_gpus"),
        ({"num_symbols": 0}, "num_symbols"),
        ({"sampling": "random"}, "sampling"),
        ({"output_format": "guess"}, "output_format"),
        ({"loss": "mse"}, "loss"),
        ({"loss": "huber"}, "loss"),
        ({"loss": "focal", "output_activation": "sigmoid"}, "loss"),
        ({"output_activation": "linear"}, "output_activation"),
        ({**REGRESSION, "output_activation": "softmax"}, "output_activation"),
        ({**REGRESSION, "loss": "cross_entropy"}, "loss"),
        ({**REGRESSION, "loss": "focal"}, "loss"),
        ({**REGRESSION, "class_weights": "balanced"}, "class_weights"),
        ({**REGRESSION, "buy_threshold": None}, "buy_threshold"),
        ({**REGRESSION, "sell_threshold": 0.0}, "sell_threshold"),
    ],
    ids=str,
)
def test_what_breaks_a_rule_is_refused_at_its_path(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(**values)
    assert caught.value.violations[0].field == f"training_config.{field}"
    assert field.rpartition(".")[2] in caught.value.message


def test_construction_by_hand_obeys_the_same_rules() -> None:
    with pytest.raises(InvalidInputError, match="epochs must be at least 1, was 0"):
        Hyperparameters(epochs=0, batch_size=1, learning_rate=0.1)
    with pytest.raises(InvalidInputError, match="momentum belongs to sgd"):
        Hyperparameters(epochs=1, batch_size=1, learning_rate=0.1, momentum=0.5)


def test_keys_of_others_are_left_alone() -> None:
    settings = parse(data_mode="csv", memory_fraction=0.5)
    assert (settings.epochs, settings.memory_fraction, settings.seed) == (20, 0.5, 42)


def test_every_setting_of_the_strategy_file_arrives() -> None:
    config = OptimisationConfig.model_validate(
        {
            "learning_rate": 0.02,
            "batch_size": 7,
            "epochs": 9,
            "optimizer": "sgd",
            "weight_decay": 0.1,
            "momentum": 0.9,
            "schedule": {"type": "step", "factor": 0.5, "every_epochs": 3, "warm_up_epochs": 2},
            "gradient_clip_norm": 1.5,
            "early_stopping": {"metric": "val_mcc", "patience": 4, "min_delta": 0.01},
            "loss": "focal",
            "focal_gamma": 1.0,
            "class_weights": "balanced",
            "mixed_precision": True,
            "gpu_memory_fraction": 0.25,
            "checkpoint_every_epochs": 5,
        }
    )
    settings = Hyperparameters.from_training_config(config.model_dump())
    for name in OptimisationConfig.model_fields:
        own = "memory_fraction" if name == "gpu_memory_fraction" else name
        assert getattr(settings, own) == getattr(config, name), name
        assert getattr(settings, own) != OptimisationConfig.model_fields[name].default, name


def test_memory_fraction_of_the_request_comes_before_that_of_the_strategy() -> None:
    assert parse(gpu_memory_fraction=0.25, memory_fraction=0.5).memory_fraction == 0.5
    assert parse(gpu_memory_fraction=0.25, memory_fraction=None).memory_fraction == 0.25


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, "cross_entropy"),
        ({"loss": "focal"}, "focal"),
        ({"output_activation": "sigmoid"}, "one_vs_rest"),
        ({"output_activation": "sigmoid", "loss": "cross_entropy"}, "one_vs_rest"),
        (REGRESSION, "mse"),
        ({**REGRESSION, "loss": "huber"}, "huber"),
    ],
)
def test_loss_follows_from_format_activation_and_choice(values: dict[str, Any], kind: str) -> None:
    assert parse(**values).loss_kind == kind


def test_plain_values_read_back_equal() -> None:
    settings = parse(
        schedule={"type": "cosine", "factor": 0.1}, early_stopping={"patience": 3}, output_activation="sigmoid"
    )
    assert Hyperparameters.from_training_config(json.loads(json.dumps(settings.to_dict()))) == settings
