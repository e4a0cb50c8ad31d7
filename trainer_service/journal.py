"""The journal of one session: append-only JSON lines that survive a kill at any instant.

The first line says what the session is; each other line is an event, or a fact that only this trainer needs: the
artifact and its result, a new upload target, how it is to end. Lines that change what a restart does are fsynced,
others are written, CANCELLING too: the end follows within moments and is fsynced, and a power cut between the two ends
the worker as well. A line torn by a crash is cut off when the journal is opened again.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from ktrdr_core.clock import from_iso, to_iso
from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.domain.progress import ProgressEvent, StateDetail
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CorruptDataError
from ktrdr_core.logging import get_logger

JOURNAL_NAME = "journal.jsonl"
_VERSION = 1
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A checkpoint that a session goes on from, named by its content.

    Attributes:
        epoch: Last epoch that is in it.
        sha256: Digest of its bytes, hex.
        last_epoch_told: Last epoch that earlier sessions told of; those of the checkpoint after it are told again.
    """

    epoch: int
    sha256: str
    last_epoch_told: int = 0


@dataclass(frozen=True, kw_only=True)
class SessionOrder:
    """What was accepted: the content of a session.

    Attributes:
        session_id: Identity on this trainer.
        training_id: Training it belongs to; "" for one started by hand.
        attempt: Number within its training, from 1.
        spec: What to train.
        upload_target: Address of the ModelService the artifact goes to; "" keeps it here.
        create_time: When it was accepted, UTC.
        resume_from: Checkpoint it goes on from; None begins at the beginning.
    """

    session_id: str
    training_id: str
    attempt: int
    spec: TrainingSpec
    upload_target: str
    create_time: datetime
    resume_from: ResumePoint | None = None

    def has_same_content(self, other: SessionOrder) -> bool:
        """Return whether both ask for the same.

        Where the artifact goes, when it was asked and what it goes on from do not count: none of them changes what is
        trained.
        """
        return (self.training_id, self.attempt, self.spec) == (other.training_id, other.attempt, other.spec)


@dataclass(kw_only=True)
class JournalContent:
    """What a journal holds; `is_stop`: the last cancel asked for a checkpoint."""

    order: SessionOrder
    events: list[ProgressEvent] = field(default_factory=list)
    artifact_path: Path | None = None
    result: TrainingResult | None = None
    is_stop: bool = False


class Journal:
    """Appends to one journal; use `create` or `open`. Blocking: call it off the event loop, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._size_bytes = os.fstat(self._fd).st_size
        self._is_torn = False
        self._lock = threading.Lock()

    @classmethod
    def create(cls, directory: Path, order: SessionOrder) -> Self:
        """Make the directory of a new session durable with its journal in it.

        Raises:
            FileExistsError: The directory exists.
            OSError: The disk takes no writes; nothing is left.
        """
        directory.mkdir(parents=True)
        try:
            journal = cls(directory / JOURNAL_NAME)
            try:
                journal._append(_order_line(order), is_synced=True)
                for folder in (directory, directory.parent):
                    fsync_directory(folder)
            except OSError:
                journal.close()
                raise
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return journal

    @classmethod
    def open(cls, directory: Path) -> tuple[Self, JournalContent]:
        """Read a journal, cut off what a crash tore, and return it ready for more.

        Raises:
            CorruptDataError: Its first line cannot be read.
        """
        content, size_bytes = _read(directory / JOURNAL_NAME)
        journal = cls(directory / JOURNAL_NAME)
        if journal._size_bytes != size_bytes:
            _log.warning("%s: cut off %d torn bytes", journal.path, journal._size_bytes - size_bytes)
            os.ftruncate(journal._fd, size_bytes)
            journal._size_bytes = size_bytes
        return journal, content

    def append_event(self, event: ProgressEvent) -> None:
        """Add a durable event."""
        detail = event.detail
        is_synced = isinstance(detail, StateDetail) and detail.state is not TrainingState.CANCELLING
        self._append(f'{{"event":{event.to_json()}}}', is_synced=is_synced)

    def append_cancel(self, *, save_checkpoint: bool) -> None:
        """Add that somebody wants the session to end, and whether with a checkpoint."""
        self._append(json.dumps({"cancel": {"save_checkpoint": save_checkpoint}}), is_synced=False)

    def append_artifact(self, path: Path, result: TrainingResult) -> None:
        """Add where the complete artifact is, and what the training produced."""
        self._append_raw({"artifact": {"path": str(path), "result": result}})

    def append_upload_target(self, address: str) -> None:
        """Add where the artifact goes from now on."""
        self._append_raw({"upload_target": address})

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append_raw(self, raw: dict[str, Any]) -> None:
        self._append(json.dumps(raw, separators=(",", ":")), is_synced=True)

    def _append(self, line: str, *, is_synced: bool) -> None:
        data = line.encode() + b"\n"
        with self._lock:
            if self._is_torn:
                # A half line would make every later one unreadable.
                os.ftruncate(self._fd, self._size_bytes)
            self._is_torn = True
            written = 0
            while written < len(data):
                written += os.write(self._fd, data[written:])
            if is_synced:
                os.fsync(self._fd)
            self._is_torn = False
            self._size_bytes += len(data)


def _order_line(order: SessionOrder) -> str:
    raw = {
        "session": {
            "version": _VERSION,
            "session_id": order.session_id,
            "training_id": order.training_id,
            "attempt": order.attempt,
            "spec": order.spec.to_json(),
            "upload_target": order.upload_target,
            "create_time": to_iso(order.create_time),
            "resume_from": None if order.resume_from is None else asdict(order.resume_from),
        }
    }
    return json.dumps(raw, separators=(",", ":"))


def _read_order(line: bytes) -> SessionOrder:
    raw = json.loads(line)["session"]
    resume_from = raw.get("resume_from")
    return SessionOrder(
        session_id=raw["session_id"],
        training_id=raw["training_id"],
        attempt=raw["attempt"],
        spec=TrainingSpec.from_json(raw["spec"]),
        upload_target=raw["upload_target"],
        create_time=from_iso(raw["create_time"]),
        resume_from=None if resume_from is None else ResumePoint(**resume_from),
    )


def _read(path: Path) -> tuple[JournalContent, int]:
    """Return the content and the size of the part that can be read."""
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    try:
        content = JournalContent(order=_read_order(lines[0]))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{path} has no readable first line; remove its directory") from error
    size_bytes = len(lines[0]) + 1
    for line in lines[1:]:
        try:
            _apply(content, json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("%s: ends at byte %d, the next line cannot be read: %s", path, size_bytes, error)
            break
        size_bytes += len(line) + 1
    return content, size_bytes


def _apply(content: JournalContent, raw: dict[str, Any]) -> None:
    match raw:
        case {"event": dict(event)}:
            found = ProgressEvent.from_json(json.dumps(event))
            if found.sequence != len(content.events) + 1:
                raise ValueError(f"sequence {found.sequence} after {len(content.events)}")
            content.events.append(found)
        case {"worker": _}:
            pass  # journals of 0.1.0 have it
        case {"artifact": dict(artifact)}:
            content.artifact_path = Path(artifact["path"])
            content.result = artifact["result"]
        case {"cancel": {"save_checkpoint": bool(is_stop)}}:
            content.is_stop = is_stop
        case {"upload_target": str(address)}:
            content.order = replace(content.order, upload_target=address)
        case _:
            raise ValueError(f"unknown line {sorted(raw)}")
