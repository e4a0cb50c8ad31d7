from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import DataSplitConfig, ValidationConfig
from ktrdr_core.data.bars import IntArray
from ktrdr_core.datasets.folds import build_fold, build_folds, check_fold_sizes, plan_folds
from ktrdr_core.datasets.label_spans import check_label_spans
from ktrdr_core.datasets.split import MIN_PART_ROWS, split_rows
from ktrdr_core.errors import TooFewBarsError
from ktrdr_core.features.scaler import Scaler
from tests.kit.rows import COLUMNS, planted_rows

SHARES = DataSplitConfig(train=0.7, validation=0.15, test=0.15)
WALK = ValidationConfig(method="walk_forward", folds=4)
ROLLING = ValidationConfig(method="walk_forward", folds=4, window="rolling")
K_FOLD = ValidationConfig(method="purged_k_fold", folds=5, embargo_bars=6)


@st.composite
def series(draw: st.DrawFn) -> tuple[IntArray, IntArray]:
    """Bars of rows with gaps, and ends of labels that may overtake one another."""
    steps = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20)), max_size=150))
    bars = np.cumsum(np.array([gap for gap, _ in steps], dtype=np.int64))
    return bars, bars + np.array([span for _, span in steps], dtype=np.int64)


all_shares = st.builds(
    lambda train, embargo: DataSplitConfig(train=train, validation=0.8 - train, test=0.2, embargo_bars=embargo),
    st.floats(0.1, 0.7),
    st.sampled_from([0, 0, 7]),
)
all_methods = st.builds(
    lambda method, window, folds, embargo: ValidationConfig(
        method=method,
        folds=folds,
        embargo_bars=embargo if method == "purged_k_fold" else 0,
        window=window if method == "walk_forward" else None,
    ),
    st.sampled_from(["walk_forward", "purged_k_fold"]),
    st.sampled_from(["expanding", "rolling", None]),
    st.integers(2, 8),
    st.integers(0, 15),
)

Fold = tuple[list[int], list[int], list[int]]


def slow_folds(bars: list[int], ends: list[int], shares: DataSplitConfig, settings: ValidationConfig) -> list[Fold]:
    """The rules at the top of the module, one row and one question at a time."""
    test = round(len(bars) * (shares.train + shares.validation))
    used = [row for row in range(test) if test == len(bars) or ends[row] < bars[test]]
    is_walk = settings.method == "walk_forward"
    num_stretches = settings.folds + int(is_walk)
    bounds = [round(len(used) * i / num_stretches) for i in range(num_stretches + 1)]
    folds = []
    for stretch in range(int(is_walk), num_stretches):
        judged = used[bounds[stretch] : bounds[stretch + 1]]
        first_bar = bars[judged[0]] if judged else -1
        has_past = (bounds[1] if settings.window == "rolling" else bounds[stretch]) > 0
        if has_past and judged:
            judged = [row for row in judged if bars[row] >= first_bar + shares.embargo_bars]
        last_seen = max((ends[row] for row in judged), default=None)
        pool = []
        for place, row in enumerate(used):
            if place < bounds[stretch]:
                is_recent = place >= bounds[stretch] - bounds[1]
                if settings.window == "rolling" and not is_recent:
                    continue
                if first_bar < 0 or ends[row] < first_bar:
                    pool.append(row)
            elif place < bounds[stretch + 1] or is_walk:
                continue
            elif last_seen is None or bars[row] > last_seen + settings.embargo_bars:
                pool.append(row)
        num_validation = round(len(pool) * shares.validation / (shares.train + shares.validation))
        train, validation = pool[: len(pool) - num_validation], pool[len(pool) - num_validation :]
        if validation:
            start = bars[validation[0]]
            train = [row for row in train if ends[row] < start]
            validation = [row for row in validation if bars[row] >= start + shares.embargo_bars]
        folds.append((train, validation, judged))
    return folds


@given(series=series(), shares=all_shares, settings=all_methods)
def test_folds_are_those_of_a_slow_loop(
    series: tuple[IntArray, IntArray], shares: DataSplitConfig, settings: ValidationConfig
) -> None:
    found = [tuple(part.tolist() for part in fold.parts) for fold in plan_folds(*series, shares, settings)]
    assert found == slow_folds(series[0].tolist(), series[1].tolist(), shares, settings)
    assert len(found) == settings.folds


