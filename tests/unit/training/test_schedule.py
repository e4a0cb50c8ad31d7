from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.model_sections import ScheduleConfig
from ktrdr_core.training.schedule import LearningRateSchedule

RATE = 0.02


def make(epochs: int = 12, **config: Any) -> LearningRateSchedule:
    return LearningRateSchedule(ScheduleConfig.model_validate(config), RATE, epochs)


def rates(epochs: int = 12, losses: list[float] | None = None, **config: Any) -> list[float]:
    schedule = make(epochs, **config)
    found = []
    for epoch in range(1, epochs + 1):
        found.append(schedule.rate(epoch))
        schedule.observe(epoch, losses[epoch - 1] if losses else 1.0)
    return found


def slow_rates(epochs: int, warm_up: int, kind: str, factor: float, every: int) -> list[float]:
    """Walk from epoch to epoch, as one would by hand."""
    found = [RATE * (index + 1) / (warm_up + 1) for index in range(warm_up)]
    rate, left = RATE, epochs - warm_up
    for index in range(left):
        if index and (kind == "exponential" or (kind == "step" and index % every == 0)):
            rate *= factor
        if kind == "cosine":
            angle = math.pi * (index / (left - 1)) if left > 1 else 0.0
            rate = RATE * factor + (RATE - RATE * factor) * math.cos(angle / 2) ** 2
        found.append(rate)
    return found


@pytest.mark.parametrize("warm_up", [0, 1, 4])
@pytest.mark.parametrize(
    ("kind", "factor", "every"),
    [("constant", None, None), ("step", 0.5, 3), ("exponential", 0.8, None), ("cosine", 0.1, None)],
)
def test_rates_are_those_of_a_slow_walk(kind: str, factor: float | None, every: int | None, warm_up: int) -> None:
    found = rates(type=kind, factor=factor, every_epochs=every, warm_up_epochs=warm_up)
    assert found == pytest.approx(slow_rates(12, warm_up, kind, factor or 0.0, every or 1), rel=1e-12)


def test_cosine_falls_to_the_factor_in_the_last_epoch_and_to_nothing_without_one() -> None:
    assert rates(type="cosine", factor=0.25)[-1] == pytest.approx(RATE * 0.25)
    assert rates(type="cosine")[-1] == pytest.approx(0.0)
    assert rates(type="cosine")[0] == RATE
    assert rates(1, type="cosine") == [RATE]


def test_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    found = rates(warm_up_epochs=3)
    assert found[:5] == pytest.approx([RATE / 4, RATE / 2, RATE * 3 / 4, RATE, RATE])


def test_plateau_reduces_after_epochs_without_a_lower_loss() -> None:
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, 3.1, 3.2, 3.3, 3.4, 2.0]
    found = rates(10, losses, type="plateau", factor=0.5, every_epochs=2)
    #  1, 2: lower; 3, 4: not, so 5 is halved; 5: lower; 6, 7: not; 8, 9: not
    assert found == [RATE] * 4 + [RATE / 2] * 3 + [RATE / 4] * 2 + [RATE / 8]


def test_plateau_does_not_hold_the_warm_up_against_a_training() -> None:
    found = rates(6, [1.0] * 6, type="plateau", factor=0.5, every_epochs=1, warm_up_epochs=3)
    assert found == pytest.approx([RATE / 4, RATE / 2, RATE * 3 / 4, RATE, RATE / 2, RATE / 4])


@given(
    losses=st.lists(st.floats(0.1, 10), min_size=2, max_size=30),
    cut=st.integers(0, 30),
    factor=st.floats(0.1, 0.9),
    every=st.integers(1, 4),
)
def test_restored_plateau_goes_on_as_if_nothing_had_happened(
    losses: list[float], cut: int, factor: float, every: int
) -> None:
    config = {"type": "plateau", "factor": factor, "every_epochs": every}
    first, second = make(len(losses), **config), make(len(losses), **config)
    for epoch, loss in enumerate(losses, start=1):
        if epoch == cut:
            second.restore(json.loads(json.dumps(first.state())))
        first.observe(epoch, loss)
        if epoch >= cut:
            second.observe(epoch, loss)
    assert cut > len(losses) or first.rate(1) == second.rate(1)


@given(losses=st.lists(st.floats(0.1, 10), min_size=2, max_size=30))
def test_rates_of_a_plateau_never_rise(losses: list[float]) -> None:
    found = rates(len(losses), losses, type="plateau", factor=0.5, every_epochs=2)
    assert all(left >= right > 0 for left, right in itertools.pairwise(found))
