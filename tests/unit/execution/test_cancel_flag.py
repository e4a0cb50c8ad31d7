"""The cancel flag and the worker's token over it."""

from __future__ import annotations

import asyncio

import pytest

from ktrdr_core.domain.cancellation import CancellationToken, raise_if_cancelled
from ktrdr_core.errors import CancellationError
from ktrdr_core.execution.cancel_flag import CancelFlag, FlagToken, Want
from tests.kit.eventually import PATIENCE_S


def test_the_flag_token_is_a_cancellation_token() -> None:
    assert isinstance(FlagToken(CancelFlag()), CancellationToken)


def test_the_token_shows_what_the_flag_wants() -> None:
    flag = CancelFlag()
    token = FlagToken(flag)
    raise_if_cancelled(token)
    flag.want = Want.STOP_WITH_CHECKPOINT
    assert (token.is_cancelled(), token.is_cancelled_requested, token.save_checkpoint) == (True, True, True)
    flag.want = Want.CANCEL
    assert (token.is_cancelled(), token.save_checkpoint) == (True, False)
    with pytest.raises(CancellationError):
        raise_if_cancelled(token)


def test_the_first_reason_stays() -> None:
    token = FlagToken(CancelFlag())
    token.cancel("first")
    token.cancel("second")
    assert token.reason == "first"


async def test_a_coroutine_is_woken_by_the_flag() -> None:
    flag = CancelFlag()
    waiting = asyncio.create_task(FlagToken(flag).wait_for_cancellation())
    await asyncio.sleep(0)
    assert not waiting.done()
    flag.want = Want.CANCEL
    await asyncio.wait_for(waiting, timeout=PATIENCE_S)
