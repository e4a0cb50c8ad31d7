"""A store for an event log, and events to put into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from ktrdr_core.domain.progress import BatchDetail, EpochDetail, ProgressEvent, StateDetail
from ktrdr_core.domain.states import TrainingState

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


async def collected(events: AsyncIterator[Sequence[ProgressEvent]]) -> list[ProgressEvent]:
    return [event async for batch_of in events for event in batch_of]


def sequences(events: Sequence[ProgressEvent]) -> list[int]:
    return [event.sequence for event in events if event.is_durable]
