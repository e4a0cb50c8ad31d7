"""The bytes of one upload, on disk where they will be published from: plain blocking code, called on threads."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from ktrdr.models.v1.model_service_pb2 import UploadChunk

from backend_service.upload_digests import UploadDigests
from backend_service.upload_log import (
    FILES_DIR,
    ChunkLog,
    fsync_files,
    read_plan,
    skip_reused,
    sound_size_bytes,
    write_mark,
    write_plan,
)
from backend_service.upload_plan import FileSpan, UploadPlan
from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.errors import CorruptDataError, IllegalStateError, InvalidUploadError
from ktrdr_core.rpc.chunks import decode_chunk

SYNC_EVERY_BYTES = 32 << 20


class PartialUpload:
    """One upload in a directory of its own.

    Each chunk is written where it belongs, noted in the log, and digested on the way. A thread makes the bytes safe
    from a power cut, `sync_every_bytes` at a time; at most twice as many are not.

    Args:
        directory: Its directory.
        plan: What is being uploaded.
        sync_every_bytes: See above.
    """

    def __init__(self, directory: Path, plan: UploadPlan, *, sync_every_bytes: int = SYNC_EVERY_BYTES) -> None:
        self._directory = directory
        self._files_dir = directory / FILES_DIR
        self._plan = plan
        self._spans = plan.spans
        self._sync_every_bytes = sync_every_bytes
        self._lock = threading.Lock()  # a cancelled call leaves its thread running; the next one waits for it
        self._is_open = False
        self._position = self._synced = 0
        self._digests = UploadDigests(self._spans)
        self._log: ChunkLog | None = None
        self._file: tuple[FileSpan, BinaryIO] | None = None
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="upload-sync")
        self._syncing: Future[None] | None = None

    @property
    def size_bytes(self) -> int:
        """How much has arrived, with the files that need not be sent so far."""
        return self._position

    def open(self, shared: Mapping[str, Path] | None = None) -> None:
        """Go on where the plan says.

        Args:
            shared: Where in the store the files are that are not sent and not here yet, by name.

        Raises:
            InvalidUploadError: More bytes than that are missing.
            IllegalStateError: The store no longer has a file that is not sent.
        """
        with self._lock:
            offset = self._plan.write_offset
            sound = sound_size_bytes(self._directory, self._plan.files)
            # Less than is safe is no error: more may have been made safe since QueryUpload was asked.
            if offset > sound:
                raise InvalidUploadError(
                    f"write_offset must be at most {sound}, was {offset}; ask QueryUpload where to go on",
                    field="header.write_offset",
                )
            stored = read_plan(self._directory)
            if stored is None or stored.files != self._plan.files:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._files_dir.mkdir(parents=True, exist_ok=True)
            write_plan(self._directory, self._plan)
            self._cut(offset, shared or {})
            fsync_files(self._files_dir, [path.name for path in self._files_dir.iterdir()])
            fsync_directory(self._files_dir)
            write_mark(self._directory, offset)
            self._position = skip_reused(self._spans, self._plan.reused, offset)
            self._synced = offset
            self._log = ChunkLog(self._directory, self._position)
            self._is_open = True

    def add(self, chunk: UploadChunk) -> None:
        """Check and write the next chunk.

        Raises:
            InvalidUploadError: Wrong offset, size or codec, or more bytes than declared; nothing was written.
            CorruptDataError: Its checksum differs; nothing was written.
        """
        with self._lock:
            self._check_end(chunk.offset + chunk.raw_size_bytes, chunk.offset)
            raw = decode_chunk(chunk, self._position)
            if self._log is None or not self._is_open:
                raise IllegalStateError("the upload is closed; open it first")
            self._write(raw)
            self._log.note(self._position, raw, chunk.crc32c)
            self._digests.take(self._position, raw)
            self._position = skip_reused(self._spans, self._plan.reused, self._position + len(raw))
            if self._position - self._synced >= self._sync_every_bytes:
                self._begin_sync()

    def close(self) -> None:
        """Make what has arrived safe, and close the files; a second call does nothing."""
        with self._lock:
            try:
                if self._is_open:
                    self._begin_sync()
                    self._end_sync()
            finally:
                self._let_go()

    def verify(self) -> Path:
        """Check every digest; return the directory of the files, complete and safe.

        Raises:
            CorruptDataError: The whole has another SHA-256 than declared.
            InvalidUploadError: A file has.
            IllegalStateError: A file of the store has.
        """
        self.close()
        with self._lock:
            self._digests.read_rest(self._files_dir)
            plan = self._plan
            wrong = [file.name for file in plan.files if self._digests.files.get(file.name) != file.sha256]
            damaged = [name for name in wrong if name in plan.reused]
            if damaged:
                raise IllegalStateError(
                    f"{', '.join(damaged)} in the store differ from their SHA-256; send them, and see what "
                    "`ktrdr models verify` says of the models that share them"
                )
            if self._digests.whole != plan.sha256:
                raise CorruptDataError(
                    f"the artifact's SHA-256 must be {plan.sha256}, was {self._digests.whole}; send it again from 0"
                )
            if wrong:
                raise InvalidUploadError(
                    f"the SHA-256 of {', '.join(wrong)} differs from the header's; correct the header",
                    field="header.files",
                )
        return self._files_dir

    def abandon(self) -> None:
        """Close the files as they are; what was written stays, for a later stream to go on from."""
        with self._lock:
            with contextlib.suppress(OSError):  # what it cannot make safe was not
                self._end_sync()
            self._let_go()

    def remove(self) -> None:
        """Forget the upload, also one that could not be made safe."""
        self.abandon()
        with self._lock:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _cut(self, offset: int, shared: Mapping[str, Path]) -> None:
        """Leave the bytes before `offset` and the files that are shared with the store, nothing else."""
        known = {span.file.name for span in self._spans}
        for path in self._files_dir.iterdir():
            if path.name not in known:  # left by a publication that did not come to its end
                path.unlink()
        for span in self._spans:
            path = self._files_dir / span.file.name
            if span.file.name in shared:
                _share(shared[span.file.name], path)
            elif offset <= span.start:
                path.unlink(missing_ok=True)
            elif offset < span.end:
                _shorten(path, offset - span.start)

    def _check_end(self, end: int, offset: int) -> None:
        total = self._plan.total_size_bytes
        if end > total:
            raise InvalidUploadError(
                f"the upload declares {total} bytes and the chunk at {offset} ends at {end}; declare the true size",
                field="chunk.offset",
            )
        for span in self._spans:
            if span.file.name in self._plan.reused and self._position <= span.start < end:
                raise InvalidUploadError(
                    f"the chunk at {offset} ends at {end}, but {span.file.name}, from {span.start} on, is not sent",
                    field="chunk.offset",
                )

    def _write(self, raw: bytes) -> None:
        left = memoryview(raw)
        position = self._position
        while left:
            span, file = self._file_at(position)
            count = file.write(left[: span.end - position])  # less than all on a disk that is almost full
            position += count
            left = left[count:]

    def _file_at(self, position: int) -> tuple[FileSpan, BinaryIO]:
        if self._file is not None and self._file[0].start <= position < self._file[0].end:
            return self._file
        self._close_file()
        span = next(span for span in self._spans if span.start <= position < span.end)
        path = self._files_dir / span.file.name
        # Never through a link to a file of the store: such a file is whole, and what is written here is not there yet.
        file: BinaryIO = path.open("xb" if position == span.start else "r+b", buffering=0)
        file.seek(position - span.start)
        file.truncate()  # what a write that failed has left
        self._file = (span, file)
        return self._file

    def _begin_sync(self) -> None:
        """Have what has arrived made safe by the thread; waits for the one before."""
        self._end_sync()
        position = self._position
        names = [span.file.name for span in self._spans if span.start < position and span.end > self._synced]
        self._synced = position
        self._syncing = self._syncer.submit(self._sync, position, names)

    def _sync(self, position: int, names: list[str]) -> None:
        fsync_files(self._files_dir, names)
        fsync_directory(self._files_dir)
        write_mark(self._directory, position)

    def _end_sync(self) -> None:
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file[1], None
            file.close()

    def _let_go(self) -> None:
        self._is_open = False
        self._syncer.shutdown()
        self._close_file()
        if self._log is not None:
            self._log.close()


def gone(name: str) -> IllegalStateError:
    """Return the error of a file that is not sent and not in the store."""
    return IllegalStateError(f"the store has no such {name} any more; ask QueryUpload again", metadata={"file": name})


def _share(source: Path, path: Path) -> None:
    """Have the bytes of a stored file at `path` without writing them, where both are on one file system."""
    path.unlink(missing_ok=True)
    try:
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                raise
            shutil.copyfile(source, path)
    except FileNotFoundError:
        raise gone(path.name) from None


def _shorten(path: Path, size_bytes: int) -> None:
    """Keep the first bytes of a file; one that is shared with the store is not touched but replaced."""
    found = path.stat()
    if found.st_size == size_bytes:
        return
    if found.st_nlink == 1:
        os.truncate(path, size_bytes)
        return
    copy = path.with_name(f"{path.name}.copy")
    with path.open("rb") as source, copy.open("wb") as target:
        while (left := size_bytes - target.tell()) and (piece := source.read(min(left, 1 << 20))):
            target.write(piece)
    copy.replace(path)
