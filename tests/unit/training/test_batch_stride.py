from __future__ import annotations

import pytest

from ktrdr_core.training.batch_stride import FIRST_STRIDE, BatchStride


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def batches_until_update(stride: BatchStride, clock: FakeClock, batch_s: float) -> int:
    """Run batches of `batch_s` seconds until an update is due, mark it, and return how many there were."""
    count = 0
    due = False
    while not due:
        clock.now_s += batch_s
        count += 1
        due = stride.count_batch()
    stride.mark_update()
    return count


def test_first_update_comes_after_ten_batches() -> None:
    clock = FakeClock()
    assert FIRST_STRIDE == 10
    assert batches_until_update(BatchStride(clock), clock, 0.001) == 10


def test_stride_doubles_while_updates_come_too_often_and_stays_near_the_aim() -> None:
    clock = FakeClock()
    stride = BatchStride(clock)
    counts = [batches_until_update(stride, clock, 0.001) for _ in range(8)]
    assert counts == [10, 20, 40, 80, 160, 160, 160, 160]


def test_stride_halves_while_updates_come_too_seldom() -> None:
    clock = FakeClock()
    stride = BatchStride(clock)
    assert [batches_until_update(stride, clock, 0.2) for _ in range(5)] == [10, 5, 2, 2, 2]


def test_stride_never_falls_below_one_batch() -> None:
    clock = FakeClock()
    stride = BatchStride(clock)
    assert [batches_until_update(stride, clock, 5.0) for _ in range(6)] == [10, 5, 2, 1, 1, 1]


@pytest.mark.parametrize(("elapsed_s", "stride_after"), [(0.149, 20), (0.1501, 10), (0.4499, 10), (0.451, 5)])
def test_limits_are_150_and_450_ms(elapsed_s: float, stride_after: int) -> None:
    clock = FakeClock()
    clock.now_s = 0.0
    stride = BatchStride(clock)
    clock.now_s = elapsed_s
    stride.mark_update()
    assert stride.stride == stride_after


def test_update_answers_the_mean_time_of_a_batch() -> None:
    clock = FakeClock()
    stride = BatchStride(clock)
    for _ in range(4):
        stride.count_batch()
    clock.now_s += 2.0
    assert stride.mark_update() == pytest.approx(0.5)
