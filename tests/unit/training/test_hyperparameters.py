from __future__ import annotations

import pytest

from ktrdr_core.errors import InvalidInputError, UnsupportedError
from ktrdr_core.training.hyperparameters import REQUIRED_KEYS, Hyperparameters

CONFIG = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01}


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_missing_key_is_a_value_error_that_names_it(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Hyperparameters.from_training_config({name: value for name, value in CONFIG.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("learning_rate", float("nan"))],
)
def test_value_out_of_range_is_refused(key: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=key):
        Hyperparameters.from_training_config({**CONFIG, key: value})


def test_optimizer_that_is_not_built_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="rmsprop"):
        Hyperparameters.from_training_config({**CONFIG, "optimizer": "rmsprop"})


def test_keys_of_others_are_left_alone() -> None:
    settings = Hyperparameters.from_training_config({**CONFIG, "data_mode": "csv", "memory_fraction": 0.5})
    assert (settings.epochs, settings.memory_fraction, settings.seed) == (2, 0.5, 42)
