from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import DataSplitConfig
from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.datasets.rows import Rows, build_rows, combine_rows
from ktrdr_core.datasets.series_features import compute_features, feature_warm_up_bars
from ktrdr_core.datasets.split import MIN_PART_ROWS, check_part_sizes, split_indices, split_rows
from ktrdr_core.errors import InvalidInputError, TooFewBarsError
from ktrdr_core.features.engineer import FeatureMatrix
from ktrdr_core.features.scaler import Scaler
from ktrdr_core.labels.registry import NO_LABEL, Labels, generate_labels
from tests.kit.builders import make_bars, strategy

SHARES = DataSplitConfig(train=0.7, validation=0.15, test=0.15)
HORIZON = 10


def rows_of(seed: int = 7, symbol_id: int = 0, n: int = 600) -> Rows:
    config, bars = strategy(), make_bars(n, seed)
    return build_rows(
        compute_features(bars, config), generate_labels(bars, config.training.labels), bars, symbol_id=symbol_id
    )


def parts_of(rows: Rows, symbols: tuple[str, ...] = ("EURUSD",)) -> list[DatasetPart]:
    names = [f"f{index}" for index in range(rows.X.shape[1])]
    split = split_rows(rows, symbols=symbols, feature_names=names, shares=SHARES, horizon_bars=HORIZON)
    return [split.train, split.validation, split.test]


def test_warm_up_is_dropped_not_filled() -> None:
    config, bars = strategy(), make_bars(600)
    rows = rows_of()
    warm_up = feature_warm_up_bars(config)
    assert warm_up == 33 + 2
    assert rows.bar_indices[0] == warm_up
    assert rows.warm_up_rows == warm_up
    assert not np.isnan(rows.X).any()
    np.testing.assert_array_equal(rows.X[0], compute_features(bars, config).X[warm_up])


def test_rows_without_a_full_horizon_are_dropped_not_hold() -> None:
    rows = rows_of()
    assert rows.bar_indices[-1] == 600 - HORIZON - 1
    assert rows.unlabelled_rows == HORIZON
    assert (rows.y != NO_LABEL).all()
    assert len(rows) + rows.warm_up_rows + rows.unlabelled_rows == 600


def test_declared_warm_up_is_the_real_one_with_price_context() -> None:
    config = strategy(**{"model.features.include_price_context": True, "model.features.lookback_periods": 5})
    assert compute_features(make_bars(200), config).warm_up_bars == feature_warm_up_bars(config)


def test_features_of_another_length_are_refused() -> None:
    bars = make_bars(50)
    features = FeatureMatrix(np.ones((49, 1)), ("a",), 0)
    with pytest.raises(InvalidInputError, match="must be of one length, were 49, 50, 50"):
        build_rows(features, Labels(np.ones(50, dtype=np.int64), 1), bars)


@given(
    gaps=st.lists(st.integers(1, 4), min_size=1, max_size=120),
    train=st.floats(0.05, 0.9),
    validation=st.floats(0.05, 0.9),
    horizon=st.integers(0, 20),
)
def test_parts_are_disjoint_in_order_and_purged(gaps: list[int], train: float, validation: float, horizon: int) -> None:
    total = train + validation + 0.2
    shares = DataSplitConfig(train=train / total, validation=validation / total, test=0.2 / total)
    bar_indices = np.cumsum(np.array(gaps, dtype=np.int64))
    parts = split_indices(bar_indices, shares, horizon)
    everything = np.concatenate(parts)
    assert len(np.unique(everything)) == len(everything)
    assert (np.diff(everything) > 0).all()
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        if len(parts[earlier]) and len(parts[later]):
            last_seen = bar_indices[parts[earlier][-1]] + horizon
            assert last_seen < bar_indices[parts[later][0]]


