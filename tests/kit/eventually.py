"""Wait for a condition with a limit, instead of sleeping a guessed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

PATIENCE_S = 150.0
"""How long a test waits for what must come, on a machine that does ten other things; never what a test measures."""


@overload
async def eventually(
    probe: Callable[[], Awaitable[T]], *, timeout_s: float = ..., every_s: float = ..., what: str = ...
) -> T: ...
@overload
async def eventually(probe: Callable[[], T], *, timeout_s: float = ..., every_s: float = ..., what: str = ...) -> T: ...
async def eventually(
    probe: Callable[[], Awaitable[T] | T],
    *,
    timeout_s: float = PATIENCE_S,
    every_s: float = 0.01,
    what: str = "condition",
) -> T:
    """Return the first truthy answer of `probe`; raise AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        value = await answer if isinstance(answer, Awaitable) else answer
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s; last answer: {value!r}"
        await asyncio.sleep(every_s)
