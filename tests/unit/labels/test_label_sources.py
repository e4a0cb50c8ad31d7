from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.errors import UnsupportedError
from ktrdr_core.labels.labels import NO_END, NO_LABEL, Labels
from ktrdr_core.labels.registry import (
    LABEL_SOURCES,
    find_label_source,
    generate_labels,
    label_horizon,
    label_warm_up_bars,
)
from ktrdr_core.labels.triple_barrier import BLOCK_BARS, trailing_volatility
from ktrdr_core.labels.zigzag import forward_extremes
from ktrdr_core.labels.zigzag_segments import find_extremes
from tests.kit.builders import bars_of_closes, make_bars

BUY, HOLD, SELL = (int(member) for member in SignalClass)
Answer = tuple[int, int]  # label and its end
NONE: Answer = (NO_LABEL, NO_END)

# Multiples of 1/4 hit each other, and thresholds of 1/4 and 1/2, exactly; the others never do.
GRID = st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.25, 1.5, 2.0]), min_size=1, max_size=40)
FLOATS = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=40)
STEPS = st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=60)
CLOSES = GRID | FLOATS | STEPS.map(lambda steps: np.exp(np.cumsum(steps)).tolist())
HORIZONS = st.integers(1, 45)


def config(source: str, horizon: int, **keys: Any) -> LabelsConfig:
    return LabelsConfig.model_validate({"source": source, "label_lookahead": horizon, **keys})


def label(close: ArrayLike, settings: LabelsConfig) -> Labels:
    return generate_labels(bars_of_closes(close), settings)


def answers(labels: Labels) -> list[Answer]:
    assert labels.y.dtype == labels.ends.dtype == np.int64
    return list(zip(labels.y.tolist(), labels.ends.tolist(), strict=True))


# The definitions, one bar at a time.


def slow_zigzag(close: list[float], threshold: float, horizon: int) -> list[Answer]:
    result = []
    for t, price in enumerate(close):
        future = close[t + 1 : t + 1 + horizon]
        if len(future) < horizon:
            result.append(NONE)
            continue
        up, down = max(future) / price - 1, 1 - min(future) / price
        if up >= threshold and up > down:
            result.append((BUY, t + horizon))
        elif down >= threshold and down > up:
            result.append((SELL, t + horizon))
        else:
            result.append((HOLD, t + horizon))
    return result


def slow_forward_return(close: list[float], buy: float, sell: float, horizon: int) -> list[Answer]:
    result = []
    for t, price in enumerate(close):
        if t + horizon >= len(close):
            result.append(NONE)
            continue
        change = close[t + horizon] / price - 1
        result.append((BUY if change >= buy else SELL if change <= -sell else HOLD, t + horizon))
    return result


def slow_triple_barrier(
    close: list[float], profit: float, loss: float, horizon: int, period: int | None = None
) -> list[Answer]:
    result = []
    for t, price in enumerate(close):
        volatility = 1.0
        if period is not None:
            returns = [close[i] / close[i - 1] - 1 for i in range(max(t - period + 1, 1), t + 1)]
            volatility = statistics.stdev(returns) if len(returns) == period else 0.0
        if t + horizon >= len(close) or volatility == 0:
            result.append(NONE)
            continue
        upper, lower = price * (1 + profit * volatility), price * (1 - loss * volatility)
        answer = (HOLD, t + horizon)
        for later in range(t + 1, t + horizon + 1):
            if close[later] >= upper:
                answer = (BUY, later)
                break
            if close[later] <= lower:
                answer = (SELL, later)
                break
        result.append(answer)
    return result


def slow_extremes(close: list[float], threshold: float) -> list[tuple[int, int, str]]:
    """Return (bar, confirming bar, kind); each leg is looked at from the extreme before, once that is confirmed."""
    found: list[tuple[int, int, str]] = []
    start, first_bar, wanted = 0, 0, {"high", "low"}
    while True:
        for bar in range(first_bar, len(close)):
            leg = close[start : bar + 1]
            if "high" in wanted and 1 - close[bar] / max(leg) >= threshold:
                found.append((start + leg.index(max(leg)), bar, "high"))
                break
            if "low" in wanted and close[bar] / min(leg) - 1 >= threshold:
                found.append((start + leg.index(min(leg)), bar, "low"))
                break
        else:
            return found
        start, first_bar, kind = found[-1]
        wanted = {"high", "low"} - {kind}


def slow_segments(close: list[float], threshold: float, horizon: int) -> list[Answer]:
    extremes = slow_extremes(close, threshold)
    result = []
    for t in range(len(close)):
        answer = NONE
        for index, (bar, confirmed, kind) in enumerate(extremes):
            if t == bar:
                answer = (HOLD, confirmed)
            elif index > 0 and extremes[index - 1][0] < t < bar:
                answer = (BUY if kind == "high" else SELL, confirmed)
        is_known = answer != NONE and answer[1] - t <= horizon and t + horizon < len(close)
        result.append(answer if is_known else NONE)
    return result


