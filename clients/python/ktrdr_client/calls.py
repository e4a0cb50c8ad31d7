"""One unary call: its deadline, its errors as KtrdrError, its retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

import grpc

from ktrdr_core.errors import UnavailableError
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


async def call_unary(
    method: UnaryMethod[Request, Response], request: Request, *, timeout_s: float, retry_for_s: float = 0.0
) -> Response:
    """Call with a deadline; retry what may be retried.

    Args:
        method: The stub's method.
        request: The request; must be safe to send again if `retry_for_s` is above 0.
        timeout_s: Deadline of each try.
        retry_for_s: How long UNAVAILABLE and a missed deadline are retried, with exponential backoff and jitter.

    Raises:
        KtrdrError: What the service answered, or UnreachableError.
    """
    give_up_at = time.monotonic() + retry_for_s
    delay_s = _FIRST_DELAY_S
    while True:
        try:
            return await method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            problem = from_rpc_error(error)
            is_late = isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if not (is_late or isinstance(problem, UnavailableError)) or time.monotonic() + delay_s > give_up_at:
                raise problem from None
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
        delay_s = min(delay_s * 2, _MAX_DELAY_S)