def test_purge_drops_exactly_the_horizon_at_each_boundary() -> None:
    train, validation, test = split_indices(np.arange(100, dtype=np.int64), SHARES, HORIZON)
    assert (train[0], train[-1]) == (0, 70 - HORIZON - 1)
    assert (validation[0], validation[-1]) == (70, 85 - HORIZON - 1)
    assert (test[0], test[-1]) == (85, 99)


def test_labels_of_a_part_never_reach_into_the_next() -> None:
    rows = rows_of()
    train, validation, test = parts_of(rows)
    hour = 3_600 * 10**9
    assert train.times[-1] + HORIZON * hour < validation.times[0]
    assert validation.times[-1] + HORIZON * hour < test.times[0]


def test_shares_of_the_strategy_decide_the_sizes() -> None:
    rows = rows_of(n=1_000)
    shares = DataSplitConfig(train=0.5, validation=0.2, test=0.3)
    names = ["x"] * rows.X.shape[1]
    split = split_rows(rows, symbols=["EURUSD"], feature_names=names, shares=shares, horizon_bars=HORIZON)
    n = len(rows)
    assert abs(len(split.train) - (0.5 * n - HORIZON)) <= 1
    assert abs(len(split.validation) - (0.2 * n - HORIZON)) <= 1
    assert abs(len(split.test) - 0.3 * n) <= 1
    assert split.purged_rows == 2 * HORIZON
    assert split.purged_rows + len(split.train) + len(split.validation) + len(split.test) == n


def test_scaler_sees_the_training_part_only() -> None:
    rows = rows_of()
    names = ["x"] * rows.X.shape[1]
    split = split_rows(rows, symbols=["EURUSD"], feature_names=names, shares=SHARES, horizon_bars=HORIZON)
    num_train = len(split.train)
    assert split.scaler == Scaler.fit(rows.X[:num_train])
    assert split.scaler != Scaler.fit(rows.X)
    np.testing.assert_array_equal(split.test.X[-1], split.scaler.transform(rows.X[-1:])[0])
    assert split.train.X.dtype == np.float32
    assert split.train.X.flags.c_contiguous
    assert split.train.y.dtype == np.int64


def test_scaling_can_be_left_out() -> None:
    rows = rows_of()
    names = ["x"] * rows.X.shape[1]
    split = split_rows(
        rows, symbols=["EURUSD"], feature_names=names, shares=SHARES, horizon_bars=HORIZON, scaler_kind="none"
    )
    np.testing.assert_array_equal(split.train.X[0], rows.X[0].astype(np.float32))


def test_symbols_are_combined_by_rows_that_keep_their_symbol() -> None:
    own = [rows_of(seed=1, symbol_id=0), rows_of(seed=2, symbol_id=1, n=400)]
    combined = combine_rows(own)
    for symbol_id, rows in enumerate(own):
        picked = combined.symbol_ids == symbol_id
        np.testing.assert_array_equal(combined.X[picked], rows.X)
        np.testing.assert_array_equal(combined.y[picked], rows.y)


def test_every_part_has_every_symbol_in_time_order() -> None:
    combined = combine_rows([rows_of(seed=1, symbol_id=0), rows_of(seed=2, symbol_id=1, n=400)])
    parts = parts_of(combined, ("EURUSD", "GBPUSD"))
    for symbol_id in (0, 1):
        times = [part.times[part.symbol_ids == symbol_id] for part in parts]
        assert all(len(own) >= MIN_PART_ROWS for own in times)
        assert (np.diff(np.concatenate(times)) > 0).all()


def test_too_few_rows_are_refused_with_the_counts() -> None:
    with pytest.raises(TooFewBarsError, match=r"EURUSD has .* train 35, validation 0, test 10 rows are left"):
        parts_of(rows_of(n=33 + 2 + HORIZON + 64))
    with pytest.raises(TooFewBarsError, match=r"EURUSD 1h has 40 bars .* train 0, validation 0, test 0 rows"):
        check_part_sizes(40, -5, SHARES, HORIZON, subject="EURUSD 1h")