@given(close=CLOSES, threshold=st.sampled_from([0.001, 0.05, 0.25, 0.5]), horizon=HORIZONS)
def test_zigzag_labels_are_those_of_a_slow_loop(close: list[float], threshold: float, horizon: int) -> None:
    labels = label(close, config("zigzag", horizon, zigzag_threshold=threshold))
    assert answers(labels) == slow_zigzag(close, threshold, horizon)
    assert labels.targets is None


@given(close=CLOSES, threshold=st.sampled_from([0.001, 0.02, 0.05, 0.25, 0.5]), horizon=HORIZONS)
def test_segment_labels_are_those_of_a_slow_loop(close: list[float], threshold: float, horizon: int) -> None:
    labels = label(close, config("zigzag_segments", horizon, zigzag_threshold=threshold))
    assert answers(labels) == slow_segments(close, threshold, horizon)
    assert labels.targets is None


@given(
    close=CLOSES, profit=st.sampled_from([0.01, 0.25, 0.5]), loss=st.sampled_from([0.02, 0.25, 0.5]), horizon=HORIZONS
)
def test_barrier_labels_are_those_of_a_slow_loop(close: list[float], profit: float, loss: float, horizon: int) -> None:
    labels = label(close, config("triple_barrier", horizon, profit_barrier=profit, loss_barrier=loss))
    assert answers(labels) == slow_triple_barrier(close, profit, loss, horizon)
    assert labels.targets is None


@given(seed=st.integers(0, 999), period=st.integers(2, 20), profit=st.sampled_from([0.5, 1.0, 3.0]), horizon=HORIZONS)
def test_barriers_in_volatilities_are_those_of_a_slow_loop(seed: int, period: int, profit: float, horizon: int) -> None:
    close = make_bars(80, seed).close.tolist()
    keys = {"profit_barrier": profit, "loss_barrier": 1.5, "volatility_period": period}
    settings = config("triple_barrier", horizon, **keys)
    assert answers(label(close, settings)) == slow_triple_barrier(close, profit, 1.5, horizon, period)


@given(close=CLOSES, buy=st.sampled_from([0.01, 0.25, 0.5]), sell=st.sampled_from([0.01, 0.25, 0.5]), horizon=HORIZONS)
def test_forward_returns_are_those_of_a_slow_loop(close: list[float], buy: float, sell: float, horizon: int) -> None:
    labels = label(close, config("forward_return", horizon, buy_threshold=buy, sell_threshold=sell))
    assert answers(labels) == slow_forward_return(close, buy, sell, horizon)
    assert labels.targets is not None
    assert labels.targets.dtype == np.float32
    expected = [
        np.float32(close[t + horizon] / close[t] - 1) if t + horizon < len(close) else np.nan for t in range(len(close))
    ]
    np.testing.assert_array_equal(labels.targets, np.array(expected, dtype=np.float32))


SETTINGS = [
    config("zigzag", 10, zigzag_threshold=0.002),
    config("zigzag_segments", 30, zigzag_threshold=0.002),
    config("triple_barrier", 10, profit_barrier=0.003, loss_barrier=0.002),
    config("triple_barrier", 10, profit_barrier=1.5, loss_barrier=2.0, volatility_period=12),
    config("forward_return", 10, buy_threshold=0.002, sell_threshold=0.001),
]
SLOW: list[Callable[[list[float]], list[Answer]]] = [
    lambda close: slow_zigzag(close, 0.002, 10),
    lambda close: slow_segments(close, 0.002, 30),
    lambda close: slow_triple_barrier(close, 0.003, 0.002, 10),
    lambda close: slow_triple_barrier(close, 1.5, 2.0, 10, 12),
    lambda close: slow_forward_return(close, 0.002, 0.001, 10),
]
NAMES = ["zigzag", "segments", "barriers", "barriers-in-volatilities", "forward-return"]
every_source = pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)


@pytest.mark.parametrize(("settings", "slow"), list(zip(SETTINGS, SLOW, strict=True)), ids=NAMES)
def test_labels_of_a_long_series_are_those_of_a_slow_loop(
    settings: LabelsConfig, slow: Callable[[list[float]], list[Answer]]
) -> None:
    bars = make_bars(500)
    labels = generate_labels(bars, settings)
    assert answers(labels) == slow(bars.close.tolist())
    assert set(labels.y.tolist()) == {NO_LABEL, BUY, HOLD, SELL}


