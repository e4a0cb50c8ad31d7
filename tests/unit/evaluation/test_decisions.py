from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.strategy import DecisionsConfig, LabelsConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.evaluation.decisions import classes, decide, output_activation_of, positions, probabilities
from tests.kit.builders import make_bars, strategy

BUY, HOLD, SELL = 0, 1, 2
RETURN_LABELS = LabelsConfig(source="forward_return", label_lookahead=4, buy_threshold=0.01, sell_threshold=0.02)
BARS = make_bars(120)

few_outputs = st.lists(st.tuples(*[st.floats(-40, 40, width=32)] * 3), min_size=1, max_size=20)
configs = st.builds(
    lambda confidence, separation, volume, least_range, hours, aware: DecisionsConfig.model_validate(
        {
            "confidence_threshold": confidence,
            "position_awareness": aware,
            "filters": {
                "min_separation": separation,
                "volume_filter": volume,
                "min_range": least_range,
                "trading_hours": hours,
            },
        }
    ),
    st.sampled_from([0.0, 0.4, 0.6]),
    st.sampled_from([0.0, 0.2]),
    st.booleans(),
    st.sampled_from([0.0, 0.0006]),
    st.none()
    | st.builds(lambda start, end: {"start": start, "end": end}, st.integers(0, 23), st.integers(1, 24)).filter(
        lambda hours: hours["start"] != hours["end"]
    ),
    st.booleans(),
)


def config_of(**sections: Any) -> DecisionsConfig:
    return DecisionsConfig.model_validate(sections)


def answers(seed: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    outputs = np.random.default_rng(seed).normal(size=(num_rows, 3)).astype(np.float32)
    return classes(outputs, "softmax"), probabilities(outputs, "softmax")


def slow_decisions(
    given_classes: np.ndarray, given_probabilities: np.ndarray, bars: Bars, indices: np.ndarray, config: DecisionsConfig
) -> list[int]:
    """The rules, row by row."""
    filters, found, position = config.filters, [], HOLD
    for answer, row, bar in zip(given_classes.tolist(), given_probabilities.tolist(), indices.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        keeps = row[answer] >= config.confidence_threshold
        keeps &= ranked[0] - ranked[1] >= filters.min_separation
        if filters.volume_filter:
            volumes = bars.volume[max(bar - 19, 0) : bar + 1].tolist()
            keeps &= len(volumes) == 20 and volumes[-1] >= math.fsum(volumes) / 20
        keeps &= (bars.high[bar] - bars.low[bar]) / bars.close[bar] >= filters.min_range
        if filters.trading_hours is not None:
            close_s = (bars.times[bar] + Timeframe.parse(bars.timeframe).duration_ns) / 1e9
            hour = datetime.fromtimestamp(close_s, UTC).hour
            start, end = filters.trading_hours.start, filters.trading_hours.end
            open_hours = {h % 24 for h in range(start, end if end > start else end + 24)}
            keeps &= hour in open_hours
        decision = answer if keeps else HOLD
        if config.position_awareness:
            if decision == position:
                decision = HOLD
            elif decision != HOLD:
                position = decision
        found.append(decision)
    return found


@given(outputs=few_outputs)
def test_softmax_probabilities_equal_the_definition(outputs: list[tuple[float, ...]]) -> None:
    found = probabilities(np.array(outputs, dtype=np.float32), "softmax")
    for row, logits in zip(found, outputs, strict=True):
        total = math.fsum(math.exp(z - max(logits)) for z in logits)
        assert row.tolist() == pytest.approx([math.exp(z - max(logits)) / total for z in logits], abs=1e-12)


@given(outputs=few_outputs)
def test_sigmoid_probabilities_are_shares_of_each_class_judged_alone(outputs: list[tuple[float, ...]]) -> None:
    found = probabilities(np.array(outputs, dtype=np.float32), "sigmoid")
    for row, logits in zip(found, outputs, strict=True):
        alone = [1 / (1 + math.exp(-z)) for z in logits]
        assert row.tolist() == pytest.approx([p / sum(alone) for p in alone], abs=1e-9)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(outputs)))


