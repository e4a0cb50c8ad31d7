"""Sends one client stream and brings its answer, or the other side's refusal, back.

A grpc.aio client stream that the server refuses early often loses the server's status (grpc/grpc issue 36066), so the
stream runs on gRPC's own threads, which read, compress and write; the event loop only watches.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc

from ktrdr_core.errors import KtrdrError, UnavailableError
from ktrdr_core.rpc.errors import from_rpc_error

IDLE_TIMEOUT_S = 30.0
COMMIT_TIMEOUT_S = 300.0
Request = TypeVar("Request")
Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)
Response = TypeVar("Response")


class ClientStream(Protocol[Request_contra, Response_co]):
    """A client stream of a synchronous stub."""

    def future(self, request_iterator: Iterator[Request_contra], /) -> Any:
        """Start the call; the answer is `result()` of what is returned."""


@dataclass
class SendProgress:
    """What a caller may want to know of a try that did not return.

    Attributes:
        has_sent_all: Every byte was handed over, so the other side may have stored it.
    """

    has_sent_all: bool = False


async def send_stream(
    method: ClientStream[Request, Response],
    messages: Iterator[Request],
    *,
    what: str,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    commit_timeout_s: float = COMMIT_TIMEOUT_S,
    progress: SendProgress | None = None,
) -> Response:
    """Send every message and return the answer.

    Args:
        method: The stub's method, on a channel of `open_sync_channel`.
        messages: Taken on a thread of gRPC, one after another, as the other side takes them.
        what: What is sent, for messages of errors: "upload".
        idle_timeout_s: How long the other side may take no message; there is no limit on the total.
        commit_timeout_s: How long it may take to answer once it has everything.
        progress: Updated also when the try fails or is cancelled.

    Raises:
        KtrdrError: The other side refused, broke off, or took nothing; or `messages` raised it.
        OSError: `messages` raised it.
    """
    loop = asyncio.get_running_loop()
    stream = _Stream(messages, loop.time)
    is_over = asyncio.Event()
    call = method.future(stream)
    call.add_done_callback(lambda _: loop.call_soon_threadsafe(is_over.set))
    try:
        await _watch(stream, is_over, what, idle_timeout_s, commit_timeout_s)
    finally:
        if progress is not None:
            progress.has_sent_all = progress.has_sent_all or stream.is_exhausted
        stream.is_stopped = True
        call.cancel()  # nothing, if it has ended
        await is_over.wait()
    if stream.error is not None:
        raise stream.error
    try:
        response: Response = call.result()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    return response


async def _watch(
    stream: _Stream[Any], is_over: asyncio.Event, what: str, idle_timeout_s: float, commit_timeout_s: float
) -> None:
    loop = asyncio.get_running_loop()
    while not is_over.is_set():
        limit_s = commit_timeout_s if stream.is_exhausted else idle_timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(stream.taken_at + limit_s):
                await is_over.wait()
        if not is_over.is_set() and loop.time() >= stream.taken_at + limit_s:
            told = f"did not confirm the {what}" if stream.is_exhausted else "took no bytes"
            raise UnavailableError(f"the other side {told} for {limit_s:g} s")


class _Stream(Iterator[Request], Generic[Request]):
    """The messages of one try, with what its watcher wants to know of them."""

    def __init__(self, messages: Iterator[Request], clock: Callable[[], float]) -> None:
        self._messages = messages
        self._clock = clock
        self.taken_at = clock()
        self.is_exhausted = False
        self.is_stopped = False
        self.error: OSError | KtrdrError | None = None

    def __next__(self) -> Request:
        self.taken_at = self._clock()
        if self.is_stopped:
            raise StopIteration
        try:
            return next(self._messages)
        except StopIteration:
            self.is_exhausted = True
            raise
        except (OSError, KtrdrError) as error:
            self.error = error
            raise
