"""A file of bars that arrives: bytes in order, each message checked, the whole verified, on either side."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Protocol

import google_crc32c

from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.errors import (
    CorruptDataError,
    InvalidUploadError,
    QuotaExceededError,
)

CHUNK_SIZE_BYTES = 1 << 20
SHA256_SIZE_BYTES = 32


class BarsMessage(Protocol):
    """What GetBars and ImportBars messages have in common."""

    @property
    def offset(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def crc32c(self) -> int: ...


class ArrivingFile:
    """Bytes of a file of bars that come in order. Blocking; one thread at a time.

    Args:
        path: Where they are written; the file stays until `remove`.
        max_size_bytes: Most that is taken; it may be changed once more is known.
    """

    def __init__(self, path: Path, *, max_size_bytes: int) -> None:
        self._path = path
        self.max_size_bytes = max_size_bytes
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def resume(self) -> None:
        """Go on after the bytes that are there from before."""
        self.close()
        self._digest = hashlib.sha256()
        self._file = self._path.open("ab+")
        self._file.seek(0)
        while data := self._file.read(CHUNK_SIZE_BYTES):
            self._digest.update(data)
        self.size_bytes = self._file.tell()
        if self.size_bytes > self.max_size_bytes:
            self.restart()

    def restart(self) -> None:
        """Begin at the beginning."""
        self.close()
        self._digest = hashlib.sha256()
        self._file = self._path.open("wb")
        self.size_bytes = 0

    def write(self, message: BarsMessage) -> None:
        """Take the bytes of the next message.

        Raises:
            InvalidUploadError: They are not the next ones, too many, or more than a message may have.
            CorruptDataError: Their checksum differs.
        """
        data = message.data
        if message.offset != self.size_bytes:
            raise InvalidUploadError(
                f"offset must be {self.size_bytes}, was {message.offset}; send the bytes in order", field="offset"
            )
        if len(data) > CHUNK_SIZE_BYTES:
            raise InvalidUploadError(
                f"data must have at most {CHUNK_SIZE_BYTES} bytes, had {len(data)}; cut the file", field="data"
            )
        if self.size_bytes + len(data) > self.max_size_bytes:
            raise InvalidUploadError(
                f"the file has more than the {self.max_size_bytes} bytes it was announced with",
                field="total_size_bytes",
            )
        found = google_crc32c.value(data)
        if found != message.crc32c:
            raise CorruptDataError(
                f"CRC32C of the data at offset {message.offset} must be {message.crc32c:08x}, was {found:08x}; "
                "send it again"
            )
        self._opened.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    def verify(self, size_bytes: int, sha256: bytes) -> None:
        """Raise unless exactly these bytes have come.

        Raises:
            InvalidUploadError: They are fewer.
            CorruptDataError: Their digest differs.
        """
        if self.size_bytes != size_bytes:
            raise InvalidUploadError(
                f"the file must have {size_bytes} bytes, {self.size_bytes} arrived; send it again",
                field="total_size_bytes",
            )
        if self._digest.digest() != sha256:
            raise CorruptDataError(
                f"SHA-256 of the file must be {sha256.hex()}, was {self._digest.hexdigest()}; send it again"
            )

    def close(self) -> None:
        """Close the file; what it has is kept."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def publish(self, path: Path) -> None:
        """Make the file durable under its name; the one that was there is replaced."""
        self._opened.flush()
        os.fsync(self._opened.fileno())
        self.close()
        self._path.rename(path)
        fsync_directory(path.parent)

    def abandon(self) -> None:
        """Close the file after something failed."""
        with contextlib.suppress(OSError):  # what a full disk did not take is not wanted any more
            self.close()

    @property
    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise AssertionError("resume or restart comes first")
        return self._file

    def remove(self) -> None:
        """Close and remove the file."""
        self._path.unlink(missing_ok=True)
        self.abandon()


def check_announced(size_bytes: int, sha256: bytes, *, max_size_bytes: int) -> None:
    """Check what a file of bars is announced with.

    Raises:
        InvalidUploadError: The digest is none, or there are no bytes.
        QuotaExceededError: It is larger than allowed.
    """
    if len(sha256) != SHA256_SIZE_BYTES:
        raise InvalidUploadError(f"sha256 must be {SHA256_SIZE_BYTES} bytes, was {len(sha256)}", field="sha256")
    if size_bytes < 1:
        raise InvalidUploadError(f"total_size_bytes must be at least 1, was {size_bytes}", field="total_size_bytes")
    if size_bytes > max_size_bytes:
        raise QuotaExceededError(
            f"a file of bars may have {max_size_bytes} bytes here, this one has {size_bytes}; send it in pieces"
        )