@every_source
@given(seed=st.integers(0, 999), cut=st.integers(1, 120))
def test_no_label_looks_beyond_its_end(settings: LabelsConfig, seed: int, cut: int) -> None:
    """Other bars from `cut` on change neither a label that ended before, nor which bars have one by then."""
    bars = make_bars(120, seed)
    close = bars.close.copy()
    close[cut:] *= np.exp(np.random.default_rng(seed).normal(0, 0.02, len(close) - cut))
    before, after = generate_labels(bars, settings), label(close, settings)
    for labels, other in ((before, after), (after, before)):
        has_ended = (labels.ends >= 0) & (labels.ends < cut)
        np.testing.assert_array_equal(labels.y[has_ended], other.y[has_ended])
        np.testing.assert_array_equal(labels.ends[has_ended], other.ends[has_ended])
        if labels.targets is not None and other.targets is not None:
            np.testing.assert_array_equal(labels.targets[has_ended], other.targets[has_ended])
    is_decided = np.arange(120) + settings.label_lookahead < cut
    np.testing.assert_array_equal(before.y[is_decided], after.y[is_decided])


@every_source
def test_labels_end_after_their_bar_and_within_the_horizon(settings: LabelsConfig) -> None:
    labels = generate_labels(make_bars(400), settings)
    bars = np.arange(400)
    has_label = labels.y != NO_LABEL
    np.testing.assert_array_equal(labels.ends[~has_label], NO_END)
    assert (labels.ends[has_label] > bars[has_label]).all()
    assert (labels.ends[has_label] <= bars[has_label] + labels.horizon_bars).all()
    assert labels.horizon_bars == label_horizon(settings) == settings.label_lookahead


@every_source
@pytest.mark.parametrize("num_bars", [1, 2, 9, 10, 11, 12, 31])
def test_rows_without_a_full_horizon_have_no_label(settings: LabelsConfig, num_bars: int) -> None:
    y = generate_labels(make_bars(num_bars), settings).y
    assert len(y) == num_bars
    assert (y[-settings.label_lookahead :] == NO_LABEL).all()


@every_source
def test_a_flat_series_has_no_move(settings: LabelsConfig) -> None:
    y = label([1.1] * 60, settings).y
    is_unknown = settings.source == "zigzag_segments" or settings.volatility_period is not None
    assert set(y[: -settings.label_lookahead].tolist()) == {NO_LABEL if is_unknown else HOLD}


def test_zigzag_label_sees_exactly_its_horizon() -> None:
    close = np.ones(30)
    close[15] = 2.0
    y = label(close.tolist(), config("zigzag", 5, zigzag_threshold=0.5)).y
    assert np.flatnonzero(y == BUY).tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize(
    ("close", "expected"),
    [((1, 1.1, 0.8), SELL), ((1, 0.9, 1.2), BUY), ((1, 1.25, 0.75), HOLD), ((1, 1.01, 0.99), HOLD)],
)
def test_larger_move_decides(close: tuple[float, ...], expected: int) -> None:
    assert label(close, config("zigzag", 2, zigzag_threshold=0.05)).y[0] == expected


def test_extremes_leave_the_present_out() -> None:
    highest, lowest = forward_extremes(np.array([9.0, 1.0, 2.0, 3.0]), 2)
    assert highest.tolist() == [2.0, 3.0]
    assert lowest.tolist() == [1.0, 2.0]


def test_bars_between_two_extremes_have_the_direction_of_their_leg() -> None:
    close = [1.0, 1.1, 1.2, 1.4, 1.3, 1.0, 1.1, 1.2, 1.3, 1.2, 1.2, 1.2]
    labels = label(close, config("zigzag_segments", 3, zigzag_threshold=0.15))
    #    low 0 (confirmed at 2), high 3 (at 5), low 5 (at 7); the high at 8 is never confirmed
    assert answers(labels)[:9] == [(HOLD, 2), NONE, (BUY, 5), (HOLD, 5), (SELL, 7), (HOLD, 7), NONE, NONE, NONE]


def test_a_leg_confirmed_too_late_gives_no_label_rather_than_a_guess() -> None:
    close = [1.0, 1.25, 1.3, 1.4, 1.5, 1.6, 1.0, 1.25, 1.25, 1.25, 1.25, 1.25, 1.25]
    y = label(close, config("zigzag_segments", 4, zigzag_threshold=0.2)).y
    assert y.tolist()[:7] == [HOLD, NO_LABEL, BUY, BUY, BUY, HOLD, HOLD]


def test_the_first_of_equal_extremes_counts() -> None:
    extremes, confirmations, is_first_high = find_extremes(np.array([1.0, 2.0, 2.0, 1.0, 1.0, 2.0]), 0.5)
    assert (extremes.tolist(), confirmations.tolist(), is_first_high) == ([0, 1, 3], [1, 3, 5], False)


