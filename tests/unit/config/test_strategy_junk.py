"""Laws of reading strategies: whatever the text is, it is a strategy or it is refused with a place and a reason."""

from __future__ import annotations

import time
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.loader import parse_strategy
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.errors import InvalidStrategyError
from tests.kit.builders import strategy_text
from tests.kit.strategy_junk import JUNK, changed_strategies

LIMIT_S = 2.0
TEXT = strategy_text()


def check(text: str) -> StrategyConfig | None:
    """Return the strategy of a text, None where it is refused as it should be."""
    started = time.process_time()
    strategy: StrategyConfig | None = None
    refusal: InvalidStrategyError | None = None
    try:
        strategy = parse_strategy(text)
    except InvalidStrategyError as error:
        refusal = error
    assert time.process_time() - started < LIMIT_S
    if refusal is not None:
        assert refusal.message
        assert refusal.violations
        assert all(violation.field and violation.description for violation in refusal.violations)
    return strategy


@given(st.text(max_size=400))
def test_any_text(text: str) -> None:
    check(text)


@given(st.text(alphabet="{}[]:,-&*!|>'\"%@`#?\n \tabc019", max_size=300))
def test_text_of_the_signs_of_yaml(text: str) -> None:
    check(text)


@given(start=st.integers(0, len(TEXT)), length=st.integers(0, 60), filler=st.text(max_size=30))
def test_strategy_with_a_stretch_replaced(start: int, length: int, filler: str) -> None:
    check(TEXT[:start] + filler + TEXT[start + length :])


@given(JUNK)
def test_any_value(value: Any) -> None:
    check(yaml.dump(value, allow_unicode=True))


@given(changed_strategies())
def test_strategy_with_some_places_changed(raw: dict[str, Any]) -> None:
    check(yaml.dump(raw, sort_keys=False))


def test_unchanged_strategy_is_a_strategy() -> None:
    assert check(TEXT) is not None


def test_deep_and_wide_texts_are_refused_soon() -> None:
    for text in (
        "[" * 100_000,
        "{a: " * 50_000,
        "- " * 100_000,
        "? " * 50_000,
        "a: &a [" + "*a," * 10_000 + "]",
        "a: !!python/object/apply:os.system [x]",
        "\n".join(f"k{index}: {index}" for index in range(30_000)),
        "x: " + "9" * 900_000,
        '"' + "\\" * 900_000,
    ):
        assert check(text) is None
