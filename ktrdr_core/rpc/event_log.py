"""The log of one training or session: append-only, stored before shown, read by cursors.

There is no queue per watcher: a watcher is a position in the log, and all of them share one wake-up, so a watcher that
does not read costs nothing. Of the transient batch events only the newest is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from ktrdr_core.domain.progress import ProgressEvent, ProgressSummary
from ktrdr_core.errors import IllegalStateError, InvalidInputError, KtrdrError
from ktrdr_core.undisturbed import undisturbed

THROTTLE_S = 0.005
MAX_EVENTS_PER_YIELD = 1_000


class EventLog:
    """Numbers, stores and shows the events of one training or session.

    Args:
        store: Makes one durable event safe; what it raises reaches the appender, and the event is not shown.
        events: The durable events stored so far, numbered 1, 2, 3, ....
    """

    def __init__(self, store: Callable[[ProgressEvent], Awaitable[None]], events: Sequence[ProgressEvent] = ()) -> None:
        self._store = store
        self._events: list[ProgressEvent] = []
        self.summary = ProgressSummary()
        self.is_closed = False
        self._batch: ProgressEvent | None = None
        self._num_batches = 0
        self._last_slice: tuple[ProgressEvent, ...] = ()
        self._last_slice_key = (0, 0, -1)
        self._lock = asyncio.Lock()
        self._commits: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._interruption: KtrdrError | None = None
        for event in events:
            if event.sequence != len(self._events) + 1:
                raise InvalidInputError(
                    f"stored event {len(self._events) + 1} has sequence {event.sequence}; the log has a gap"
                )
            self._show(event)

    @property
    def last_sequence(self) -> int:
        """Sequence of the last durable event; 0 before the first."""
        return len(self._events)

    @property
    def events(self) -> tuple[ProgressEvent, ...]:
        """The durable events, oldest first."""
        return tuple(self._events)

    async def append(self, event: ProgressEvent) -> ProgressEvent:
        """Add an event and return it numbered.

        A durable event is stored, then shown; a batch event is shown at once and replaces the one before. A caller
        that is cancelled meanwhile does not tear the two apart.

        Raises:
            IllegalStateError: The log has ended.
        """
        if not event.is_durable:
            self._check_open()
            shown = replace(self._monotone(event), sequence=self.last_sequence)
            self._batch = shown
            self._num_batches += 1
            self.summary.apply(shown)
            self._wake()
            return shown
        return await undisturbed(self._commit(event), self._commits)

    def watch(
        self, after_sequence: int = 0, *, heartbeat_s: float = 1.0, throttle_s: float = THROTTLE_S
    ) -> AsyncIterator[tuple[ProgressEvent, ...]]:
        """Return a stream of events, some at once: durable ones after `after_sequence`, then what comes, batches
        conflated.

        The first come at once, later ones at least `throttle_s` apart, but the terminal event never waits; an empty
        tuple is a heartbeat. Ends after the terminal event. A batch event shown before the call is not shown again.
        Watchers that are at the same place get the same tuple, so that what is made of it can be made once.

        Args:
            after_sequence: Last sequence the watcher has seen.
            heartbeat_s: Quiet time after which an empty tuple comes.
            throttle_s: Least time between tuples.

        Raises:
            InvalidInputError: `after_sequence` is negative or above the last sequence.
        """
        if not 0 <= after_sequence <= self.last_sequence:
            raise InvalidInputError(
                f"after_sequence must be 0 to {self.last_sequence}, was {after_sequence}; give the last you saw",
                field="after_sequence",
            )
        return self._watch(after_sequence, self._num_batches, heartbeat_s, throttle_s)

    def interrupt(self, error: KtrdrError) -> None:
        """End every watcher, now and later, with `error` once it has seen what is there; the log itself goes on."""
        self._interruption = error
        self._wake()

    async def _watch(
        self, cursor: int, batches_seen: int, heartbeat_s: float, throttle_s: float
    ) -> AsyncIterator[tuple[ProgressEvent, ...]]:
        loop = asyncio.get_running_loop()
        last_send = loop.time()
        next_send = 0.0
        while True:
            changed = self._changed
            if cursor < len(self._events) or self._has_batch_after(batches_seen):
                if next_send > loop.time():
                    await _wait(self._closed, until=next_send)
                fresh = self._slice(cursor, batches_seen)
                cursor = min(cursor + MAX_EVENTS_PER_YIELD, len(self._events))
                is_caught_up = cursor == len(self._events)
                if is_caught_up:
                    batches_seen = self._num_batches
                yield fresh
                last_send = loop.time()
                next_send = last_send + throttle_s if is_caught_up else 0.0
            elif self.is_closed:
                return
            elif self._interruption is not None:
                raise self._interruption
            elif not await _wait(changed, until=last_send + heartbeat_s):
                yield ()
                last_send = loop.time()

    def _has_batch_after(self, batches_seen: int) -> bool:
        return self._batch is not None and batches_seen < self._num_batches

    def _slice(self, cursor: int, batches_seen: int) -> tuple[ProgressEvent, ...]:
        """Return what a watcher at `cursor` sees next: the same tuple for all that are there."""
        end = min(cursor + MAX_EVENTS_PER_YIELD, len(self._events))
        batch = self._batch if end == len(self._events) and self._has_batch_after(batches_seen) else None
        key = (cursor, end, self._num_batches if batch is not None else -1)
        if key != self._last_slice_key:
            self._last_slice_key = key
            self._last_slice = (*self._events[cursor:end], *(() if batch is None else (batch,)))
        return self._last_slice

    async def _commit(self, event: ProgressEvent) -> ProgressEvent:
        async with self._lock:
            self._check_open()
            numbered = replace(self._monotone(event), sequence=self.last_sequence + 1)
            await self._store(numbered)
            self._show(numbered)
            self._wake()
            return numbered

    def _show(self, event: ProgressEvent) -> None:
        self._events.append(event)
        self._batch = None  # it was progress towards this event
        self.summary.apply(event)
        self.is_closed = event.terminal_state is not None
        if self.is_closed:
            self._closed.set()

    def _monotone(self, event: ProgressEvent) -> ProgressEvent:
        if event.attempt != self.summary.attempt:
            return event
        return replace(
            event,
            overall=max(event.overall, self.summary.overall),
            elapsed_s=max(event.elapsed_s, self.summary.elapsed_s),
        )

    def _check_open(self) -> None:
        if self.is_closed:
            raise IllegalStateError(
                f"the log has ended with {self.summary.state}; nothing can be added",
                metadata={"state": str(self.summary.state)},
            )

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _wait(event: asyncio.Event, *, until: float) -> bool:
    """Return whether the event was set by `until`, a time of the loop."""
    try:
        async with asyncio.timeout_at(until):
            await event.wait()
    except TimeoutError:
        return False
    return True
