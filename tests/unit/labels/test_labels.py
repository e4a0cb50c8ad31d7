from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.errors import DegenerateLabelsError, UnsupportedError
from ktrdr_core.labels.registry import NO_LABEL, check_degenerate, forward_extremes, generate_labels
from tests.kit.builders import bars_of_closes, make_bars


def labels_config(threshold: float = 0.002, horizon: int = 10, source: str = "zigzag") -> LabelsConfig:
    return LabelsConfig.model_validate({"source": source, "zigzag_threshold": threshold, "label_lookahead": horizon})


def slow_labels(close: list[float], threshold: float, horizon: int) -> list[int]:
    """The definition, one bar at a time."""
    result = []
    for t, price in enumerate(close):
        future = close[t + 1 : t + 1 + horizon]
        if len(future) < horizon:
            result.append(NO_LABEL)
            continue
        up, down = max(future) / price - 1, 1 - min(future) / price
        if up >= threshold and up > down:
            result.append(int(SignalClass.BUY))
        elif down >= threshold and down > up:
            result.append(int(SignalClass.SELL))
        else:
            result.append(int(SignalClass.HOLD))
    return result


@given(
    close=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=40),
    threshold=st.sampled_from([0.001, 0.05, 0.5]),
    horizon=st.integers(1, 45),
)
def test_labels_are_those_of_a_slow_loop(close: list[float], threshold: float, horizon: int) -> None:
    labels = generate_labels(bars_of_closes(close), labels_config(threshold, horizon))
    assert labels.y.tolist() == slow_labels(close, threshold, horizon)
    assert labels.horizon_bars == horizon


def test_labels_of_a_long_series_are_those_of_a_slow_loop() -> None:
    bars = make_bars(2_000)
    y = generate_labels(bars, labels_config()).y
    assert y.tolist() == slow_labels(bars.close.tolist(), 0.002, 10)
    assert set(y.tolist()) == {NO_LABEL, 0, 1, 2}


def test_rows_without_a_full_horizon_have_no_label() -> None:
    y = generate_labels(make_bars(100), labels_config(horizon=24)).y
    assert (y[-24:] == NO_LABEL).all()
    assert (y[:-24] != NO_LABEL).all()


def test_label_sees_exactly_its_horizon() -> None:
    close = np.ones(30)
    close[15] = 2.0
    y = generate_labels(bars_of_closes(close), labels_config(0.5, 5)).y
    assert np.flatnonzero(y == SignalClass.BUY).tolist() == [10, 11, 12, 13, 14]


def test_larger_move_decides() -> None:
    assert generate_labels(bars_of_closes([1, 1.1, 0.8]), labels_config(0.05, 2)).y[0] == SignalClass.SELL
    assert generate_labels(bars_of_closes([1, 0.9, 1.2]), labels_config(0.05, 2)).y[0] == SignalClass.BUY
    assert generate_labels(bars_of_closes([1, 1.25, 0.75]), labels_config(0.05, 2)).y[0] == SignalClass.HOLD
    assert generate_labels(bars_of_closes([1, 1.01, 0.99]), labels_config(0.05, 2)).y[0] == SignalClass.HOLD


def test_extremes_leave_the_present_out() -> None:
    highest, lowest = forward_extremes(np.array([9.0, 1.0, 2.0, 3.0]), 2)
    assert highest[:2].tolist() == [2.0, 3.0]
    assert lowest[:2].tolist() == [1.0, 2.0]
    assert np.isnan(highest[2:]).all()


@pytest.mark.parametrize("source", ["zigzag_segments", "forward_return", "triple_barrier"])
def test_source_not_built_is_refused_by_name(source: str) -> None:
    with pytest.raises(UnsupportedError, match=f"label source '{source}' is not built yet; this version has zigzag"):
        generate_labels(make_bars(50), labels_config(source=source))


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((0, 50, 50), "BUY 0, HOLD 50, SELL 50 of 100 rows"),
        ((2, 96, 2), "BUY 2, HOLD 96, SELL 2 of 100"),
        ((0, 0, 0), "BUY 0, HOLD 0, SELL 0 of 0"),
    ],
)
def test_degenerate_labels_are_refused_with_their_counts(counts: tuple[int, ...], shown: str) -> None:
    y = np.repeat(np.arange(3), counts)
    with pytest.raises(DegenerateLabelsError, match=shown):
        check_degenerate(y, allow=False)
    check_degenerate(y, allow=True)


def test_labels_at_the_limit_are_accepted_and_missing_ones_do_not_count() -> None:
    check_degenerate(np.repeat([0, 1, 2, NO_LABEL], [2, 95, 3, 500]), allow=False)
