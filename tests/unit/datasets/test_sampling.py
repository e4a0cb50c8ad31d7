from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.datasets.sampling import IntArray, Permutation, epoch_order

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)


def seeded(seed: int) -> Permutation:
    rng = np.random.default_rng(seed)
    return lambda n: rng.permutation(n).astype(np.int64)


def ids_of(counts: list[int], seed: int | None = None) -> IntArray:
    """Return that many rows of each symbol, one symbol after another, or mixed."""
    ids = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    return ids if seed is None else np.random.default_rng(seed).permutation(ids)


@given(counts=COUNTS, seed=st.integers(0, 99))
def test_balanced_shows_each_symbol_equally_often(counts: list[int], seed: int) -> None:
    ids = ids_of(counts, seed)
    order = epoch_order(ids, "balanced", seeded(seed))
    assert order.shape == ids.shape
    assert order.dtype == np.int64
    shown = Counter(ids[order].tolist())
    assert set(shown) == {symbol for symbol, count in enumerate(counts) if count}
    assert max(shown.values()) - min(shown.values()) <= 1


@given(counts=COUNTS, seed=st.integers(0, 99))
def test_rows_of_a_symbol_are_shown_equally_often_but_for_one(counts: list[int], seed: int) -> None:
    ids = ids_of(counts)
    times_shown = np.bincount(epoch_order(ids, "balanced", seeded(seed)), minlength=len(ids))
    for symbol in set(ids.tolist()):
        own = times_shown[ids == symbol]
        assert own.max() - own.min() <= 1


@given(counts=COUNTS, seed=st.integers(0, 99))
def test_proportional_shows_every_row_once(counts: list[int], seed: int) -> None:
    order = epoch_order(ids_of(counts), "proportional", seeded(seed))
    np.testing.assert_array_equal(order, seeded(seed)(sum(counts)))


@pytest.mark.parametrize("sampling", ["balanced", "proportional"])
def test_one_symbol_is_one_permutation_of_all_rows(sampling: str) -> None:
    asked: list[int] = []

    def draw(n: int) -> IntArray:
        asked.append(n)
        return np.arange(n, dtype=np.int64)[::-1]

    order = epoch_order(np.full(7, 3, dtype=np.int64), sampling, draw)  # type: ignore[arg-type]
    assert order.tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert asked == [7]


def test_no_rows_are_no_order() -> None:
    assert len(epoch_order(np.empty(0, dtype=np.int64), "balanced", seeded(0))) == 0


def test_permutations_are_asked_for_in_a_fixed_order() -> None:
    asked: list[int] = []

    def draw(n: int) -> IntArray:
        asked.append(n)
        return np.arange(n, dtype=np.int64)

    order = epoch_order(ids_of([2, 9, 4]), "balanced", draw)
    assert asked == [2, 2, 2, 9, 4, 4, 15]
    assert order.tolist() == [0, 1, 0, 1, 0, 2, 3, 4, 5, 6, 11, 12, 13, 14, 11]


def test_symbols_are_mixed_and_epochs_differ() -> None:
    ids, draw = ids_of([50, 500]), seeded(1)
    first, second = epoch_order(ids, "balanced", draw), epoch_order(ids, "balanced", draw)
    assert not np.array_equal(first, second)
    assert set(first[ids[first] == 1].tolist()) != set(second[ids[second] == 1].tolist())
    assert 0.4 < ids[first][:200].mean() < 0.6
    np.testing.assert_array_equal(first, epoch_order(ids, "balanced", seeded(1)))
