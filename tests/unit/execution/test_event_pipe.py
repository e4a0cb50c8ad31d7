"""The event pipe: whole messages in order, batch events dropped when it is full, durable ones never."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import BatchDetail, ProgressEvent, WarningDetail
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.execution.event_pipe import MessageKind, MessageWriter, frame, read_checkpoint, read_messages
from tests.kit.eventually import PATIENCE_S


def warning(text: str) -> ProgressEvent:
    return ProgressEvent(create_time=utc_now(), detail=WarningDetail(reason="TEST", message=text))


def batch() -> ProgressEvent:
    detail = BatchDetail(
        epoch=1,
        total_epochs=1,
        batch=1,
        total_batches_per_epoch=1,
        train_loss=1.0,
        train_accuracy=0.5,
        learning_rate=0.1,
        rows_per_second=1.0,
    )
    return ProgressEvent(create_time=utc_now(), detail=detail)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    for fd in (read_fd, write_fd):
        try:
            os.close(fd)
        except OSError:
            continue


async def read_all(data: bytes) -> list[tuple[MessageKind, bytes]]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return [message async for message in read_messages(reader)]


async def test_messages_come_out_as_they_went_in(pipe: tuple[int, int]) -> None:
    writer = MessageWriter(pipe[1])
    first, second = warning("one"), warning("two ä")
    assert writer.send_event(first)
    assert writer.send_event(second)
    writer.send_outcome(b"{}")
    messages = await read_all(os.read(pipe[0], 65536))
    assert [kind for kind, _ in messages] == [MessageKind.EVENT, MessageKind.EVENT, MessageKind.OUTCOME]
    assert [ProgressEvent.from_json(payload) for _, payload in messages[:2]] == [first, second]
    assert messages[2][1] == b"{}"


async def test_a_checkpoint_comes_out_as_it_went_in_after_what_was_sent_before(pipe: tuple[int, int]) -> None:
    writer = MessageWriter(pipe[1])
    checkpoint = SessionCheckpoint(path=Path("/some/where ä.safetensors"), epoch=3, size_bytes=4, sha256="ab" * 32)
    writer.send_event(warning("before"))
    writer.send_checkpoint(checkpoint)
    (_, _), (kind, payload) = await read_all(os.read(pipe[0], 65536))
    assert kind is MessageKind.CHECKPOINT
    assert read_checkpoint(payload) == checkpoint


async def test_a_message_cut_off_by_the_writers_death_is_left_out() -> None:
    whole = frame(MessageKind.EVENT, b"abc")
    for cut in range(1, len(whole)):
        assert await read_all(whole + whole[:cut]) == [(MessageKind.EVENT, b"abc")]


def fill(fd: int) -> None:
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(fd, True)


def test_a_batch_event_is_dropped_while_the_pipe_is_full(pipe: tuple[int, int]) -> None:
    writer = MessageWriter(pipe[1])
    fill(pipe[1])
    assert not writer.send_event(batch())
    assert writer.num_dropped == 1
    os.read(pipe[0], 65536)
    assert writer.send_event(batch())


def test_a_durable_event_waits_for_room_and_is_written_whole(pipe: tuple[int, int]) -> None:
    writer = MessageWriter(pipe[1])
    fill(pipe[1])
    event = warning("w" * 200_000)
    sender = threading.Thread(target=writer.send_event, args=(event,))
    sender.start()
    received = b""
    expected = frame(MessageKind.EVENT, event.to_json().encode())
    while not received.endswith(expected):
        received += os.read(pipe[0], 65536)
    sender.join(timeout=PATIENCE_S)
    assert not sender.is_alive()