def test_probabilities_of_huge_outputs_are_finite() -> None:
    outputs = np.array([[1e30, -1e30, 0.0], [-900.0, -901.0, -900.0]], dtype=np.float32)
    assert probabilities(outputs, "softmax")[0].tolist() == [1.0, 0.0, 0.0]
    assert probabilities(outputs, "sigmoid")[1] == pytest.approx(np.array([0.4223, 0.1554, 0.4223]), abs=1e-4)


@pytest.mark.parametrize("output_activation", ["softmax", "sigmoid"])
def test_probabilities_of_a_row_do_not_depend_on_the_rows_beside_it(output_activation: str) -> None:
    outputs = np.random.default_rng(5).normal(0, 4, size=(1_001, 3)).astype(np.float32)
    whole = probabilities(outputs, output_activation)
    for start, stop in ((0, 1), (3, 10), (500, 1_001)):
        assert np.array_equal(probabilities(outputs[start:stop], output_activation), whole[start:stop])


def test_predicted_returns_become_classes_from_the_thresholds_on() -> None:
    outputs = np.array([[0.01], [0.0099], [-0.02], [-0.0199], [0.0]])
    assert classes(outputs, "linear", RETURN_LABELS).tolist() == [BUY, HOLD, SELL, HOLD, HOLD]
    assert probabilities(outputs, "linear", RETURN_LABELS)[:3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_predicted_returns_need_thresholds() -> None:
    zigzag = LabelsConfig(source="zigzag", label_lookahead=4, zigzag_threshold=0.01)
    for labels in (None, zigzag):
        with pytest.raises(InvalidInputError, match="buy_threshold"):
            classes(np.zeros((1, 1)), "linear", labels)


@pytest.mark.parametrize(("output_activation", "width"), [("softmax", 1), ("sigmoid", 2), ("linear", 3), ("tanh", 3)])
def test_outputs_of_another_kind_are_refused(output_activation: str, width: int) -> None:
    with pytest.raises(InvalidInputError, match=output_activation):
        probabilities(np.zeros((4, width)), output_activation, RETURN_LABELS)


def test_output_activation_of_a_strategy() -> None:
    assert output_activation_of(strategy()) == "softmax"
    assert output_activation_of(strategy(**{"model.architecture.output_activation": None})) == "softmax"
    assert output_activation_of(strategy(**{"model.architecture.output_activation": "sigmoid"})) == "sigmoid"


@given(config=configs, seed=st.integers(0, 1_000), first=st.integers(0, 60))
def test_decisions_equal_the_rules_applied_row_by_row(config: DecisionsConfig, seed: int, first: int) -> None:
    indices = np.arange(first, len(BARS) - 3)
    given_classes, given_probabilities = answers(seed, len(indices))
    found = decide(given_classes, given_probabilities, bars=BARS, bar_indices=indices, config=config)
    assert found.dtype == np.int64
    assert found.tolist() == slow_decisions(given_classes, given_probabilities, BARS, indices, config)


@given(config=configs, seed=st.integers(0, 1_000), cut=st.integers(1, 100))
def test_decisions_do_not_change_when_the_future_is_cut_off(config: DecisionsConfig, seed: int, cut: int) -> None:
    indices = np.arange(5, 105)
    given_classes, given_probabilities = answers(seed, len(indices))
    whole = decide(given_classes, given_probabilities, bars=BARS, bar_indices=indices, config=config)
    part = decide(
        given_classes[:cut],
        given_probabilities[:cut],
        bars=BARS.head(5 + cut),
        bar_indices=indices[:cut],
        config=config,
    )
    assert part.tolist() == whole[:cut].tolist()


@given(config=configs, seed=st.integers(0, 1_000), start=st.integers(1, 30))
def test_decisions_do_not_depend_on_how_far_back_the_series_goes(
    config: DecisionsConfig, seed: int, start: int
) -> None:
    indices = np.arange(50, 110)
    given_classes, given_probabilities = answers(seed, len(indices))
    whole = decide(given_classes, given_probabilities, bars=BARS, bar_indices=indices, config=config)
    later = BARS.rows(slice(start, None))
    part = decide(given_classes, given_probabilities, bars=later, bar_indices=indices - start, config=config)
    assert part.tolist() == whole.tolist()


@given(config=configs, seed=st.integers(0, 1_000))
def test_decision_is_the_class_or_hold(config: DecisionsConfig, seed: int) -> None:
    given_classes, given_probabilities = answers(seed, 100)
    found = decide(given_classes, given_probabilities, bars=BARS, bar_indices=np.arange(100), config=config)
    assert np.all((found == given_classes) | (found == HOLD))


def test_without_conditions_every_class_is_the_decision() -> None:
    given_classes, given_probabilities = answers(1, 100)
    found = decide(given_classes, given_probabilities, bars=BARS, bar_indices=np.arange(100), config=DecisionsConfig())
    assert found.tolist() == given_classes.tolist()


def test_signal_whose_probability_is_the_threshold_counts() -> None:
    sure = np.array([[0.6, 0.3, 0.1], [0.59, 0.31, 0.1]])
    found = decide(
        np.array([BUY, BUY]), sure, bars=BARS, bar_indices=np.arange(2), config=config_of(confidence_threshold=0.6)
    )
    assert found.tolist() == [BUY, HOLD]


def test_trading_hours_are_of_the_close_and_may_go_over_midnight() -> None:
    """The first bar opens at 22:00 and closes at 23:00."""
    buys, sure = np.zeros(8, dtype=np.int64), np.tile([1.0, 0.0, 0.0], (8, 1))
    config = config_of(filters={"trading_hours": {"start": 23, "end": 2}})
    found = decide(buys, sure, bars=BARS, bar_indices=np.arange(8), config=config)
    assert found.tolist() == [BUY, BUY, BUY, HOLD, HOLD, HOLD, HOLD, HOLD]


def test_volume_filter_needs_twenty_bars_and_counts_the_row_itself() -> None:
    level = np.full(25, 10.0)
    bars = Bars("X", "1h", BARS.times[:25], BARS.open[:25], BARS.high[:25], BARS.low[:25], BARS.close[:25], level)
    buys, sure = np.zeros(25, dtype=np.int64), np.tile([1.0, 0.0, 0.0], (25, 1))
    found = decide(buys, sure, bars=bars, bar_indices=np.arange(25), config=config_of(filters={"volume_filter": True}))
    assert found.tolist() == [HOLD] * 19 + [BUY] * 6


decision_lists = st.lists(st.integers(0, 2), max_size=40)


@given(decisions=decision_lists, aware=st.booleans())
def test_positions_equal_the_rule_applied_row_by_row(decisions: list[int], aware: bool) -> None:
    expected, position = [], 0
    for decision in decisions:
        if decision != HOLD:
            position = 1 if decision == BUY else -1
        elif not aware:
            position = 0
        expected.append(position)
    found = positions(np.array(decisions, dtype=np.int64), aware)
    assert found.dtype == np.int8
    assert found.tolist() == expected


@given(seed=st.integers(0, 1_000))
def test_dropping_repeated_signals_changes_no_position(seed: int) -> None:
    given_classes, given_probabilities = answers(seed, 100)
    aware = decide(
        given_classes,
        given_probabilities,
        bars=BARS,
        bar_indices=np.arange(100),
        config=config_of(position_awareness=True),
    )
    assert positions(aware, True).tolist() == positions(given_classes, True).tolist()
    signals = aware[aware != HOLD]
    assert np.all(signals[1:] != signals[:-1])
