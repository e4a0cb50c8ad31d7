"""One cancel reaches threads and coroutines."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ktrdr_core.domain.cancellation import CancellationToken, LocalCancellationToken, raise_if_cancelled
from ktrdr_core.errors import CancellationError
from tests.kit.eventually import PATIENCE_S


def test_local_token_is_a_cancellation_token() -> None:
    assert isinstance(LocalCancellationToken(), CancellationToken)


def test_first_reason_is_kept_and_raised() -> None:
    token = LocalCancellationToken()
    raise_if_cancelled(token)
    token.cancel("changed my mind")
    token.cancel("second")
    assert token.is_cancelled_requested
    with pytest.raises(CancellationError, match="changed my mind"):
        raise_if_cancelled(token)


async def test_cancel_from_a_thread_wakes_a_coroutine() -> None:
    token = LocalCancellationToken()
    waiter = asyncio.create_task(token.wait_for_cancellation())
    await asyncio.sleep(0)
    thread = threading.Thread(target=token.cancel)
    thread.start()
    await asyncio.wait_for(waiter, timeout=PATIENCE_S)
    thread.join()
    await asyncio.wait_for(token.wait_for_cancellation(), timeout=PATIENCE_S)
