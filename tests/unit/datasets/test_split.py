from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import DataSplitConfig
from ktrdr_core.data.bars import IntArray, day_of
from ktrdr_core.datasets.split import (
    MIN_PART_ROWS,
    check_part_sizes,
    overlap_warning,
    split_rows,
    split_series,
    training_stop_bar,
    whole_test_stretch,
)
from ktrdr_core.errors import TooFewBarsError
from ktrdr_core.features.scaler import Scaler
from ktrdr_core.labels.labels import NO_LABEL
from tests.kit.builders import make_bars
from tests.kit.rows import COLUMNS, planted_labels, planted_rows

SHARES = DataSplitConfig(train=0.7, validation=0.15, test=0.15)
HORIZON = 10


def shares_of(train: float, validation: float, embargo_bars: int = 0) -> DataSplitConfig:
    total = train + validation + 0.2
    return DataSplitConfig(
        train=train / total, validation=validation / total, test=0.2 / total, embargo_bars=embargo_bars
    )


@st.composite
def series(draw: st.DrawFn) -> tuple[IntArray, IntArray]:
    """Bars of rows with gaps, and ends of labels that may overtake one another."""
    steps = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20)), max_size=120))
    bars = np.cumsum(np.array([gap for gap, _ in steps], dtype=np.int64))
    return bars, bars + np.array([span for _, span in steps], dtype=np.int64)


all_shares = st.builds(shares_of, st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.integers(0, 25))


def slow_split(bars: list[int], ends: list[int], shares: DataSplitConfig) -> tuple[list[list[int]], int, int]:
    """The rule at the top of the module, one row at a time."""
    n = len(bars)
    firsts = (round(n * shares.train), round(n * (shares.train + shares.validation)))
    parts: list[list[int]] = [[], [], []]
    purged = embargoed = 0
    for row in range(n):
        part = sum(row >= first for first in firsts)
        if any(row < first < n and ends[row] >= bars[first] for first in firsts):
            purged += 1
        elif any(first <= row and bars[row] - bars[first] < shares.embargo_bars for first in firsts):
            embargoed += 1
        else:
            parts[part].append(row)
    return parts, purged, embargoed


@given(series=series(), shares=all_shares)
def test_parts_are_those_of_a_slow_loop(series: tuple[IntArray, IntArray], shares: DataSplitConfig) -> None:
    found = split_series(*series, shares)
    parts, purged, embargoed = slow_split(series[0].tolist(), series[1].tolist(), shares)
    assert [part.tolist() for part in found.parts] == parts
    assert (found.purged_rows, found.embargoed_rows) == (purged, embargoed)
    assert sum(map(len, parts)) + purged + embargoed == len(series[0])


@given(series=series(), shares=all_shares)
def test_parts_are_disjoint_in_order_and_purged(series: tuple[IntArray, IntArray], shares: DataSplitConfig) -> None:
    bars, ends = series
    parts = split_series(bars, ends, shares).parts
    everything = np.concatenate(parts)
    assert (np.diff(everything) > 0).all()
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        if len(parts[earlier]) and len(parts[later]):
            assert ends[parts[earlier]].max() < bars[parts[later]].min()


@given(series=series(), shares=all_shares)
def test_no_row_is_purged_that_need_not_be(series: tuple[IntArray, IntArray], shares: DataSplitConfig) -> None:
    bars, ends = series
    without_embargo = shares.model_copy(update={"embargo_bars": 0})
    parts = split_series(bars, ends, without_embargo)
    kept = set(np.concatenate(parts.parts).tolist())
    firsts = [round(len(bars) * shares.train), round(len(bars) * (shares.train + shares.validation))]
    for row in set(range(len(bars))) - kept:
        assert any(bars[row] < bars[first] <= ends[row] for first in firsts if first < len(bars))


def test_purge_drops_exactly_the_horizon_at_each_boundary() -> None:
    rows = np.arange(100, dtype=np.int64)
    train, validation, test = split_series(rows, rows + HORIZON, SHARES).parts
    assert (train[0], train[-1]) == (0, 70 - HORIZON - 1)
    assert (validation[0], validation[-1]) == (70, 85 - HORIZON - 1)
    assert (test[0], test[-1]) == (85, 99)


def test_a_label_that_ended_early_is_kept_beside_one_that_did_not() -> None:
    rows = np.arange(20, dtype=np.int64)
    ends = rows + 1
    ends[9], ends[8] = 10, 9
    ends[3] = 10
    train, _, _ = split_series(rows, ends, shares_of(0.5, 0.3)).parts
    assert train.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]


