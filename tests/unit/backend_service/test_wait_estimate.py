from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from backend_service.orchestration.wait_estimate import NUM_ENOUGH, NUM_KEPT, WaitEstimate


def estimate_of(*durations_s: float, needs: str = "local") -> WaitEstimate:
    estimate = WaitEstimate()
    for duration_s in durations_s:
        estimate.record(needs, duration_s)
    return estimate


def simulated_start_s(ends_s: Sequence[float], num_free: int, position: int, duration_s: float) -> float:
    """When the training at a position begins, if the runs under way end at `ends_s`."""
    slots = sorted([*ends_s, *[0.0] * num_free])
    for _ in range(position):
        begin_s = slots.pop(0)
        slots.append(begin_s + duration_s)
        slots.sort()
    return begin_s


@pytest.mark.parametrize("num_busy", [0, 2, 3, 4])
@pytest.mark.parametrize("position", [1, 2, 4, 5, 9, 30])
def test_estimate_is_the_mean_of_a_simulation(num_busy: int, position: int) -> None:
    rng = random.Random(position)
    duration_s, num_slots, num_tries = 60.0, 4, 2_000
    starts_s = [
        simulated_start_s(
            [rng.uniform(0, duration_s) for _ in range(num_busy)], num_slots - num_busy, position, duration_s
        )
        for _ in range(num_tries)
    ]
    estimated_s = estimate_of(60, 60, 60).wait_s(position, "local", num_slots=num_slots, num_busy=num_busy)
    assert estimated_s == pytest.approx(sum(starts_s) / num_tries, rel=0.03, abs=0.5)


def test_free_slots_mean_no_wait() -> None:
    estimate = estimate_of(60, 60, 60)
    assert [estimate.wait_s(position, "local", num_slots=3, num_busy=1) for position in (1, 2)] == [0.0, 0.0]
    assert (estimate.wait_s(3, "local", num_slots=3, num_busy=1) or 0) > 0


def test_estimate_is_unknown_after_too_few_runs() -> None:
    estimate = estimate_of(*[60.0] * (NUM_ENOUGH - 1))
    assert estimate.wait_s(1, "local", num_slots=1, num_busy=1) is None
    estimate.record("local", 60)
    assert estimate.wait_s(1, "local", num_slots=1, num_busy=1) == 30.0


def test_estimate_is_unknown_without_a_slot() -> None:
    assert estimate_of(60, 60, 60).wait_s(1, "local", num_slots=0, num_busy=0) is None


def test_runs_with_equal_needs_count_once_there_are_enough() -> None:
    estimate = estimate_of(60, 60, 60, 60, 60, 60)
    for _ in range(NUM_ENOUGH - 1):
        estimate.record("gpu", 6_000)
    assert estimate.wait_s(1, "gpu", num_slots=1, num_busy=1) == 30.0
    estimate.record("gpu", 6_000)
    assert estimate.wait_s(1, "gpu", num_slots=1, num_busy=1) == 3_000.0
    assert estimate.wait_s(1, "local", num_slots=1, num_busy=1) == 30.0


def test_one_endless_run_does_not_change_what_is_typical() -> None:
    assert estimate_of(60, 60, 60, 1e9).wait_s(1, "local", num_slots=1, num_busy=1) == 30.0


def test_old_runs_are_forgotten() -> None:
    estimate = estimate_of(*[1e6] * NUM_KEPT, *[60.0] * NUM_KEPT)
    assert estimate.wait_s(1, "local", num_slots=1, num_busy=1) == 30.0
