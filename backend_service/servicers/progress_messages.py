"""Progress as messages, made once for all watchers that are at the same place of a log."""

from __future__ import annotations

from collections.abc import Callable

from ktrdr.training.v1 import training_pb2
from ktrdr.training.v1 import training_service_pb2 as pb

from backend_service.operations.training_record import TrainingSnapshot
from backend_service.progress_relay import ProgressUpdate
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.wire.to_proto import events_to_proto


class ProgressMessages:
    """Makes the messages of progress streams. Nobody may change one it returned.

    The watchers of a training are woken together, so of the messages without a snapshot only the last is kept.

    Args:
        training_to_proto: Makes the message of a training.
    """

    def __init__(self, training_to_proto: Callable[[TrainingSnapshot], training_pb2.Training]) -> None:
        self._training_to_proto = training_to_proto
        self._events: tuple[ProgressEvent, ...] = ()
        self._message = pb.StreamProgressResponse()

    def build(self, update: ProgressUpdate) -> pb.StreamProgressResponse:
        """Return the message of an update."""
        if update.snapshot is not None:
            return pb.StreamProgressResponse(
                training=self._training_to_proto(update.snapshot), events=events_to_proto(update.events)
            )
        if update.events is not self._events:
            self._events = update.events
            self._message = pb.StreamProgressResponse(events=events_to_proto(update.events))
        return self._message