@given(series=series(), shares=all_shares, settings=all_methods)
def test_no_label_of_a_fold_spans_a_row_of_another_part(
    series: tuple[IntArray, IntArray], shares: DataSplitConfig, settings: ValidationConfig
) -> None:
    bars, ends = series
    test = round(len(bars) * (shares.train + shares.validation))
    for fold in plan_folds(bars, ends, shares, settings):
        for part in fold.parts:
            for other in fold.parts:
                if other is not part:
                    assert not np.any((bars[part][:, None] <= bars[other]) & (bars[other] <= ends[part][:, None]))
            if test < len(bars):
                assert (ends[part] < bars[test]).all()
        assert fold.purged_rows >= 0
        assert fold.embargoed_rows >= 0


@given(series=series(), shares=all_shares, folds=st.integers(2, 8))
def test_stretches_of_a_k_fold_are_all_rows_before_the_test_part(
    series: tuple[IntArray, IntArray], shares: DataSplitConfig, folds: int
) -> None:
    bars, ends = series
    no_embargo = shares.model_copy(update={"embargo_bars": 0})
    settings = ValidationConfig(method="purged_k_fold", folds=folds)
    judged = np.concatenate([fold.test for fold in plan_folds(bars, ends, no_embargo, settings)])
    test = round(len(bars) * (shares.train + shares.validation))
    expected = [row for row in range(test) if test == len(bars) or ends[row] < bars[test]]
    assert judged.tolist() == expected


def test_walk_forward_trains_on_the_past_of_each_stretch() -> None:
    rows = np.arange(100, dtype=np.int64)
    folds = list(plan_folds(rows, rows + 1, SHARES, WALK))  # rows 0 to 83 see nothing of the test part
    assert [(fold.test[0], fold.test[-1]) for fold in folds] == [(17, 33), (34, 49), (50, 66), (67, 83)]
    assert [(fold.train[0], fold.validation[-1]) for fold in folds] == [(0, 15), (0, 32), (0, 48), (0, 65)]
    rolling = list(plan_folds(rows, rows + 1, SHARES, ROLLING))
    assert [fold.train[0] for fold in rolling] == [0, 17, 33, 50]
    assert [fold.test.tolist() for fold in rolling] == [fold.test.tolist() for fold in folds]


def test_k_fold_trains_on_both_sides_with_an_embargo_on_the_right() -> None:
    rows = np.arange(100, dtype=np.int64)
    shares = DataSplitConfig(train=0.6, validation=0.2, test=0.2)
    settings = ValidationConfig(method="purged_k_fold", folds=4, embargo_bars=3)
    _, fold, *_ = plan_folds(rows, rows + 2, shares, settings)  # rows 0 to 77 see nothing of the test part, from 80 on
    assert (fold.test[0], fold.test[-1]) == (20, 38)
    used = np.concatenate((fold.train, fold.validation))
    assert used[used < 20].tolist() == list(range(18))
    assert used[used > 38].min() == 38 + 2 + 3 + 1
    assert (fold.validation[0], fold.validation[-1]) == (65, 77)
    # 18, 19 see the stretch; it sees 39, 40; 41 to 43 are the embargo; 63, 64 see the validation part
    assert (fold.purged_rows, fold.embargoed_rows) == (6, 3)


def test_k_fold_purges_by_the_label_of_the_stretch_that_saw_furthest() -> None:
    rows = np.arange(100, dtype=np.int64)
    ends = rows + 1
    ends[30] = 60  # most labels of the stretch, and its last, ended long before
    settings = ValidationConfig(method="purged_k_fold", folds=2)
    fold = next(plan_folds(rows, ends, SHARES, settings))
    assert fold.test[-1] == 41
    assert fold.train[0] == 61


def split_of(method: ValidationConfig, **keys: Any) -> Any:
    rows, labels = planted_rows([700, 500], horizon_bars=4, window_bars=3)
    return rows, labels, build_folds(rows, columns=COLUMNS, shares=SHARES, validation=method, **keys)


