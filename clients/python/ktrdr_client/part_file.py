"""A file that is on its way: its bytes lie beside its place until they are whole and verified. Blocking."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from ktrdr.models.v1.model_service_pb2 import UploadChunk

from ktrdr_client.model_types import ModelFile
from ktrdr_core.errors import CorruptDataError, InvalidUploadError, WriteConflictError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk


class PartFile:
    """What has arrived of `file`, in `.<name>.part` beside `path`; kept until it is published.

    Args:
        path: Where the file goes.
        file: What it must be.
    """

    def __init__(self, path: Path, file: ModelFile) -> None:
        self.file = file
        self.path = path.with_name(f".{path.name}.part")
        self._target = path
        self._size_bytes = 0
        self._digest = hashlib.sha256()
        self._stream: BinaryIO | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes that have arrived."""
        return self._size_bytes

    @property
    def is_whole(self) -> bool:
        return self._size_bytes == self.file.size_bytes

    def open(self) -> None:
        """Go on from what an earlier try has left; nobody else may write it meanwhile.

        Raises:
            WriteConflictError: Another process fetches the same file to the same place.
        """
        self._stream = self.path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WriteConflictError(
                f"{self.path} is being written by another process; wait for it, or choose another directory"
            ) from None
        self._stream.seek(0)
        if os.fstat(self._stream.fileno()).st_size > self.file.size_bytes:
            self.restart()  # of another file of that name
        while data := self._stream.read(CHUNK_SIZE_BYTES):
            self._digest.update(data)
            self._size_bytes += len(data)

    def add(self, chunk: UploadChunk) -> None:
        """Write the next chunk.

        Raises:
            CorruptDataError: It is not the next one, or not sound.
        """
        try:
            raw = decode_chunk(chunk, self._size_bytes)
        except (CorruptDataError, InvalidUploadError) as error:
            raise CorruptDataError(f"a chunk of {self.file.name} arrived damaged: {error.message}") from error
        if self._size_bytes + len(raw) > self.file.size_bytes:
            raise CorruptDataError(f"more than the {self.file.size_bytes} bytes of {self.file.name} arrived")
        self._opened.write(raw)
        self._digest.update(raw)
        self._size_bytes += len(raw)

    def restart(self) -> None:
        """Forget what has arrived."""
        self._opened.truncate(0)
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def is_sound(self) -> bool:
        """Return whether every byte is what it must be; if so they are durable."""
        if not self.is_whole or self._digest.hexdigest() != self.file.sha256:
            return False
        self._opened.flush()
        os.fsync(self._opened.fileno())
        return True

    def publish(self) -> None:
        """Put the file into its place."""
        self.path.rename(self._target)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def _opened(self) -> BinaryIO:
        if self._stream is None:
            raise AssertionError("open() comes first")
        return self._stream


def is_file_there(path: Path, file: ModelFile) -> bool:
    """Return whether `path` has the bytes of `file`."""
    try:
        with path.open("rb") as stream:
            is_right_size = os.fstat(stream.fileno()).st_size == file.size_bytes
            return is_right_size and hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        return False
