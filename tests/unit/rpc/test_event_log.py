"""The log: nothing missed, nothing twice, stored before shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ktrdr_core.domain.progress import BatchDetail, ProgressEvent, WarningDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import DrainingError, IllegalStateError, InvalidInputError
from ktrdr_core.rpc.event_log import MAX_EVENTS_PER_YIELD, EventLog
from tests.kit.event_log import NOW, Shelf, batch, collected, epoch, sequences, state


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

    assert await anext(log.watch(0, heartbeat_s=0.01)) == ()


async def test_a_batch_event_is_shown_once() -> None:
    log = EventLog(Shelf())
    watching = log.watch(heartbeat_s=0.01)
    await log.append(batch(1))
    assert len(await anext(watching)) == 1

    assert await anext(watching) == ()


async def test_a_long_log_comes_in_large_lists() -> None:
    log = EventLog(Shelf(), _numbered(2 * MAX_EVENTS_PER_YIELD + 1))

    sizes = [len(events) async for events in _until_quiet(log)]

    assert sizes == [MAX_EVENTS_PER_YIELD, MAX_EVENTS_PER_YIELD, 1]


async def _until_quiet(log: EventLog) -> AsyncIterator[tuple[ProgressEvent, ...]]:
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


async def test_the_terminal_event_does_not_wait_for_the_throttle() -> None:
    log = EventLog(Shelf())
    watching = log.watch(throttle_s=3_600.0, heartbeat_s=3_600.0)
    await log.append(state(TrainingState.CANCELLING))
    assert sequences(await anext(watching)) == [1]
    rest = asyncio.ensure_future(collected(watching))
    await asyncio.sleep(0)

    await log.append(state(TrainingState.CANCELLED))

    assert sequences(await asyncio.wait_for(rest, 10)) == [2]


async def test_watchers_at_the_same_place_get_the_same_tuple_whatever_it_has() -> None:
    log = EventLog(Shelf())
    for number in (1, 2):
        await log.append(epoch(number))
    watchers = [log.watch(), log.watch(), log.watch(1)]

    first, second, later = [await anext(watching) for watching in watchers]
    assert first is second
    assert (sequences(first), sequences(later)) == ([1, 2], [2])

    await log.append(batch(1))
    first, second, later = [await anext(watching) for watching in watchers]
    assert first is second is later
    assert [event.detail for event in first] == [batch(1).detail]

    await log.append(batch(2))
    (newest,) = await anext(watchers[0])
    assert newest.detail == batch(2).detail


async def test_a_watcher_that_comes_in_between_gets_what_it_lacks_and_no_more() -> None:
    log = EventLog(Shelf())
    early = log.watch()
    await log.append(epoch(1))
    await log.append(batch(1))
    late = log.watch()

    assert [event.sequence for event in await anext(late)] == [1]  # that batch was shown before it came
    assert [event.is_durable for event in await anext(early)] == [True, False]
