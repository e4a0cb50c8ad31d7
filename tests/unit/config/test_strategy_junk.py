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
from tests.kit.builders import strategy_dict, strategy_text

LIMIT_S = 2.0
TEXT = strategy_text()
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**200), 10**400, 0, -1, 1e308]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "../../x", "rsi", "a.b", "1h", "2017-01-01", "\x00", "é" * 200, "nan", "close", "1" * 5000]),
    st.dates(),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def check(text: str) -> StrategyConfig | None:
    """Return the strategy of a text, None where it is refused as it should be."""
    started = time.monotonic()
    strategy: StrategyConfig | None = None
    refusal: InvalidStrategyError | None = None
    try:
        strategy = parse_strategy(text)
    except InvalidStrategyError as error:
        refusal = error
    assert time.monotonic() - started < LIMIT_S
    if refusal is not None:
        assert refusal.message
        assert refusal.violations
        assert all(violation.field and violation.description for violation in refusal.violations)
    return strategy


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value below `value`."""
    found: list[tuple[Any, ...]] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


PLACES = places(strategy_dict())


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


@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(PLACES), st.sampled_from(["set", "remove", "add", "repeat"]), JUNK, st.text(max_size=10)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_strategy_with_some_places_changed(changes: list[tuple[tuple[Any, ...], str, Any, str]]) -> None:
    raw = strategy_dict()
    for path, kind, value, name in changes:
        place: Any = raw
        for key in path[:-1]:
            if not has(place, key):
                break
            place = place[key]
        else:
            change(place, path[-1], kind, value, name)
    check(yaml.dump(raw, sort_keys=False))


def has(place: Any, key: Any) -> bool:
    is_index = isinstance(place, list) and isinstance(key, int) and key < len(place)
    return is_index or (isinstance(place, dict) and key in place)


def change(place: Any, key: Any, kind: str, value: Any, name: str) -> None:
    if not has(place, key):
        return
    if kind == "set":
        place[key] = value
    elif kind == "remove":
        del place[key]
    elif isinstance(place, dict):
        place[name] = value if kind == "add" else place[key]
    else:
        place.append(value if kind == "add" else place[key])


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
