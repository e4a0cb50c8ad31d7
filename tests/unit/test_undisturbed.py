"""Changes that are finished although who asked for them goes away."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from ktrdr_core.undisturbed import undisturbed
from tests.kit.eventually import eventually


async def test_change_goes_on_when_its_caller_is_cancelled_and_is_held_until_its_end() -> None:
    owner: set[asyncio.Task[Any]] = set()
    may_end, has_ended = asyncio.Event(), asyncio.Event()

    async def change() -> None:
        await may_end.wait()
        has_ended.set()

    waiting = undisturbed(change(), owner)
    waiting.cancel()
    assert len(owner) == 1
    may_end.set()
    await has_ended.wait()
    await asyncio.sleep(0)
    assert not owner


async def test_failure_reaches_who_waits() -> None:
    async def change() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await undisturbed(change(), set())


async def test_failure_that_nobody_waits_for_is_no_riddle_for_the_garbage_collector() -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    may_fail = asyncio.Event()
    owner: set[asyncio.Task[Any]] = set()

    async def change() -> None:
        await may_fail.wait()
        raise ValueError("no")

    waiting = undisturbed(change(), owner)
    waiting.cancel()
    await asyncio.sleep(0)
    may_fail.set()
    await eventually(lambda: not owner)
    del waiting
    gc.collect()
    await asyncio.sleep(0)
    assert problems == []
