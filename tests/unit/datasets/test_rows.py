from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.datasets.dataset import SeriesRows
from ktrdr_core.datasets.rows import RowCounts, build_rows, expected_rows
from ktrdr_core.errors import InvalidInputError, TrainingError
from ktrdr_core.features.engineer import FeatureMatrix
from ktrdr_core.labels.labels import NO_LABEL, Labels
from ktrdr_core.labels.registry import generate_labels
from tests.kit.builders import make_bars
from tests.kit.rows import column, planted_features, planted_labels, planted_rows, planted_series


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    window_bars=st.integers(1, 12),
    gap_share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_row_is_a_bar_with_its_window_and_its_own_label(
    lengths: list[int], window_bars: int, gap_share: float
) -> None:
    features, labels, bars = planted_series(lengths, gap_share=gap_share)
    symbols = [own.symbol for own in bars]
    rows = build_rows(features, labels, bars, symbols=symbols, window_bars=window_bars)
    expected = [
        (symbol_id, bar)
        for symbol_id, (own_features, own_labels) in enumerate(zip(features, labels, strict=True))
        for bar in range(lengths[symbol_id])
        if bar - window_bars + 1 >= own_features.warm_up_bars and own_labels.y[bar] != NO_LABEL
    ]
    assert list(zip(rows.symbol_ids.tolist(), rows.bar_indices.tolist(), strict=True)) == expected
    for row, (symbol_id, bar) in enumerate(expected):
        window = rows.matrix[rows.positions[row] - window_bars + 1 : rows.positions[row] + 1]
        np.testing.assert_array_equal(window, features[symbol_id].X[bar - window_bars + 1 : bar + 1])
        assert rows.matrix[rows.positions[row], :2].tolist() == [symbol_id, bar]
        assert rows.targets[row] == symbol_id * 10_000 + bar
        assert rows.y[row] == labels[symbol_id].y[bar]
        assert rows.ends[row] == labels[symbol_id].ends[bar]
        assert rows.times[row] == bars[symbol_id].times[bar]
    assert (np.diff(rows.positions) > 0).all()
    assert rows.positions.dtype == rows.bar_indices.dtype == rows.symbol_ids.dtype == np.int64
    assert rows.matrix.dtype == rows.targets.dtype == np.float32


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), window_bars=st.integers(1, 12))
def test_every_bar_is_counted_once(lengths: list[int], window_bars: int) -> None:
    rows, labels = planted_rows(lengths, window_bars=window_bars)
    for symbol_id, counts in enumerate(rows.counts):
        assert counts.bars == lengths[symbol_id]
        assert counts.warm_up_bars + counts.window_bars + counts.unlabelled_bars + counts.rows == counts.bars
        assert counts.rows == int((rows.symbol_ids == symbol_id).sum()) == len(rows.y[rows.slice_of(symbol_id)])
    assert rows.horizon_bars == labels[0].horizon_bars


def test_counts_say_why_bars_were_dropped() -> None:
    rows, _ = planted_rows([100], gap_share=0.0, window_bars=4)
    assert rows.counts == (RowCounts("S0", bars=100, warm_up_bars=5, window_bars=3, unlabelled_bars=10, rows=82),)
    assert (rows.bar_indices[0], rows.bar_indices[-1]) == (8, 89)


def test_the_matrix_has_every_complete_bar_of_each_symbol() -> None:
    rows, _ = planted_rows([40, 30])
    assert rows.series == (SeriesRows("S0", 0, 35, 5), SeriesRows("S1", 35, 59, 6))
    assert rows.matrix[:, 1].tolist() == [*range(5, 40), *range(6, 30)]


def test_the_matrix_of_one_symbol_is_not_a_copy() -> None:
    features, labels, bars = planted_series([50])
    rows = build_rows(features, labels, bars, symbols=["S0"])
    assert np.shares_memory(rows.matrix, features[0].X)
    assert rows.matrix.flags.c_contiguous


def test_labels_without_targets_give_none() -> None:
    features, labels, bars = planted_series([50, 40])
    rows = build_rows(features, [replace(own, targets=None) for own in labels], bars, symbols=["S0", "S1"])
    assert rows.targets.shape == (0,)
    assert rows.targets.dtype == np.float32


def test_a_symbol_of_warm_up_alone_has_no_rows() -> None:
    rows, _ = planted_rows([50, 3])
    assert rows.series[1] == SeriesRows("S1", 45, 45, 3)
    assert rows.counts[1] == RowCounts("S1", bars=3, warm_up_bars=3, window_bars=0, unlabelled_bars=0, rows=0)


Series = tuple[list[FeatureMatrix], list[Labels], list[Bars]]


def swap_bars(series: Series) -> Series:
    return series[0], series[1], series[2][::-1]


def shorten_labels(series: Series) -> Series:
    return series[0], [planted_labels(49, 0), series[1][1]], series[2]


def rename_column(series: Series) -> Series:
    other = replace(series[0][1], columns=(*series[0][1].columns[:-1], column("other")))
    return [series[0][0], other], series[1], series[2]


def drop_targets(series: Series) -> Series:
    return series[0], [series[1][0], replace(series[1][1], targets=None)], series[2]


def drop_symbol(series: Series) -> Series:
    return series[0][:1], series[1], series[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_bars, "the bars of S0 are those of S1"),
        (shorten_labels, "of S0 must be of one length, were 50, 49, 50"),
        (rename_column, "features of S1 are symbol.id, bar, other, those of S0 symbol.id, bar, random_0"),
        (drop_targets, "labels of some symbols have targets and others none"),
        (drop_symbol, "there are 2, 1, 2 and 2"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: Callable[[Series], Series], message: str) -> None:
    features, labels, bars = change(planted_series([50, 50]))
    with pytest.raises(InvalidInputError, match=message):
        build_rows(features, labels, bars, symbols=["S0", "S1"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_after_its_warm_up_is_refused_by_name(value: float) -> None:
    features, labels, bars = planted_series([50, 40])
    features[1].X[20, 2] = value
    with pytest.raises(TrainingError, match=rf"feature random_0 of S1 is {value} at 2017-01-02T18:00:00Z"):
        build_rows(features, labels, bars, symbols=["S0", "S1"])


LABELS = LabelsConfig(source="zigzag", label_lookahead=10, zigzag_threshold=0.002)
BARRIERS = LabelsConfig(
    source="triple_barrier", label_lookahead=10, profit_barrier=1.0, loss_barrier=1.0, volatility_period=30
)


@pytest.mark.parametrize("config", [LABELS, BARRIERS], ids=["zigzag", "barriers"])
@pytest.mark.parametrize(("num_bars", "window_bars"), [(100, 1), (100, 8), (100, 40), (20, 1), (3, 1)])
def test_expected_rows_are_the_real_ones(config: LabelsConfig, num_bars: int, window_bars: int) -> None:
    bars = make_bars(num_bars, symbol="S0")
    features, labels = planted_features(num_bars, 0), generate_labels(bars, config)
    rows = build_rows([features], [labels], [bars], symbols=["S0"], window_bars=window_bars)
    assert len(rows) == expected_rows(num_bars, warm_up_bars=5, window_bars=window_bars, labels=config)
