"""The log: nothing missed, nothing twice, stored before shown, and a watcher that sleeps costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from ktrdr_core.domain.progress import BatchDetail, EpochDetail, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import DrainingError, IllegalStateError, InvalidInputError
from ktrdr_core.rpc.event_log import MAX_EVENTS_PER_YIELD, THROTTLE_S, EventLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Shelf:
    """A store that remembers, and refuses when told to."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def __call__(self, event: ProgressEvent) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.events.append(event)


def epoch(number: int) -> ProgressEvent:
    return ProgressEvent(
        create_time=NOW,
        attempt=1,
        overall=number / 1e6,
        detail=EpochDetail(
            epoch=number,
            total_epochs=1_000,
            train_loss=1.0,
            train_accuracy=0.5,
            val_loss=1.0,
            val_accuracy=0.5,
            learning_rate=0.01,
            rows_per_second=1.0,
        ),
    )


def batch(number: int) -> ProgressEvent:
    return ProgressEvent(
        create_time=NOW,
        attempt=1,
        detail=BatchDetail(
            epoch=1,
            total_epochs=1,
            batch=number,
            total_batches_per_epoch=1_000,
            train_loss=1.0,
            train_accuracy=0.5,
            learning_rate=0.01,
            rows_per_second=1.0,
        ),
    )


def state(value: TrainingState) -> ProgressEvent:
    return ProgressEvent(create_time=NOW, attempt=1, detail=StateDetail(state=value))


async def collected(events: AsyncIterator[list[ProgressEvent]]) -> list[ProgressEvent]:
    return [event async for batch_of in events for event in batch_of]


def sequences(events: list[ProgressEvent]) -> list[int]:
    return [event.sequence for event in events if event.is_durable]


async def test_durable_events_are_numbered_without_gaps_and_stored_in_order() -> None:
    shelf = Shelf()
    log = EventLog(shelf)

    await asyncio.gather(*(log.append(epoch(number)) for number in range(1, 51)))

    assert [event.sequence for event in shelf.events] == list(range(1, 51))
    assert log.events == tuple(shelf.events)
    assert log.last_sequence == log.summary.sequence == 50


@pytest.mark.parametrize("after", [0, 1, 3, 4])
async def test_a_watcher_who_returns_misses_nothing_and_sees_nothing_twice(after: int) -> None:
    log = EventLog(Shelf())
    for number in (1, 2, 3):
        await log.append(epoch(number))
    await log.append(state(TrainingState.FAILED))

    assert sequences(await collected(log.watch(after))) == list(range(after + 1, 5))


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


async def test_batch_events_are_conflated_and_durable_ones_never() -> None:
    log = EventLog(Shelf())
    watching = log.watch()
    first = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    for number in range(1, 101):
        await log.append(batch(number))
    await log.append(epoch(1))
    for number in range(101, 201):
        await log.append(batch(number))
    await log.append(state(TrainingState.CANCELLED))

    seen = [*await first, *await collected(watching)]

    assert sequences(seen) == [1, 2]
    assert len(seen) < 10


async def test_the_newest_batch_event_is_shown_with_the_sequence_before_it() -> None:
    log = EventLog(Shelf())
    await log.append(epoch(1))
    watching = log.watch(1)
    await log.append(batch(1))
    await log.append(batch(2))

    (event,) = await anext(watching)

    assert isinstance(event.detail, BatchDetail)
    assert (event.sequence, event.detail.batch) == (1, 2)
    assert log.summary.batch == event.detail


async def test_a_batch_event_is_not_shown_after_the_durable_event_it_led_to() -> None:
    log = EventLog(Shelf())
    watching = log.watch()
    await log.append(batch(1))
    await log.append(epoch(1))

    (event,) = await anext(watching)

    assert event.sequence == 1


async def test_a_batch_event_from_before_the_watch_is_not_repeated() -> None:
    log = EventLog(Shelf())
    await log.append(batch(1))

    assert await anext(log.watch(0, heartbeat_s=0.01)) == []


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


async def test_a_long_log_comes_in_large_lists() -> None:
    log = EventLog(Shelf(), _numbered(2 * MAX_EVENTS_PER_YIELD + 1))

    sizes = [len(events) async for events in _until_quiet(log)]

    assert sizes == [MAX_EVENTS_PER_YIELD, MAX_EVENTS_PER_YIELD, 1]