def test_embargo_leaves_out_bars_on_top_of_the_purge() -> None:
    rows = np.arange(100, dtype=np.int64)
    shares = SHARES.model_copy(update={"embargo_bars": 3})
    parts = split_series(rows, rows + 2, shares)
    train, validation, test = parts.parts
    assert (train[0], train[-1]) == (0, 67)
    assert (validation[0], validation[-1]) == (73, 82)
    assert (test[0], test[-1]) == (88, 99)
    assert (parts.purged_rows, parts.embargoed_rows) == (4, 6)


@given(lengths=st.lists(st.integers(150, 250), min_size=1, max_size=3), window_bars=st.integers(1, 6))
def test_every_symbol_is_in_every_part_with_its_own_features_and_labels(lengths: list[int], window_bars: int) -> None:
    rows, labels = planted_rows(lengths, window_bars=window_bars)
    split = split_rows(rows, columns=COLUMNS, shares=SHARES, scaling="none")
    for part in (split.train, split.validation, split.test):
        assert set(part.symbol_ids.tolist()) == set(range(len(lengths)))
        assert (np.diff(part.rows) > 0).all()
        for row, symbol_id, target, y in zip(part.rows, part.symbol_ids, part.targets, part.y, strict=True):
            planted_symbol, planted_bar = part.matrix[row, :2].astype(int).tolist()
            assert planted_symbol == symbol_id
            assert target == symbol_id * 10_000 + planted_bar
            assert y == labels[symbol_id].y[planted_bar]
        assert part.window_bars == window_bars
        windows = part.X if window_bars > 1 else part.X[:, None]
        assert (windows[:, :, 0] == part.symbol_ids[:, None]).all()  # no window crosses into another symbol
        assert (windows[:, -1, 1] == part.matrix[part.rows, 1]).all()
        assert (np.diff(windows[:, :, 1], axis=1) == 1).all()
    for symbol_id in range(len(lengths)):
        times = [part.times[part.symbol_ids == symbol_id] for part in (split.train, split.validation, split.test)]
        assert (np.diff(np.concatenate(times)) > 0).all()
    assert split.symbols == tuple(f"S{i}" for i in range(len(lengths)))
    num_kept = len(split.train) + len(split.validation) + len(split.test)
    assert num_kept + split.purged_rows + split.embargoed_rows == len(rows)


@pytest.mark.parametrize("scaling", ["standard", "robust", "min_max"])
def test_scaler_sees_the_training_rows_only(scaling: str) -> None:
    rows, _ = planted_rows([300, 200])
    split = split_rows(rows, columns=COLUMNS, shares=SHARES, scaling=scaling)  # type: ignore[arg-type]
    expected = Scaler.fit(
        rows.matrix[split.train.rows],
        scaling,  # type: ignore[arg-type]
        identity=[0],
    )
    assert split.scaler == expected
    assert split.scaler != Scaler.fit(rows.matrix, scaling, identity=[0])  # type: ignore[arg-type]
    np.testing.assert_array_equal(split.train.matrix, expected.transform(rows.matrix))
    np.testing.assert_array_equal(split.train.matrix[:, 0], rows.matrix[:, 0])  # whose row it is, is not scaled


def test_parts_share_one_matrix() -> None:
    rows, _ = planted_rows([300])
    split = split_rows(rows, columns=COLUMNS, shares=SHARES)
    assert split.train.matrix is split.validation.matrix is split.test.matrix
    assert split.train.matrix.dtype == np.float32
    assert split.train.matrix.flags.c_contiguous
    assert not np.shares_memory(split.train.matrix, rows.matrix)
    assert split.series == rows.series
    unscaled = split_rows(rows, columns=COLUMNS, shares=SHARES, scaling="none")
    assert unscaled.test.matrix is rows.matrix
    assert unscaled.test.targets.dtype == np.float32


def test_what_a_split_knows_of_itself() -> None:
    rows, _ = planted_rows([300], horizon_bars=7)
    shares = SHARES.model_copy(update={"embargo_bars": 4})
    split = split_rows(rows, columns=COLUMNS, shares=shares)
    assert split.feature_names == ("symbol.id", "bar", "random_0")
    assert split.horizon_bars == 7
    assert split.purged_rows > 0
    assert 0 < split.embargoed_rows <= 8


@given(window_bars=st.integers(1, 9), gap_share=st.sampled_from([0.0, 0.4]))
def test_the_training_part_is_known_before_there_are_features(window_bars: int, gap_share: float) -> None:
    rows, labels = planted_rows([300], gap_share=gap_share, window_bars=window_bars)
    split = split_rows(rows, columns=COLUMNS, shares=SHARES, scaling="none")
    stop = training_stop_bar(labels[0], warm_up_bars=5, window_bars=window_bars, shares=SHARES)
    assert stop - 1 == split.train.matrix[split.train.rows[-1], 1]


