"""The disk side of an upload: plain blocking code, called on threads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ktrdr.models.v1.model_service_pb2 import UploadChunk, UploadHeader

from ktrdr_core.data.durable import write_durably
from ktrdr_core.errors import CorruptDataError, IllegalStateError, InvalidUploadError
from ktrdr_core.rpc.chunks import decode_chunk
from ktrdr_core.storage.artifact import TRAVELLING_FILES, ArtifactFile

SYNC_EVERY_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20
_SHA256_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """A header that keeps the contract.

    Attributes:
        sha256: SHA-256 of the whole artifact, hex.
        files: Files in the order their bytes follow: TRAVELLING_FILES.
    """

    training_id: str
    attempt: int
    total_size_bytes: int
    sha256: str
    files: tuple[ArtifactFile, ...]
    write_offset: int

    @property
    def key(self) -> str:
        return upload_key(self.training_id, self.attempt, self.sha256)


def upload_key(training_id: str, attempt: int, sha256: str) -> str:
    """Return the name of an upload's directory; a digest, so that nothing from outside becomes a path."""
    return hashlib.sha256(f"{training_id}\0{attempt}\0{sha256}".encode()).hexdigest()


def plan_from_proto(header: UploadHeader, *, max_size_bytes: int) -> UploadPlan:
    """Return the plan of a header.

    Raises:
        InvalidUploadError: It breaks the contract.
    """

    def refuse(field: str, rule: str) -> InvalidUploadError:
        return InvalidUploadError(f"{field} of an upload {rule}", field=f"header.{field}")

    if not 0 < header.total_size_bytes <= max_size_bytes:
        raise refuse("total_size_bytes", f"must be 1 to {max_size_bytes}, was {header.total_size_bytes}")
    if len(header.sha256) != _SHA256_BYTES:
        raise refuse("sha256", f"must have {_SHA256_BYTES} bytes, had {len(header.sha256)}")
    names = [file.name for file in header.files]
    if names != list(TRAVELLING_FILES):
        raise refuse("files", f"must be {', '.join(TRAVELLING_FILES)} in this order, was {names[:8]}")
    if any(file.size_bytes < 1 or len(file.sha256) != _SHA256_BYTES for file in header.files):
        raise refuse("files", f"must each have a size above 0 and a SHA-256 of {_SHA256_BYTES} bytes")
    declared = sum(file.size_bytes for file in header.files)
    if declared != header.total_size_bytes:
        raise refuse("files", f"must add up to total_size_bytes {header.total_size_bytes}, gave {declared}")
    if not 0 <= header.write_offset <= header.total_size_bytes:
        raise refuse("write_offset", f"must be 0 to {header.total_size_bytes}, was {header.write_offset}")
    if header.attempt < (1 if header.training_id else 0) or (header.attempt and not header.training_id):
        raise refuse("attempt", f"must be at least 1 for a training and 0 for an import, was {header.attempt}")
    return UploadPlan(
        training_id=header.training_id,
        attempt=header.attempt,
        total_size_bytes=header.total_size_bytes,
        sha256=header.sha256.hex(),
        files=tuple(ArtifactFile(file.name, file.size_bytes, file.sha256.hex()) for file in header.files),
        write_offset=header.write_offset,
    )


