from __future__ import annotations

from typing import Any

import pytest

from ktrdr_core.config.model_sections import ArchitectureConfig, ModelConfig
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.models.network_spec import (
    BUILT_ACTIVATIONS,
    CLASSIFICATION_ACTIVATIONS,
    MODEL_TYPES,
    REGRESSION_ACTIVATION,
    WINDOW_MODEL_TYPES,
    NetworkSpec,
    check_model_type,
)

MLP: dict[str, Any] = {"type": "mlp", "hidden_layers": [8, 4], "activation": "tanh", "dropout": 0.1}
LSTM: dict[str, Any] = {"type": "lstm", "hidden_layers": [8], "window_bars": 21}
TRANSFORMER: dict[str, Any] = {
    "type": "transformer",
    "hidden_layers": [64, 64],
    "window_bars": 21,
    "d_model": 24,
    "num_heads": 3,
}
EMBEDDED: dict[str, Any] = {**LSTM, "num_symbols": 3, "symbol_embedding_dim": 2}


def literals(field: Any) -> set[str]:
    """Return the words that a field of the grammar takes."""
    return {word for part in (field.annotation, *getattr(field.annotation, "__args__", ())) for word in _words(part)}


def _words(annotation: Any) -> list[str]:
    return [word for word in getattr(annotation, "__args__", ()) if isinstance(word, str)]


@pytest.mark.parametrize("config", [MLP, LSTM, TRANSFORMER, EMBEDDED, {**MLP, "output_format": "regression"}])
def test_spec_reads_back_equal(config: dict[str, Any]) -> None:
    spec = NetworkSpec.from_model_config(config, input_size=9)
    assert NetworkSpec.from_dict(spec.to_dict()) == spec


def test_everything_the_grammar_allows_is_built() -> None:
    assert literals(ModelConfig.model_fields["type"]) == set(MODEL_TYPES)
    assert literals(ArchitectureConfig.model_fields["activation"]) == set(BUILT_ACTIVATIONS)
    assert literals(ArchitectureConfig.model_fields["output_activation"]) == {
        *CLASSIFICATION_ACTIVATIONS,
        REGRESSION_ACTIVATION,
    }


def test_defaults_follow_from_the_type_and_the_output_format() -> None:
    classifier = NetworkSpec.from_model_config({**MLP, "output_activation": None}, input_size=5)
    assert (classifier.output_activation, classifier.num_outputs) == ("softmax", 3)
    assert (classifier.window_bars, classifier.d_model, classifier.num_heads) == (1, 0, 0)
    regression = NetworkSpec.from_model_config({**MLP, "output_format": "regression"}, input_size=5)
    assert (regression.output_activation, regression.num_outputs) == ("linear", 1)
    transformer = NetworkSpec.from_model_config({**TRANSFORMER, "d_model": None, "num_heads": None}, input_size=5)
    assert (transformer.d_model, transformer.num_heads) == (32, 4)


def test_symbols_count_only_where_they_are_embedded() -> None:
    agnostic = NetworkSpec.from_model_config({**LSTM, "num_symbols": 3, "symbol_embedding_dim": 0}, input_size=5)
    assert (agnostic.num_symbols, agnostic.embedded_size) == (0, 5)
    embedded = NetworkSpec.from_model_config(EMBEDDED, input_size=9)
    assert (embedded.num_symbols, embedded.embedded_size) == (3, 8)


def test_a_row_of_a_window_model_has_bars_and_columns() -> None:
    assert NetworkSpec.from_model_config(MLP, input_size=5).row_shape == (5,)
    assert NetworkSpec.from_model_config(LSTM, input_size=5).row_shape == (21, 5)


@pytest.mark.parametrize(("name", "way_out"), [("lsmt", "'lstm'"), ("perceptron", "mlp, lstm")])
def test_unknown_model_type_is_refused_with_a_way_out(name: str, way_out: str) -> None:
    with pytest.raises(InvalidInputError, match=way_out) as raised:
        check_model_type(name)
    assert raised.value.violations[0].field == "model.type"


@pytest.mark.parametrize("key", ["type", "hidden_layers"])
def test_missing_key_is_a_value_error_that_names_it(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        NetworkSpec.from_model_config({name: value for name, value in MLP.items() if name != key}, input_size=5)


@pytest.mark.parametrize(
    ("config", "change", "field", "says"),
    [
        (MLP, {"hidden_layers": [8, 0]}, "model.architecture.hidden_layers[1]", "was 0"),
        (LSTM, {"hidden_layers": []}, "model.architecture.hidden_layers", "an lstm needs at least one"),
        (MLP, {"dropout": 1.0}, "model.architecture.dropout", "was 1.0"),
        (MLP, {"activation": "step"}, "model.architecture.activation", "'step'"),
        (MLP, {"output_activation": "linear"}, "model.architecture.output_activation", "softmax or sigmoid"),
        (
            MLP,
            {"output_activation": "softmax", "output_format": "regression"},
            "model.architecture.output_activation",
            "use linear",
        ),
        (MLP, {"window_bars": 2}, "model.features.lookback_periods", "lags are columns"),
        (LSTM, {"window_bars": 1}, "model.features.lookback_periods", "at least 1"),
        (LSTM, {"d_model": 8}, "model.architecture.d_model", "not to an lstm"),
        (MLP, {"num_heads": 2}, "model.architecture.num_heads", "not to an mlp"),
        (TRANSFORMER, {"num_heads": 5}, "model.architecture.num_heads", "multiple"),
        (TRANSFORMER, {"d_model": 1, "num_heads": 1}, "model.architecture.d_model", "at least 2, was 1"),
        (TRANSFORMER, {"num_heads": 0}, "model.architecture.num_heads", "at least 1, was 0"),
        (EMBEDDED, {"num_symbols": 0}, "model.symbol_embedding_dim", "symbol-agnostic"),
        (EMBEDDED, {"symbol_embedding_dim": -1}, "model.symbol_embedding_dim", "was -1"),
        (EMBEDDED, {"num_symbols": 9}, "model.input_size", "no feature"),
    ],
    ids=str,
)
def test_value_that_breaks_a_rule_is_refused_with_its_path(
    config: dict[str, Any], change: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says) as raised:
        NetworkSpec.from_model_config({**config, **change}, input_size=9)
    assert [violation.field for violation in raised.value.violations] == [field]


@pytest.mark.parametrize(
    "change", [{"hidden_layers": 8}, {"hidden_layers": ["wide"]}, {"dropout": "much"}, {"window_bars": [1]}], ids=str
)
def test_value_of_the_wrong_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="wrong kind"):
        NetworkSpec.from_model_config({**MLP, **change}, input_size=5)


def test_network_without_features_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least 1 feature"):
        NetworkSpec.from_model_config(MLP, input_size=0)


@pytest.mark.parametrize("change", [{"num_outputs": 2}, {"num_outputs": 0}])
def test_number_of_outputs_is_that_of_the_classes_or_one(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="3 outputs, or 1"):
        NetworkSpec(type="mlp", input_size=2, hidden_layers=(3,), **change)


@pytest.mark.parametrize("raw", [{"type": "mlp"}, {**MLP, "input_size": 3, "units": 4}], ids=str)
def test_description_that_is_none_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="not the description of a network"):
        NetworkSpec.from_dict(raw)


def test_window_models_are_those_of_the_grammar() -> None:
    for kind in MODEL_TYPES:
        raw: dict[str, Any] = {"type": kind, "features": {"lookback_periods": 4}}
        assert (ModelConfig.model_validate(raw).window_bars > 1) == (kind in WINDOW_MODEL_TYPES)
