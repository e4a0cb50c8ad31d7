"""Strategies of junk: a valid one with random values, keys and entries in random places."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.kit.builders import strategy_dict

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


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value below `value`."""
    found: list[tuple[Any, ...]] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


PLACES = places(strategy_dict())
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(["set", "remove", "add", "repeat"]), JUNK, st.text(max_size=10)),
    min_size=1,
    max_size=3,
)


@st.composite
def changed_strategies(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a valid strategy with one to three places changed."""
    raw = strategy_dict()
    for path, kind, value, name in draw(CHANGES):
        place: Any = raw
        for key in path[:-1]:
            if not has(place, key):
                break
            place = place[key]
        else:
            change(place, path[-1], kind, value, name)
    return raw


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
