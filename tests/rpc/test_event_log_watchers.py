"""The log under many watchers, slow ones, and the clock."""

from __future__ import annotations

import asyncio
import time

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.rpc.event_log import THROTTLE_S, EventLog
from tests.kit.event_log import Shelf, batch, collected, epoch, sequences, state


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

    assert [await anext(watching) for _ in range(3)] == [[], [], []]
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
