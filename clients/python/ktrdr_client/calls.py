"""One unary call: its deadline, its errors as KtrdrError, its retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import grpc

from ktrdr_core.errors import CancellationError, KtrdrError, NoSlotError, UnavailableError
from ktrdr_core.rpc.errors import from_rpc_error

Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)
Request = TypeVar("Request")
Response = TypeVar("Response")

_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 1.0


class UnaryMethod(Protocol[Request_contra, Response_co]):
    """A stub's unary method; `__call__` answers an awaitable."""

    def __call__(self, request: Request_contra, /, *, timeout: float | None = None) -> Awaitable[Response_co]: ...


def problem_of(error: grpc.RpcError) -> KtrdrError:
    """Return the error that a call ended with.

    A call that we did not cancel and that ends CANCELLED was cut off as its service stopped: it may be made again.
    """
    problem = from_rpc_error(error)
    if isinstance(problem, CancellationError):
        return UnavailableError(f"the service stopped while it was asked ({problem.message}); try again")
    return problem


async def call_unary(
    method: UnaryMethod[Request, Response],
    request: Request,
    *,
    timeout_s: float,
    retry_for_s: float = 0.0,
    waits_for_slot: bool = False,
    on_retry: Callable[[KtrdrError], None] | None = None,
) -> Response:
    """Call with a deadline; retry what may be retried.

    Args:
        method: The stub's method.
        request: The request; must be safe to send again if `retry_for_s` is above 0.
        timeout_s: Deadline of each try.
        retry_for_s: How long UNAVAILABLE and a missed deadline are retried, with exponential backoff and jitter.
        waits_for_slot: Retry NoSlotError too, each time after the pause the service asked for, unless that is past
            `retry_for_s`.
        on_retry: Called with the reason before each pause.

    Raises:
        KtrdrError: What the service answered, or UnreachableError.
    """
    give_up_at = time.monotonic() + retry_for_s
    delay_s = _FIRST_DELAY_S
    while True:
        try:
            return await method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            problem = problem_of(error)
            if waits_for_slot and isinstance(problem, NoSlotError):
                pause_s = problem.retry_after_s * random.uniform(1.0, 1.2)  # never earlier than told
            elif isinstance(problem, UnavailableError):
                pause_s = delay_s * random.uniform(0.5, 1.0)
                delay_s = min(delay_s * 2, _MAX_DELAY_S)
            else:
                raise problem from None
            if time.monotonic() + pause_s > give_up_at:
                raise problem from None
        if on_retry is not None:
            on_retry(problem)
        await asyncio.sleep(pause_s)
