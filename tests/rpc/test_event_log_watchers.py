"""The log under many watchers, slow ones, and the clock."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from ktrdr.training.v1 import training_service_pb2 as pb

from ktrdr_core.domain.progress import ProgressEvent, WarningDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.rpc.event_log import THROTTLE_S, EventLog
from ktrdr_core.wire.to_proto import events_to_proto
from tests.kit.event_log import NOW, Shelf, batch, collected, epoch, sequences, state
from tests.kit.grpc_server import channel_to

NUM_EVENTS = 10_000
EVENT_BYTES = 4_000
WINDOW_BYTES = 6 << 20  # what the two ends of a connection may hold between them; the log has seven times as much


async def test_a_watcher_that_breaks_off_anywhere_resumes_exactly_there() -> None:
    log = EventLog(Shelf())
    seen: list[ProgressEvent] = []

    async def watch_in_pieces() -> None:
        while not log.is_closed or seen[-1].sequence < log.last_sequence:
            async for events in log.watch(seen[-1].sequence if seen else 0, heartbeat_s=0.02):
                seen.extend(event for event in events if event.is_durable)
                break

    watcher = asyncio.create_task(watch_in_pieces())
    for number in range(1, 40):
        await log.append(epoch(number))
        await log.append(batch(number))
        if number % 7 == 0:
            await asyncio.sleep(0.003)
    await log.append(state(TrainingState.COMPLETED))
    await watcher

    assert sequences(seen) == list(range(1, 41))


async def test_a_stuck_watcher_holds_nobody_up_and_keeps_nothing() -> None:
    log = EventLog(Shelf())
    stuck = log.watch()
    await log.append(epoch(1))
    await anext(stuck)

    for number in range(2, 2_000):
        await log.append(epoch(number))
        await log.append(batch(number))
    await log.append(state(TrainingState.COMPLETED))

    assert sequences(await collected(log.watch())) == list(range(1, 2_001))
    assert sequences(await collected(stuck)) == list(range(2, 2_001))


async def test_a_quiet_log_beats() -> None:
    log = EventLog(Shelf())
    begin = time.monotonic()
    watching = log.watch(heartbeat_s=0.02)

    assert [await anext(watching) for _ in range(3)] == [(), (), ()]
    assert time.monotonic() - begin >= 0.06


async def test_events_come_at_least_5_ms_apart_and_the_first_at_once() -> None:
    log = EventLog(Shelf())
    watching = log.watch()
    await log.append(epoch(1))
    first = time.monotonic()
    await anext(watching)
    await log.append(epoch(2))
    await log.append(epoch(3))

    assert sequences(await anext(watching)) == [2, 3]
    assert time.monotonic() - first >= THROTTLE_S * 0.9


async def test_a_thousand_watchers_all_see_everything() -> None:
    log = EventLog(Shelf())
    watchers = [asyncio.create_task(collected(log.watch())) for _ in range(1_000)]
    await asyncio.sleep(0)
    for number in range(1, 6):
        await log.append(epoch(number))
    await log.append(state(TrainingState.COMPLETED))

    assert all(sequences(seen) == [1, 2, 3, 4, 5, 6] for seen in await asyncio.gather(*watchers))


class Watching:
    """Serves a log and counts the bytes each watcher was sent."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.sent: Counter[bytes] = Counter()

    async def stream(self, name: bytes, context: Any) -> AsyncIterator[bytes]:
        async for events in self.log.watch():
            message = pb.StreamProgressResponse(events=events_to_proto(events)).SerializeToString()
            self.sent[name] += len(message)
            yield message

    def add_to(self, server: grpc.aio.Server) -> None:
        stream: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(self.stream)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Log", {"Watch": stream}),))


async def _keep_nothing(event: ProgressEvent) -> None:
    """Store nothing: the log is what is measured."""


async def test_a_connection_that_is_never_read_holds_no_more_than_its_window_and_nobody_up() -> None:
    serving = Watching(EventLog(_keep_nothing))
    async with channel_to(serving.add_to) as channel, channel_to(serving.add_to) as other_channel:
        watch: Any = channel.unary_stream("/test.Log/Watch")
        watch_beside: Any = other_channel.unary_stream("/test.Log/Watch")
        stuck, reading = watch(b"stuck"), watch_beside(b"reading")
        await stuck.wait_for_connection()
        detail = WarningDetail(reason="LONG", message="x" * EVENT_BYTES)

        async def feed() -> None:
            for _ in range(NUM_EVENTS - 1):
                await serving.log.append(ProgressEvent(create_time=NOW, attempt=1, detail=detail))
            await serving.log.append(state(TrainingState.COMPLETED))

        feeding = asyncio.create_task(feed())
        seen: list[int] = []
        async for message in reading:
            seen += [event.sequence for event in pb.StreamProgressResponse.FromString(message).events]
        await feeding
        stuck.cancel()

    assert seen == list(range(1, NUM_EVENTS + 1))
    assert serving.sent[b"reading"] > NUM_EVENTS * EVENT_BYTES
    assert 0 < serving.sent[b"stuck"] < WINDOW_BYTES
