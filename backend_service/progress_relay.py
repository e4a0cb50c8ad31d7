"""Progress of a training to one watcher: a cursor in its log."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from backend_service.operations.training_record import TrainingRecord, TrainingSnapshot
from backend_service.operations.trainings import Trainings
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.errors import DrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressUpdate:
    """What a watcher gets at once: events, oldest first, and the training in the first and in the last update.

    Watchers at the same place of a log get the same tuple of events.
    """

    events: tuple[ProgressEvent, ...] = ()
    snapshot: TrainingSnapshot | None = None


class ProgressRelay:
    """Lets any number of watchers follow trainings.

    Args:
        trainings: Where logs are found.
        heartbeat_s: Quiet time after which an empty update comes.
    """

    def __init__(self, trainings: Trainings, *, heartbeat_s: float = 1.0) -> None:
        self._trainings = trainings
        self._heartbeat_s = heartbeat_s

    def stop(self) -> None:
        """End every stream, so that watchers reconnect elsewhere or later."""
        for record in self._trainings.active:
            record.log.interrupt(DrainingError("the backend is stopping; reconnect with the last sequence you saw"))

    async def watch(self, training_id: str, after_sequence: int) -> AsyncGenerator[ProgressUpdate]:
        """Yield the training now, every durable event after `after_sequence`, batches and heartbeats as they come,
        and last the terminal event with the training as it ended.

        Raises:
            TrainingNotFoundError: There is no such training.
            InvalidInputError: `after_sequence` is above the last sequence.
            DrainingError: The backend stops; reconnect.
        """
        record = self._trainings.find_active(training_id)
        log = await self._trainings.open_log(training_id)
        batches = cast(
            AsyncGenerator[tuple[ProgressEvent, ...]], log.watch(after_sequence, heartbeat_s=self._heartbeat_s)
        )  # a generator, so that it can be closed
        snapshot = await self._trainings.snapshot(training_id)
        yield ProgressUpdate(snapshot=snapshot)
        is_told = False
        async with aclosing(batches):
            async for events in batches:
                is_told = bool(events) and events[-1].terminal_state is not None
                yield ProgressUpdate(events=events, snapshot=_latest(record, snapshot) if is_told else None)
        if not is_told:  # the watcher had seen everything already
            yield ProgressUpdate(snapshot=_latest(record, snapshot))


def _latest(record: TrainingRecord | None, snapshot: TrainingSnapshot) -> TrainingSnapshot:
    """Return the training as it ended, without a thousand watchers asking the store for it at once."""
    return snapshot if record is None else record.snapshot()