def test_a_series_too_short_has_no_training_part() -> None:
    assert training_stop_bar(planted_labels(12, 0), warm_up_bars=5, window_bars=1, shares=SHARES) == 0
    assert training_stop_bar(planted_labels(3, 0), warm_up_bars=5, window_bars=1, shares=SHARES) == 0


def test_too_few_rows_are_refused_with_the_counts() -> None:
    rows, _ = planted_rows([300, 79], gap_share=0.0)
    with pytest.raises(TooFewBarsError, match=r"^S1 has 79 bars .* 10 bars and the purge, train \d+, validation \d, "):
        split_rows(rows, columns=COLUMNS, shares=SHARES)
    with pytest.raises(TooFewBarsError, match=r"EURUSD 1h has 40 bars .* train 0, validation 0, test 0 rows"):
        check_part_sizes(40, -5, SHARES, HORIZON, subject="EURUSD 1h")
    with pytest.raises(TooFewBarsError, match=r"an embargo of 12 bars and .* or horizon or embargo") as caught:
        check_part_sizes(200, 150, SHARES.model_copy(update={"embargo_bars": 12}), 5, subject="EURUSD 1h")
    assert caught.value.violations[0].field == "spec.start_date"
    check_part_sizes(200, 150, SHARES, 5, subject="EURUSD 1h")


@given(num_rows=st.integers(0, 300), horizon=st.integers(1, 20), shares=all_shares)
def test_the_check_before_a_training_agrees_with_the_split(
    num_rows: int, horizon: int, shares: DataSplitConfig
) -> None:
    rows = np.arange(num_rows, dtype=np.int64)
    is_enough = min(map(len, split_series(rows, rows + horizon, shares).parts)) >= MIN_PART_ROWS
    if is_enough:
        check_part_sizes(num_rows, num_rows, shares, horizon, subject="X")
    else:
        with pytest.raises(TooFewBarsError):
            check_part_sizes(num_rows, num_rows, shares, horizon, subject="X")


def test_symbols_tested_while_others_are_trained_on_are_told_with_their_days() -> None:
    rows, _ = planted_rows((1_000, 400))
    split = split_rows(rows, columns=COLUMNS, shares=SHARES)
    tested = [time for time, own in zip(split.test.times.tolist(), split.test.symbol_ids, strict=True) if own == 1]
    num_meanwhile = sum(
        own == 0 and tested[0] <= time <= tested[-1]
        for time, own in zip(split.train.times, split.train.symbol_ids, strict=True)
    )
    warning = overlap_warning(split)
    assert num_meanwhile > 30
    assert warning is not None
    assert warning.startswith(f"{100 * num_meanwhile / len(split.train):.1f} % of the training rows")
    assert f"of S1 ({day_of(tested[0])} to {day_of(tested[-1])})" in warning


@pytest.mark.parametrize("lengths", [(500,), (500, 505, 498)])
def test_symbols_of_one_range_need_no_warning(lengths: tuple[int, ...]) -> None:
    rows, _ = planted_rows(lengths)
    assert overlap_warning(split_rows(rows, columns=COLUMNS, shares=SHARES)) is None


def test_whole_test_stretch_has_every_bar_between_the_test_rows_of_a_symbol() -> None:
    rows, _ = planted_rows((400, 300), window_bars=3)
    bars = [make_bars(400, 0, symbol="S0"), make_bars(300, 1, symbol="S1")]
    split = split_rows(rows, columns=COLUMNS, shares=SHARES)
    stretch = whole_test_stretch(split, bars)
    for symbol_id in (0, 1):
        own = split.test.rows[split.test.symbol_ids == symbol_id]
        found = stretch.symbol_ids == symbol_id
        assert stretch.rows[found].tolist() == list(range(own[0], own[-1] + 1))
        assert np.diff(stretch.times[found]).tolist() == [3_600 * 10**9] * (own[-1] - own[0])
        labelled = np.isin(stretch.rows, own)
        assert (stretch.times[labelled] == split.test.times[split.test.symbol_ids == symbol_id]).all()
    assert len(stretch) > len(split.test)
    assert (stretch.y == NO_LABEL).all()


def test_whole_test_stretch_is_the_test_part_where_every_bar_has_a_label() -> None:
    rows, _ = planted_rows((400,), gap_share=0.0)
    split = split_rows(rows, columns=COLUMNS, shares=SHARES)
    assert whole_test_stretch(split, [make_bars(400, 0, symbol="S0")]) is split.test