async def _until_quiet(log: EventLog) -> AsyncIterator[list[ProgressEvent]]:
    async for events in log.watch(heartbeat_s=0.01):
        if not events:
            return
        yield events


def _numbered(count: int) -> list[ProgressEvent]:
    return [
        ProgressEvent(sequence=number, create_time=NOW, attempt=1, detail=WarningDetail(reason="R", message="m"))
        for number in range(1, count + 1)
    ]


async def test_an_event_the_store_refuses_is_not_shown_and_its_number_is_used_again() -> None:
    shelf = Shelf()
    log = EventLog(shelf)
    await log.append(epoch(1))
    shelf.error = OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        await log.append(state(TrainingState.FAILED))

    assert (log.last_sequence, log.is_closed, log.summary.state) == (1, False, TrainingState.QUEUED)
    shelf.error = None
    assert (await log.append(epoch(2))).sequence == 2


async def test_an_appender_cancelled_while_storing_does_not_tear_store_and_log_apart() -> None:
    shelf = Shelf()
    shelf.gate = asyncio.Event()
    log = EventLog(shelf)
    appending = asyncio.create_task(log.append(epoch(1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    assert log.last_sequence == 0

    shelf.gate.set()
    await log.append(epoch(2))

    assert [event.sequence for event in shelf.events] == [1, 2]
    assert log.events == tuple(shelf.events)


async def test_nothing_is_shown_before_it_is_stored() -> None:
    shelf = Shelf()
    shelf.gate = asyncio.Event()
    log = EventLog(shelf)
    watching = asyncio.ensure_future(anext(log.watch()))
    appending = asyncio.create_task(log.append(epoch(1)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not watching.done()

    shelf.gate.set()

    assert [event.sequence for event in await watching] == [1]
    await appending


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
    await anext(watching)
    first = time.monotonic()
    await log.append(epoch(2))
    await log.append(epoch(3))

    assert sequences(await anext(watching)) == [2, 3]
    assert time.monotonic() - first >= THROTTLE_S * 0.9


async def test_an_ended_log_takes_nothing_more() -> None:
    log = EventLog(Shelf())
    await log.append(state(TrainingState.COMPLETED))

    for late in (epoch(1), batch(1)):
        with pytest.raises(IllegalStateError, match="COMPLETED"):
            await log.append(late)
    assert log.last_sequence == 1


async def test_a_reloaded_log_goes_on_where_it_was() -> None:
    shelf = Shelf()
    log = EventLog(shelf, _numbered(3))

    assert log.last_sequence == 3
    assert (await log.append(epoch(1))).sequence == 4


async def test_a_stored_log_with_a_gap_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="gap"):
        EventLog(Shelf(), [_numbered(2)[1]])


@pytest.mark.parametrize("after", [-1, 1])
async def test_a_sequence_nobody_has_seen_is_refused(after: int) -> None:
    with pytest.raises(InvalidInputError, match="after_sequence"):
        EventLog(Shelf()).watch(after)


async def test_overall_progress_never_goes_back_within_an_attempt() -> None:
    log = EventLog(Shelf())
    await log.append(epoch(500_000))

    assert (await log.append(epoch(100_000))).overall == 0.5


async def test_an_interrupted_log_ends_its_watchers_after_what_is_there() -> None:
    log = EventLog(Shelf())
    await log.append(epoch(1))
    watching = log.watch()
    log.interrupt(DrainingError("stopping"))

    assert sequences(await anext(watching)) == [1]
    with pytest.raises(DrainingError):
        await anext(watching)
    assert (await log.append(epoch(2))).sequence == 2


async def test_a_thousand_watchers_all_see_everything() -> None:
    log = EventLog(Shelf())
    watchers = [asyncio.create_task(collected(log.watch())) for _ in range(1_000)]
    await asyncio.sleep(0)
    for number in range(1, 6):
        await log.append(epoch(number))
    await log.append(state(TrainingState.COMPLETED))

    assert all(sequences(seen) == [1, 2, 3, 4, 5, 6] for seen in await asyncio.gather(*watchers))
