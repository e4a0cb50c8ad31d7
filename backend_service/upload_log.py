"""What is on disk of an upload, and how much of it is sound.

```
<upload>/files/<name>   the bytes, where they will be published from
<upload>/plan.json      the files they belong to, and which of them are shared with the store
<upload>/mark           how many bytes were fsynced
<upload>/chunks         offset, size and CRC32C of what was written, each once its bytes were
```
A killed service loses nothing that it had written: the kernel has it. A power cut may: so what is above the mark counts
as far as it has the CRC32C that it had as it came.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from backend_service.upload_plan import FileSpan, UploadPlan, spans_of
from ktrdr_core.data.durable import write_durably
from ktrdr_core.storage.artifact_files import ArtifactFile

FILES_DIR = "files"
_PLAN, _MARK, _CHUNKS = "plan.json", "mark", "chunks"
_RECORD = struct.Struct("<QII")
_MIN_RECORD_BYTES = 256 * 1024  # of tiny chunks, so that the log stays tiny beside the bytes
_MAX_RECORD_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What plan.json tells.

    Attributes:
        is_import: It belongs to no training.
        reused: Names of files that are shared with the store.
    """

    is_import: bool
    files: tuple[ArtifactFile, ...]
    reused: frozenset[str]

    @property
    def size_on_disk_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files if file.name not in self.reused)


def write_plan(directory: Path, plan: UploadPlan) -> None:
    """Keep what an upload is."""
    content = {
        "is_import": not plan.training_id,
        "files": [[file.name, file.size_bytes, file.sha256] for file in plan.files],
        "reused": sorted(plan.reused),
    }
    write_durably(directory / _PLAN, json.dumps(content).encode())


def read_plan(directory: Path) -> StoredPlan | None:
    """Return what the upload in `directory` is; None if there is none."""
    try:
        raw = json.loads((directory / _PLAN).read_bytes())
        files = tuple(ArtifactFile(*file) for file in raw["files"])
        return StoredPlan(is_import=raw["is_import"], files=files, reused=frozenset(raw["reused"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_mark(directory: Path, position: int) -> None:
    """Note that all bytes before `position` are fsynced."""
    write_durably(directory / _MARK, str(position).encode())


class ChunkLog:
    """Notes what was written since the mark of when it was opened. Not synchronised.

    Args:
        directory: Of the upload; an older log there is emptied.
        position: Where the bytes go on.
    """

    def __init__(self, directory: Path, position: int) -> None:
        self._file: BinaryIO = (directory / _CHUNKS).open("wb", buffering=0)
        self._start = self._end = position
        self._crc32c = 0

    def note(self, offset: int, raw: bytes, crc32c: int) -> None:
        """Note bytes that have been written."""
        if offset != self._end:  # files in between are shared with the store
            self._flush()
            self._start = self._end = offset
        is_alone = self._start == self._end
        self._crc32c = crc32c if is_alone else google_crc32c.extend(self._crc32c, raw)
        self._end += len(raw)
        if self._end - self._start >= _MIN_RECORD_BYTES:
            self._flush()

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        if self._end > self._start:
            self._file.write(_RECORD.pack(self._start, self._end - self._start, self._crc32c))
        self._start = self._end
        self._crc32c = 0


def sound_size_bytes(directory: Path, files: Collection[ArtifactFile] = ()) -> int:
    """Return how many bytes of the upload in `directory` are sound, from the first on; 0 if there is none.

    Args:
        directory: Of the upload.
        files: What it must be an upload of: the same digest may have been announced for other files. Empty: whatever
            it is.
    """
    plan = read_plan(directory)
    if plan is None or (files and plan.files != tuple(files)):
        return 0
    spans = tuple(spans_of(plan.files))
    position = min(_read_mark(directory), _present_size_bytes(directory, spans))
    for offset, size, crc32c in _records(directory):
        position = skip_reused(spans, plan.reused, position)
        if offset + size <= position:
            continue
        if offset != position or _crc32c_of(directory, spans, offset, size) != crc32c:
            break
        position += size
    return min(skip_reused(spans, plan.reused, position), _present_size_bytes(directory, spans))


def skip_reused(spans: tuple[FileSpan, ...], reused: Collection[str], position: int) -> int:
    """Return the next position whose byte has to be sent: files that are shared with the store are there."""
    for span in spans:
        if span.file.name in reused and span.start <= position < span.end:
            position = span.end
    return position


def _present_size_bytes(directory: Path, spans: tuple[FileSpan, ...]) -> int:
    for span in spans:
        try:
            size = (directory / FILES_DIR / span.file.name).stat().st_size
        except FileNotFoundError:
            return span.start
        if size < span.file.size_bytes:
            return span.start + size
    return spans[-1].end if spans else 0


def _read_mark(directory: Path) -> int:
    try:
        return max(0, int((directory / _MARK).read_text()))
    except (FileNotFoundError, ValueError):
        return 0


def _records(directory: Path) -> Iterator[tuple[int, int, int]]:
    try:
        file = (directory / _CHUNKS).open("rb")
    except FileNotFoundError:
        return
    with file:
        while len(record := file.read(_RECORD.size)) == _RECORD.size:  # the last one may be torn
            offset, size, crc32c = _RECORD.unpack(record)
            if not 0 < size <= _MAX_RECORD_BYTES:
                return
            yield offset, size, crc32c


def _crc32c_of(directory: Path, spans: tuple[FileSpan, ...], offset: int, size: int) -> int:
    crc32c = 0
    for piece in read_pieces(directory / FILES_DIR, spans, offset, offset + size):
        crc32c = google_crc32c.extend(crc32c, piece)
    return crc32c


def read_pieces(files_dir: Path, spans: tuple[FileSpan, ...], start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `start` to before `end` of the run of all files, as far as they are there."""
    for span in spans:
        first, last = max(start, span.start), min(end, span.end)
        if first >= last:
            continue
        try:
            file = (files_dir / span.file.name).open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(first - span.start)
            left = last - first
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                yield piece
                left -= len(piece)
        if left:
            return


def fsync_files(files_dir: Path, names: Collection[str]) -> None:
    """Make the bytes of files survive a power cut."""
    for name in names:
        descriptor = os.open(files_dir / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