def test_extremes_of_nothing_are_none() -> None:
    assert [len(found) for found in find_extremes(np.empty(0), 0.1)[:2]] == [0, 0]


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("triple_barrier", {"profit_barrier": 0.25, "loss_barrier": 0.25}),
        ("forward_return", {"buy_threshold": 0.25, "sell_threshold": 0.25}),
        ("zigzag", {"zigzag_threshold": 0.25}),
    ],
)
def test_a_threshold_met_exactly_is_reached(source: str, keys: dict[str, float]) -> None:
    assert label([1.0, 1.25], config(source, 1, **keys)).y[0] == BUY
    assert label([1.0, 0.75], config(source, 1, **keys)).y[0] == SELL
    assert label([1.0, np.nextafter(1.25, 1)], config(source, 1, **keys)).y[0] == HOLD
    assert label([1.0, np.nextafter(0.75, 1)], config(source, 1, **keys)).y[0] == HOLD


def test_a_barrier_met_exactly_and_left_again_was_met() -> None:
    settings = config("triple_barrier", 3, profit_barrier=0.25, loss_barrier=0.25)
    assert answers(label([1.0, 1.0, 1.25, 1.0], settings))[0] == (BUY, 2)
    assert answers(label([1.0, 1.0, 0.75, 1.0], settings))[0] == (SELL, 2)


def test_a_reversal_of_exactly_the_threshold_confirms() -> None:
    extremes, confirmations, is_first_high = find_extremes(np.array([1.0, 1.25, 0.9375]), 0.25)
    assert (extremes.tolist(), confirmations.tolist(), is_first_high) == ([0, 1], [1, 2], False)
    extremes, confirmations, is_first_high = find_extremes(np.array([1.0, 0.75, 0.9375]), 0.25)
    assert (extremes.tolist(), confirmations.tolist(), is_first_high) == ([0, 1], [1, 2], True)


def test_no_low_is_sought_before_the_high_is_confirmed() -> None:
    """A fall of 3/8 is no reversal of one half, though the rise after it would be: it belongs to the leg down."""
    close = [1.0, 1.6, 1.0, 1.55, 0.5, 0.8]
    extremes, confirmations, _ = find_extremes(np.array(close), 0.5)
    assert (extremes.tolist(), confirmations.tolist()) == ([0, 1, 4], [1, 4, 5])


def test_the_barrier_that_is_met_first_decides() -> None:
    settings = config("triple_barrier", 4, profit_barrier=0.1, loss_barrier=0.1)
    assert answers(label([1.0, 1.05, 0.8, 1.5, 1.0], settings))[0] == (SELL, 2)
    assert answers(label([1.0, 1.05, 1.2, 0.5, 1.0], settings))[0] == (BUY, 2)
    assert answers(label([1.0, 1.05, 0.95, 1.0, 1.09], settings))[0] == (HOLD, 4)


def test_touches_are_found_across_blocks_and_at_every_distance() -> None:
    horizon, num_bars = 11, BLOCK_BARS + 300
    rng = np.random.default_rng(3)
    close = 1 + rng.integers(0, 4, num_bars) * (rng.random(num_bars) < 0.1) * 0.25
    settings = config("triple_barrier", horizon, profit_barrier=0.5, loss_barrier=0.25)
    fast, slow = answers(label(close, settings)), slow_triple_barrier(close.tolist(), 0.5, 0.25, horizon)
    assert fast == slow
    assert {end - bar for bar, (_, end) in enumerate(slow) if end != NO_END} == set(range(1, horizon + 1))


def test_volatility_is_causal_and_starts_after_its_period() -> None:
    close = make_bars(60).close
    volatility = trailing_volatility(close, 12)
    assert np.isnan(volatility[:12]).all()
    for t in range(12, 60):
        returns = [close[i] / close[i - 1] - 1 for i in range(t - 11, t + 1)]
        assert volatility[t] == pytest.approx(statistics.stdev(returns), rel=1e-12)
        np.testing.assert_array_equal(trailing_volatility(close[: t + 1], 12), volatility[: t + 1])


def test_a_bar_without_volatility_has_no_barriers() -> None:
    close = [1.0] * 10 + [1.1] * 20
    settings = config("triple_barrier", 2, profit_barrier=1.0, loss_barrier=1.0, volatility_period=4)
    y = label(close, settings).y
    assert np.flatnonzero(y != NO_LABEL).tolist() == [10, 11, 12, 13]
    assert label_warm_up_bars(settings) == 4
    assert label_warm_up_bars(SETTINGS[0]) == 0


def test_unknown_source_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="label source 'oracle' is not known; use zigzag, zigzag_segments, "):
        find_label_source("oracle")


def test_every_source_of_the_grammar_is_built() -> None:
    assert {settings.source for settings in SETTINGS} == set(LABEL_SOURCES)
    assert set(LabelsConfig.model_json_schema()["properties"]["source"]["enum"]) == set(LABEL_SOURCES)