@pytest.mark.parametrize("method", [WALK, ROLLING, K_FOLD], ids=["walk", "rolling", "k-fold"])
@pytest.mark.parametrize("scaling", ["standard", "none"])
def test_rows_of_a_fold_keep_features_and_labels_of_their_bar(method: ValidationConfig, scaling: str) -> None:
    rows, labels, folds = split_of(method, scaling=scaling)
    main = split_rows(rows, columns=COLUMNS, shares=SHARES, scaling="none")
    first_test_bars = [main.test.targets[main.test.symbol_ids == symbol].min() for symbol in (0, 1)]
    for fold in folds:
        assert check_label_spans(fold, labels) == len(fold.train) + len(fold.validation) + len(fold.test)
        for part in (fold.train, fold.validation, fold.test):
            bars = np.rint(part.X[:, :, 1] * fold.scaler.scale[1] + fold.scaler.centre[1])
            np.testing.assert_array_equal(bars[:, -1] + 10_000 * part.symbol_ids, part.targets)
            assert (np.diff(bars, axis=1) == 1).all()
            assert (part.X[:, :, 0] == part.symbol_ids[:, None]).all()
            for symbol in (0, 1):
                assert part.targets[part.symbol_ids == symbol].max() < first_test_bars[symbol]


@pytest.mark.parametrize("method", [WALK, ROLLING, K_FOLD], ids=["walk", "rolling", "k-fold"])
def test_each_fold_is_scaled_by_its_own_training_rows(method: ValidationConfig) -> None:
    rows, _, folds = split_of(method)
    plain = build_folds(rows, columns=COLUMNS, shares=SHARES, validation=method, scaling="none")
    scalers = []
    for fold, unscaled in zip(folds, plain, strict=True):
        assert unscaled.train.matrix is rows.matrix
        expected = Scaler.fit(rows.matrix[unscaled.train.rows], "standard", identity=[0])
        assert fold.scaler == expected
        np.testing.assert_array_equal(fold.test.X, expected.transform(unscaled.test.X.reshape(-1, 3)).reshape(-1, 3, 3))
        scalers.append(fold.scaler)
    assert all(one != other for one, other in itertools.pairwise(scalers))


def test_a_fold_alone_is_that_of_all() -> None:
    rows, _, folds = split_of(K_FOLD)
    for index, fold in enumerate(folds):
        alone = build_fold(rows, index, columns=COLUMNS, shares=SHARES, validation=K_FOLD)
        assert alone.series == fold.series
        for name in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(alone, name).X, getattr(fold, name).X)


def test_a_rolling_fold_holds_the_bars_it_uses_and_no_others() -> None:
    _, _, folds = split_of(ROLLING)
    for fold in folds:
        used = np.concatenate([part.rows for part in (fold.train, fold.validation, fold.test)])
        assert used.min() - 2 == 0
        assert used.max() + 1 == len(fold.train.matrix) == fold.series[-1].stop
        assert len(fold.train.matrix) < 0.5 * 1_200


def test_repeated_seeds_are_the_main_split_itself() -> None:
    seeds = ValidationConfig(method="repeated_seeds", folds=3)
    rows, _, folds = split_of(seeds)
    main = split_rows(rows, columns=COLUMNS, shares=SHARES)
    assert len(folds) == 3
    assert all(fold is folds[0] for fold in folds)
    np.testing.assert_array_equal(folds[0].train.X, main.train.X)
    given_main = build_folds(rows, columns=COLUMNS, shares=SHARES, validation=seeds, main=main)
    assert all(fold is main for fold in given_main)


def test_a_fold_with_too_few_rows_is_refused_by_number_and_symbol() -> None:
    rows, _ = planted_rows([700, 150])
    pattern = r"^fold 1 of 4 \(walk_forward\): S1 has 150 bars .* each part needs 10; .*, or fewer folds$"
    with pytest.raises(TooFewBarsError, match=pattern):
        build_folds(rows, columns=COLUMNS, shares=SHARES, validation=WALK)
    with pytest.raises(TooFewBarsError, match=r"^fold 1 of 5 \(purged_k_fold\): EURUSD 1h has 90 bars"):
        check_fold_sizes(90, 60, SHARES, K_FOLD, 5, subject="EURUSD 1h")


@given(num_rows=st.integers(0, 900), shares=all_shares, settings=all_methods)
def test_the_check_before_a_training_agrees_with_the_folds(
    num_rows: int, shares: DataSplitConfig, settings: ValidationConfig
) -> None:
    rows = np.arange(num_rows, dtype=np.int64)
    folds = list(plan_folds(rows, rows + 5, shares, settings))
    if min(len(part) for fold in folds for part in fold.parts) >= MIN_PART_ROWS:
        check_fold_sizes(num_rows, num_rows, shares, settings, 5, subject="X")
    else:
        with pytest.raises(TooFewBarsError, match=r"^fold \d of"):
            check_fold_sizes(num_rows, num_rows, shares, settings, 5, subject="X")
