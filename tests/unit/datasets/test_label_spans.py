from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ktrdr_core.config.strategy import DataSplitConfig
from ktrdr_core.datasets.dataset import DatasetPart, DataSplit
from ktrdr_core.datasets.label_spans import check_label_spans
from ktrdr_core.datasets.split import split_rows
from ktrdr_core.errors import LeakageError
from ktrdr_core.labels.labels import Labels
from tests.kit.rows import COLUMNS, planted_rows

SHARES = DataSplitConfig(train=0.7, validation=0.15, test=0.15)

Case = tuple[DataSplit, list[Labels]]


def good_case(window_bars: int = 3) -> Case:
    rows, labels = planted_rows([200, 160], gap_share=0.0, window_bars=window_bars)
    return split_rows(rows, columns=COLUMNS, shares=SHARES), labels


def with_row(part: DatasetPart, place: int, like: DatasetPart, row: int) -> DatasetPart:
    """Return `part` with a row of another part instead of its own at `place`."""
    arrays = {}
    for name in ("rows", "y", "times", "symbol_ids", "targets"):
        values = getattr(part, name).copy()
        values[place] = getattr(like, name)[row]
        arrays[name] = values
    return replace(part, **arrays)


def test_a_right_split_passes_and_every_row_is_counted() -> None:
    split, labels = good_case()
    assert check_label_spans(split, labels) == len(split.train) + len(split.validation) + len(split.test)


def unpurged() -> Case:
    """Every label ends ten bars ahead, though the split was made for labels that mostly ended before."""
    split, labels = good_case()
    return split, [replace(own, ends=np.where(own.ends < 0, -1, np.arange(len(own)) + 10)) for own in labels]


def training_right_after_the_judged_stretch() -> Case:
    """What a k-fold without its purge on the right would do."""
    split, labels = unpurged()
    return replace(split, train=split.test, test=split.train), labels


def row_in_two_parts() -> Case:
    split, labels = good_case()
    return replace(split, train=with_row(split.train, -1, split.test, -1)), labels


def row_of_the_future() -> Case:
    split, labels = good_case()
    test = split.test
    moved = with_row(split.train, 0, test, 5)
    kept = np.arange(len(test)) != 5
    arrays = {name: getattr(test, name)[kept] for name in ("rows", "y", "times", "symbol_ids", "targets")}
    return replace(split, train=moved, test=replace(test, **arrays)), labels


def labels_of_the_first_symbol() -> Case:
    """The mistake of a predecessor: features of many symbols paired with the labels of the first."""
    split, labels = good_case()
    return split, [labels[0], labels[0]]


def returns_of_another_bar() -> Case:
    split, labels = good_case()
    return replace(split, train=replace(split.train, targets=np.roll(split.train.targets, 1))), labels


def window_across_symbols() -> Case:
    split, labels = good_case()
    rows = split.train.rows.copy()
    rows[int(np.argmax(split.train.symbol_ids == 1))] = split.series[1].start + 1
    return replace(split, train=replace(split.train, rows=rows)), labels


def wrong_symbol() -> Case:
    split, labels = good_case()
    return replace(split, test=replace(split.test, symbol_ids=1 - split.test.symbol_ids)), labels


def undeclared_horizon() -> Case:
    split, labels = good_case()
    return replace(split, horizon_bars=4), labels


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unpurged, r"bar \d+ of S0 is in the validation part, but a label of the training part has seen bar \d+"),
        (
            training_right_after_the_judged_stretch,
            r"bar \d+ of S0 is in the training part, but a label of the validation part has seen bar \d+",
        ),
        (row_in_two_parts, "of S1 is in the (training|test) part, but a label of the (training|test) part has seen"),
        (row_of_the_future, "of S0 is in the (training|test) part, but a label of the (training|test) part has seen"),
        (labels_of_the_first_symbol, "of S1 is in the training part, but its label is that of another bar or symbol"),
        (returns_of_another_bar, "its forward return is that of another bar or symbol"),
        (window_across_symbols, "of S1 is in the training part, but its window has bars of another symbol"),
        (wrong_symbol, "is in the test part, but its window has bars of another symbol"),
        (undeclared_horizon, "its label sees more than 4 bars ahead"),
    ],
)
def test_a_split_that_leaks_is_refused(make: Callable[[], Case], message: str) -> None:
    split, labels = make()
    with pytest.raises(LeakageError, match=message) as caught:
        check_label_spans(split, labels)
    assert caught.value.metadata["feature"] == "label"
    assert caught.value.metadata["symbol"] in ("S0", "S1")
