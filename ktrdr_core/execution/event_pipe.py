"""The pipe from worker to parent: length-prefixed messages, events and checkpoints, one outcome last.

Frame: 4 bytes big-endian length of what follows, 1 byte kind, JSON. Durable events block the worker until the parent
has room; batch events are dropped instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import struct
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict
from enum import IntEnum
from pathlib import Path

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.execution.engine import SessionCheckpoint

_LENGTH = struct.Struct(">I")
# POSIX: a write up to this size to a pipe that polls writable is taken whole at once.
_ATOMIC_BYTES = select.PIPE_BUF


class MessageKind(IntEnum):
    EVENT = 1
    OUTCOME = 2
    CHECKPOINT = 3


def frame(kind: MessageKind, payload: bytes) -> bytes:
    """Return one message as it goes through the pipe."""
    return _LENGTH.pack(len(payload) + 1) + bytes([kind]) + payload


async def read_messages(reader: asyncio.StreamReader) -> AsyncIterator[tuple[MessageKind, bytes]]:
    """Yield (kind, payload) until the writer is gone; a message cut off by its death is left out."""
    while True:
        try:
            (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            message = await reader.readexactly(size)
        except asyncio.IncompleteReadError:
            return
        yield MessageKind(message[0]), message[1:]


def read_checkpoint(payload: bytes) -> SessionCheckpoint:
    """Return what `MessageWriter.send_checkpoint` sent."""
    raw = json.loads(payload)
    return SessionCheckpoint(**raw | {"path": Path(raw["path"])})


class MessageWriter:
    """The worker's end of the pipe; any thread may write.

    Args:
        fd: Write end of the pipe, in blocking mode.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.num_dropped = 0

    def send_event(self, event: ProgressEvent) -> bool:
        """Write a durable event, or a batch event if there is room; return whether it was written."""
        data = frame(MessageKind.EVENT, event.to_json().encode())
        with self._lock:
            if not event.is_durable and (len(data) > _ATOMIC_BYTES or not self._poll.poll(0)):
                self.num_dropped += 1
                return False
            self._write(data)
        return True

    def send_outcome(self, payload: bytes) -> None:
        with self._lock:
            self._write(frame(MessageKind.OUTCOME, payload))

    def send_checkpoint(self, checkpoint: SessionCheckpoint) -> None:
        raw = asdict(checkpoint) | {"path": str(checkpoint.path)}
        with self._lock:
            self._write(frame(MessageKind.CHECKPOINT, json.dumps(raw).encode()))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
