from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ktrdr_core.config.loader import (
    MAX_STRATEGY_BYTES,
    load_strategy,
    parse_strategy,
    strategy_digest,
    strategy_from_dict,
)
from ktrdr_core.errors import InvalidInputError, InvalidStrategyError, StrategyNotFoundError
from tests.kit.builders import REPOSITORY, strategy_dict, strategy_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = (
    "name", "version", "training_data", "training_data.symbols", "training_data.symbols.mode", "indicators",
    "indicators.0", "indicators.0.name", "indicators.0.period", "indicators.0.feature_id", "fuzzy_sets",
    "fuzzy_sets.rsi", "fuzzy_sets.rsi.oversold", "fuzzy_sets.rsi.oversold.parameters", "model",
    "model.architecture.hidden_layers", "model.training", "decisions.filters", "deployment",
    "deployment.target_symbols", "training.labels", "training.data_split",
)  # fmt: skip


def test_shipped_strategy_is_valid_and_reads_back_equal() -> None:
    strategy = load_strategy(REPOSITORY / "strategies" / "neuro_mean_reversion.yaml")
    assert strategy.name == "neuro_mean_reversion"
    assert strategy_from_dict(strategy.to_dict()) == strategy


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(StrategyNotFoundError, match=r"no strategy file .*x\.yaml"):
        load_strategy(tmp_path / "x.yaml")


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(InvalidStrategyError, match=r"UTF-8 text; byte 6 is not \(x\.yaml\)"):
        load_strategy(path)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(strategy_text(**{"model.training.epochs": 0}))
    with pytest.raises(
        InvalidStrategyError, match=r"epochs must be at least 1, was 0 \(mine.yaml, model.training.epochs\)"
    ):
        load_strategy(path)


@pytest.mark.parametrize(
    ("text", "kind"), [("", "empty"), ("just words", "one value"), ("- a\n- b\n", "a list"), ("3", "one value")]
)
def test_text_that_is_no_mapping_is_refused(text: str, kind: str) -> None:
    with pytest.raises(InvalidStrategyError, match=f"must be a mapping that begins with name:, was {kind} "):
        parse_strategy(text)


def test_malformed_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(InvalidStrategyError, match=r"no valid YAML: .*line 3"):
        parse_strategy("name: x\nmodel: {type: [mlp\n")


def test_repeated_key_is_refused() -> None:
    with pytest.raises(InvalidStrategyError, match="key 'name' appears twice; remove one, line"):
        parse_strategy(strategy_text() + "name: other\n")


def test_key_that_yaml_reads_as_something_else_is_refused() -> None:
    with pytest.raises(InvalidStrategyError, match="key False is no text; put it in quotes"):
        parse_strategy("no: {a: 1}\n")


def test_alias_bomb_is_refused_before_it_grows() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [*{p}, *{p}, *{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(InvalidStrategyError, match=r"^a strategy may not use YAML aliases .* out \(strategy\)$"):
        parse_strategy(bomb)


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "{b: " * 1_000, "- " * 50_000])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(InvalidStrategyError, match="nests deeper"):
        parse_strategy(text)


def test_too_many_values_and_too_many_bytes_are_refused() -> None:
    with pytest.raises(InvalidStrategyError, match="may have 20000 values"):
        parse_strategy("x: [" + "1," * 30_000 + "]")
    with pytest.raises(InvalidStrategyError, match="may have 1048576 bytes"):
        parse_strategy("x: '" + "é" * (MAX_STRATEGY_BYTES // 2) + "'")


def test_python_objects_are_not_built() -> None:
    with pytest.raises(InvalidStrategyError, match=r"may not use YAML tags \(tag:yaml.org,2002:python/object/apply"):
        parse_strategy("name: !!python/object/apply:os.system ['true']\n")


@pytest.mark.parametrize(
    "value", ["9" * 5_000, "2017-99-99", "0b", "!!int ''", "!!float ''", "!!timestamp x", "!!binary é"]
)
def test_impossible_scalars_are_refused(value: str) -> None:
    with pytest.raises(InvalidStrategyError):
        parse_strategy(f"name: {value}\n")


def test_digest_is_of_the_text() -> None:
    assert strategy_digest("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@given(st.text(max_size=60))
@example("\x00")
@example("a: \ud800")
@example("? [a]\n: b")
@example("{? {a: b}: c}")
@example("a: !!set {x, y}")
@example("a: !!omap [x: 1]")
@example("<<: {a: b}")
@example("!!map [a]")
@example("'[': 1")
@example("'[key]': 1")
@example("'': 1")
@example("%YAML 9.9\n---\na: b")
def test_junk_text_is_refused_clearly(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_strategy(text)
    assert "\n" not in str(caught.value)


@given(place=st.sampled_from(PLACES), value=JSON.filter(lambda value: value is not None))
def test_junk_in_one_place_is_refused_clearly_or_accepted(place: str, value: object) -> None:
    raw = strategy_dict(**{place: value})
    try:
        strategy = strategy_from_dict(raw)
    except InvalidStrategyError as error:
        refusal = error
    else:
        assert strategy_from_dict(strategy.to_dict()) == strategy
        return
    assert refusal.violations
    assert all(violation.description for violation in refusal.violations)