class PartialUpload:
    """The bytes of one upload that have arrived so far, in a directory of their own.

    `committed` is what was fsynced; a restart goes on from there.

    Args:
        directory: Its directory.
        plan: What is being uploaded.
    """

    def __init__(self, directory: Path, plan: UploadPlan) -> None:
        self._directory = directory
        self._plan = plan
        self._lock = threading.Lock()  # a cancelled call leaves its thread running; the next one waits for it
        self._file: BinaryIO | None = None
        self._size = self._synced = 0

    @property
    def size_bytes(self) -> int:
        return self._size

    def open(self) -> None:
        """Go on where the plan says.

        Raises:
            InvalidUploadError: That is neither where the stored bytes end, nor 0.
        """
        with self._lock:
            self._open(self._directory, self._plan)

    def add(self, chunk: UploadChunk) -> None:
        """Check and write the next chunk.

        Raises:
            InvalidUploadError: Wrong offset, size or codec, or more bytes than declared; nothing was written.
            CorruptDataError: Its checksum differs; nothing was written.
        """
        with self._lock:
            total = self._plan.total_size_bytes
            if chunk.offset + chunk.raw_size_bytes > total:
                raise InvalidUploadError(
                    f"the upload declares {total} bytes and the chunk at {chunk.offset} ends at "
                    f"{chunk.offset + chunk.raw_size_bytes}; declare the true size",
                    field="chunk.offset",
                )
            raw = decode_chunk(chunk, self._size)
            if self._file is None:
                raise IllegalStateError("the upload is closed; open it first")
            self._file.write(raw)
            self._size += len(raw)
            if self._size - self._synced >= SYNC_EVERY_BYTES:
                self._sync()

    def close(self) -> None:
        """Make what has arrived safe, and close the file; a second call does nothing."""
        with self._lock:
            if self._file is not None:
                self._sync()
                self._file.close()
                self._file = None

    def split(self, staging: Path) -> None:
        """Write the artifact's files into `staging`, which is made anew, checking every digest on the way.

        Raises:
            CorruptDataError: The whole has another SHA-256 than declared.
            InvalidUploadError: A file has.
        """
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        whole = hashlib.sha256()
        with (self._directory / "part").open("rb") as source:
            wrong_files = [
                file.name
                for file in self._plan.files
                if _copy(source, staging / file.name, file.size_bytes, whole) != file.sha256
            ]
        if whole.hexdigest() != self._plan.sha256:
            raise CorruptDataError(
                f"the artifact's SHA-256 must be {self._plan.sha256}, was {whole.hexdigest()}; send it again from 0"
            )
        if wrong_files:
            raise InvalidUploadError(
                f"the SHA-256 of {', '.join(wrong_files)} differs from the header's; correct the header",
                field="header.files",
            )

    def abandon(self) -> None:
        """Close the file as it is; what was made safe before stays, for a later stream to go on from."""
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):  # what it cannot write was not safe
                    self._file.close()
                self._file = None

    def remove(self) -> None:
        """Forget the upload, also one that could not be made safe."""
        self.abandon()
        with self._lock:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _open(self, directory: Path, plan: UploadPlan) -> None:
        committed = committed_size_bytes(directory)
        # Less than is safe is no error: more may have been made safe since QueryUpload was asked.
        if not 0 <= plan.write_offset <= committed:
            raise InvalidUploadError(
                f"write_offset must be at most {committed}, was {plan.write_offset}; ask QueryUpload where to go on",
                field="header.write_offset",
            )
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "part"
        path.touch()
        self._file = path.open("r+b")
        self._file.truncate(plan.write_offset)
        self._file.seek(plan.write_offset)
        self._size = self._synced = plan.write_offset
        write_durably(directory / "committed", str(self._synced).encode())

    def _sync(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = self._size
        write_durably(self._directory / "committed", str(self._synced).encode())


def committed_size_bytes(directory: Path) -> int:
    """Return how many bytes of the upload in `directory` are safe; 0 if there is none."""
    try:
        return min(int((directory / "committed").read_text()), (directory / "part").stat().st_size)
    except (FileNotFoundError, ValueError):
        return 0


def digest_whole(directory: Path) -> str:
    """Return the SHA-256, hex, that an upload of the artifact in `directory` declares."""
    whole = hashlib.sha256()
    for name in TRAVELLING_FILES:
        with (directory / name).open("rb") as source:
            while piece := source.read(_PIECE_BYTES):
                whole.update(piece)
    return whole.hexdigest()


STAGING_SUFFIX = ".staging"


def remove_stale(root: Path, *, older_than_s: float, is_start: bool = False) -> int:
    """Remove uploads that nothing was added to for so long; return how many.

    Args:
        root: Directory of partial uploads.
        older_than_s: See above.
        is_start: Nobody is at work yet: also remove what a killed service was putting together from an upload.
    """
    removed = 0
    limit = time.time() - older_than_s
    for directory in root.iterdir() if root.is_dir() else ():
        is_left = is_start and directory.suffix == STAGING_SUFFIX
        if directory.is_dir() and (is_left or directory.stat().st_mtime < limit):
            shutil.rmtree(directory, ignore_errors=True)
            removed += 1
    return removed


def _copy(source: BinaryIO, target: Path, size_bytes: int, whole: hashlib._Hash) -> str:
    """Copy the next bytes of `source` into a new file; return their SHA-256, hex."""
    digest = hashlib.sha256()
    left = size_bytes
    with target.open("xb") as file:
        while left and (piece := source.read(min(left, _PIECE_BYTES))):
            file.write(piece)
            digest.update(piece)
            whole.update(piece)
            left -= len(piece)
    return digest.hexdigest()
