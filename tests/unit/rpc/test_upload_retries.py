"""Tries that get nowhere are further and further apart, the others follow soon."""

from __future__ import annotations

import pytest

from ktrdr_core.errors import UnavailableError, WriteConflictError
from ktrdr_core.rpc.upload_retries import LINGER_S, SOON_S, UploadRetries

DELAYS_S = (1.0, 2.0, 4.0, 8.0)
BROKEN = UnavailableError("cut")
HELD = WriteConflictError("another stream writes this upload")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waits_grow_to_the_last_one_and_stay_there() -> None:
    retries = UploadRetries(DELAYS_S)
    assert [retries.delay_after(BROKEN, has_moved=False) for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert retries.failures == 6


def test_a_try_that_got_on_is_followed_soon_and_the_waits_begin_anew() -> None:
    retries = UploadRetries(DELAYS_S)
    for _ in range(3):
        retries.delay_after(BROKEN, has_moved=False)
    assert retries.delay_after(BROKEN, has_moved=True) == SOON_S
    assert retries.failures == 1
    assert retries.delay_after(BROKEN, has_moved=False) == 2.0


def test_our_own_broken_stream_is_waited_for_a_minute_and_is_no_failure() -> None:
    clock = Clock()
    retries = UploadRetries(DELAYS_S, clock=clock)
    retries.delay_after(BROKEN, has_moved=False)
    clock.now += LINGER_S
    assert retries.is_own_stream(HELD)
    assert [retries.delay_after(HELD, has_moved=False) for _ in range(3)] == [SOON_S] * 3
    assert retries.failures == 1
    clock.now += 0.1
    assert not retries.is_own_stream(HELD)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_stream_of_an_earlier_process_may_hold_the_upload(is_resumed: bool) -> None:
    assert UploadRetries(DELAYS_S, is_resumed=is_resumed).is_own_stream(HELD) is is_resumed
