from __future__ import annotations

from typing import Any

import pytest

from ktrdr_core.errors import InvalidInputError, UnsupportedError
from ktrdr_core.models.network_spec import NOT_BUILT_MODEL_TYPES, NetworkSpec, check_model_type

CONFIG: dict[str, Any] = {"type": "mlp", "hidden_layers": [8, 4], "activation": "tanh", "dropout": 0.1}


def test_spec_reads_back_equal() -> None:
    spec = NetworkSpec.from_model_config(CONFIG, input_size=5)
    assert NetworkSpec.from_dict(spec.to_dict()) == spec
    assert spec.hidden_layers == (8, 4)
    assert spec.num_classes == 3


@pytest.mark.parametrize("name", NOT_BUILT_MODEL_TYPES)
def test_model_type_of_the_grammar_that_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        check_model_type(name)


def test_unknown_model_type_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="perceptronn"):
        check_model_type("perceptronn")


@pytest.mark.parametrize("key", ["type", "hidden_layers"])
def test_missing_key_is_a_value_error_that_names_it(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        NetworkSpec.from_model_config({name: value for name, value in CONFIG.items() if name != key}, input_size=5)


@pytest.mark.parametrize(
    "change",
    [{"hidden_layers": [0]}, {"dropout": 1.0}, {"activation": "step"}, {"output_activation": "sigmoid"}],
    ids=str,
)
def test_value_that_breaks_a_rule_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        NetworkSpec.from_model_config({**CONFIG, **change}, input_size=5)
