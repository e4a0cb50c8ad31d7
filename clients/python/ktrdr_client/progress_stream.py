"""A progress stream that reconnects by itself: no gap, no repeat.

The sequence number does the work: every connection asks for what comes after the last durable event seen. A read
watchdog notices a silent peer (services send a heartbeat each second), whatever keepalive the network lets through.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from ktrdr.training.v1 import progress_event_pb2

from ktrdr_client.calls import problem_of
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.errors import IllegalStateError, InvalidInputError, KtrdrError, UnavailableError, UnreachableError
from ktrdr_core.wire.from_proto import event_from_proto

Response = TypeVar("Response")


@dataclass(frozen=True, kw_only=True)
class ReconnectPolicy:
    """When a stream is given up and opened again.

    Attributes:
        read_timeout_s: Silence after which the connection counts as dead; services send a heartbeat each second.
        first_delay_s: Pause before the first reconnection; doubles each time up to `max_delay_s`, with jitter.
        max_delay_s: Longest pause.
        give_up_after_s: Time without a single response after which UnreachableError is raised.
    """

    read_timeout_s: float = 5.0
    first_delay_s: float = 0.1
    max_delay_s: float = 5.0
    give_up_after_s: float = 120.0

    def delay_s(self, attempt: int) -> float:
        """Return the pause before reconnection number `attempt`, from 0; jitter keeps many watchers apart."""
        delay = min(self.first_delay_s * 2.0 ** min(attempt, 16), self.max_delay_s)
        return delay * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class ProgressChunk:
    """One response of a progress stream, free of its proto.

    Attributes:
        events: Events, oldest first; empty for a heartbeat.
        is_ended: Whether the log is known to have ended at `last_sequence`.
        last_sequence: Sequence of the log's last durable event; 0 where the response does not say.
    """

    events: Sequence[progress_event_pb2.ProgressEvent]
    is_ended: bool = False
    last_sequence: int = 0


async def reconnecting_progress(
    open_call: Callable[[int], grpc.aio.UnaryStreamCall[Any, Response]],
    read_chunk: Callable[[Response], ProgressChunk],
    *,
    after_sequence: int = 0,
    policy: ReconnectPolicy,
    what: str,
    on_reconnect: Callable[[KtrdrError], None] | None = None,
    on_connect: Callable[[], None] | None = None,
) -> AsyncIterator[ProgressEvent]:
    """Yield every durable event after `after_sequence` once and in order, batch events as they come.

    Args:
        open_call: Opens the stream after a sequence.
        read_chunk: Takes a response apart.
        after_sequence: Last sequence already seen.
        policy: When to reconnect and when to give up.
        what: What is streamed, for messages: "training 4f..".
        on_reconnect: Called with the reason before each pause.
        on_connect: Called when the first response of each connection arrives.

    Raises:
        IllegalStateError: The log ends before the last sequence seen: the service was restored from an older state.
        UnreachableError: Nothing was heard for `policy.give_up_after_s`.
        KtrdrError: What the service answered, if a retry cannot help.
    """
    last_sequence = after_sequence
    attempt = 0
    last_heard = time.monotonic()
    while True:
        call = open_call(last_sequence)
        is_connected = False
        problem: KtrdrError = UnavailableError(f"the progress stream of {what} ended before its last event")
        try:
            while True:
                async with asyncio.timeout(policy.read_timeout_s):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    break
                attempt = 0
                last_heard = time.monotonic()
                if not is_connected and on_connect is not None:
                    on_connect()
                is_connected = True
                chunk = read_chunk(cast(Response, response))
                if 0 < chunk.last_sequence < last_sequence:
                    raise _log_went_back(what, last_sequence, f"at {chunk.last_sequence}")
                for message in chunk.events:
                    event = event_from_proto(message)
                    if event.is_durable:
                        if event.sequence <= last_sequence:
                            continue
                        last_sequence = event.sequence
                    elif event.sequence < last_sequence:
                        continue
                    yield event
                    if event.terminal_state is not None:
                        return
                if chunk.is_ended and chunk.last_sequence <= last_sequence:
                    return
        except TimeoutError:
            problem = UnavailableError(f"{what} was silent for {policy.read_timeout_s:g} s")
        except grpc.RpcError as error:
            problem = problem_of(error)
            if _refuses_sequence(problem) and last_sequence > after_sequence:
                raise _log_went_back(what, last_sequence, "before that") from problem
            if not isinstance(problem, UnavailableError):
                raise problem from None
        finally:
            call.cancel()
        silence_s = time.monotonic() - last_heard
        if silence_s > policy.give_up_after_s:
            raise UnreachableError(
                f"nothing was heard of {what} for {silence_s:.0f} s ({problem.message}); check that the service runs, "
                "then watch again",
            ) from problem
        if on_reconnect is not None:
            on_reconnect(problem)
        await asyncio.sleep(policy.delay_s(attempt))
        attempt += 1


def _refuses_sequence(problem: KtrdrError) -> bool:
    return isinstance(problem, InvalidInputError) and any(each.field == "after_sequence" for each in problem.violations)


def _log_went_back(what: str, seen: int, end: str) -> IllegalStateError:
    return IllegalStateError(
        f"sequence {seen} of {what} was seen, but its history ends {end}: the service was restored from an older "
        "state; watch again from the beginning",
        metadata={"last_sequence_seen": str(seen)},
    )
