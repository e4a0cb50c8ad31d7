"""What a thousand watchers are told is made once; what each is told alone is not shared."""

from __future__ import annotations

from typing import Any

from ktrdr.training.v1 import training_pb2

from backend_service.progress_relay import ProgressUpdate
from backend_service.servicers.progress_messages import ProgressMessages
from tests.kit.event_log import epoch


def _messages() -> ProgressMessages:
    def to_proto(snapshot: Any) -> training_pb2.Training:
        return training_pb2.Training(training_id=snapshot)

    return ProgressMessages(to_proto)


def _update(**fields: Any) -> ProgressUpdate:
    return ProgressUpdate(**fields)


def test_watchers_at_the_same_place_get_the_same_message() -> None:
    messages = _messages()
    events = (epoch(1), epoch(2))

    first = messages.build(_update(events=events))

    assert messages.build(_update(events=events)) is first
    assert [event.epoch.epoch for event in first.events] == [1, 2]


def test_other_events_are_another_message() -> None:
    messages = _messages()
    first = messages.build(_update(events=(epoch(1),)))

    second = messages.build(_update(events=(epoch(2),)))

    assert ([event.epoch.epoch for event in first.events], [event.epoch.epoch for event in second.events]) == ([1], [2])


def test_an_update_with_a_training_is_made_for_its_watcher() -> None:
    messages = _messages()
    events = (epoch(1),)
    shared = messages.build(_update(events=events))

    alone = messages.build(_update(events=events, snapshot="t1"))

    assert (alone.training.training_id, len(alone.events)) == ("t1", 1)
    assert not messages.build(_update(events=events)).HasField("training")
    assert not shared.HasField("training")


def test_a_heartbeat_is_empty() -> None:
    messages = _messages()
    messages.build(_update(events=(epoch(1),)))

    assert messages.build(_update()).ByteSize() == 0
