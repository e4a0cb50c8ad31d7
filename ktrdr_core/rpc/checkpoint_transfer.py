"""Checkpoints over the wire: what they are, then their bytes in chunks, verified before they are there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.errors import CorruptDataError, InvalidUploadError, StorageError, UnavailableError
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk
from ktrdr_core.rpc.codec_choice import CodecChooser, Compression
from ktrdr_core.undisturbed import in_thread

MAX_CHECKPOINT_BYTES = 4 << 30
IDLE_TIMEOUT_S = 30.0
_SHA256_SIZE_BYTES = 32


def checkpoint_ref(checkpoint: SessionCheckpoint) -> CheckpointRef:
    """Return the message that names a checkpoint."""
    return CheckpointRef(
        epoch=checkpoint.epoch, size_bytes=checkpoint.size_bytes, sha256=bytes.fromhex(checkpoint.sha256)
    )


async def chunks_of(path: Path, compression: Compression = Compression.AUTO) -> AsyncGenerator[UploadChunk]:
    """Yield a file's bytes in chunks, read and compressed off the event loop.

    The file is opened with the first chunk; one that is removed or replaced afterwards is still given as it was.

    Raises:
        OSError: The file cannot be read.
    """
    source = _SourceFile(path, CodecChooser(compression))
    try:
        while (chunk := await in_thread(source.read_chunk)) is not None:
            yield chunk
    finally:
        source.close()


async def receive_checkpoint(
    ref: CheckpointRef,
    chunks: AsyncIterator[UploadChunk],
    path: Path,
    *,
    max_size_bytes: int,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> None:
    """Write the checkpoint that `ref` names to `path`: it is there whole, verified and durable, or not at all.

    Args:
        ref: What was announced.
        chunks: Its bytes, in order.
        path: Where it goes; an older file there is replaced.
        max_size_bytes: Largest that is accepted.
        idle_timeout_s: How long the other side may send nothing; there is no limit on the total.

    Raises:
        InvalidUploadError: It is too large, `ref` is not complete, or there are more or fewer bytes than it says.
        CorruptDataError: A checksum differs.
        UnavailableError: The other side sent nothing for too long.
        StorageError: The disk takes no writes.
    """
    check_ref(ref, max_size_bytes=max_size_bytes)
    staged = _StagedFile(path, ref)
    try:
        while (chunk := await _next_chunk(chunks, idle_timeout_s)) is not None:
            await in_thread(staged.write, chunk)
        await in_thread(staged.publish)
    except OSError as error:
        raise StorageError(
            f"the checkpoint cannot be written to {path.parent}: {error}; free space there, then send it again"
        ) from error
    finally:
        await in_thread(staged.discard)


def check_ref(ref: CheckpointRef, *, max_size_bytes: int) -> None:
    """Raise InvalidUploadError unless `ref` names a checkpoint of an acceptable size."""
    if len(ref.sha256) != _SHA256_SIZE_BYTES:
        raise InvalidUploadError(
            f"sha256 of a checkpoint must be {_SHA256_SIZE_BYTES} bytes, was {len(ref.sha256)}",
            field="checkpoint.sha256",
        )
    if not 0 < ref.size_bytes <= max_size_bytes:
        raise InvalidUploadError(
            f"size_bytes of a checkpoint must be 1 to {max_size_bytes}, was {ref.size_bytes}",
            field="checkpoint.size_bytes",
        )


class _SourceFile:
    """A file that is given away in chunks. Blocking."""

    def __init__(self, path: Path, chooser: CodecChooser) -> None:
        self._path = path
        self._chooser = chooser
        self._file: BinaryIO | None = None
        self._offset = 0

    def read_chunk(self) -> UploadChunk | None:
        if self._file is None:
            self._file = self._path.open("rb")
        raw = self._file.read(CHUNK_SIZE_BYTES)
        if not raw:
            return None
        chunk = self._chooser.encode(self._offset, raw)
        self._offset += len(raw)
        return chunk

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _StagedFile:
    """The bytes of a checkpoint beside their place until they are whole. Blocking."""

    def __init__(self, path: Path, ref: CheckpointRef) -> None:
        self._path = path
        self._ref = ref
        # The suffix is what a start removes, should this process be killed meanwhile.
        self._staging = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, chunk: UploadChunk) -> None:
        raw = decode_chunk(chunk, self._size_bytes)
        if self._size_bytes + len(raw) > self._ref.size_bytes:
            raise InvalidUploadError(
                f"the checkpoint has more than the {self._ref.size_bytes} bytes it was announced with",
                field="checkpoint.size_bytes",
            )
        if self._file is None:
            self._file = self._staging.open("wb")
        self._file.write(raw)
        self._digest.update(raw)
        self._size_bytes += len(raw)

    def publish(self) -> None:
        if self._file is None or self._size_bytes != self._ref.size_bytes:
            raise InvalidUploadError(
                f"the checkpoint must have {self._ref.size_bytes} bytes, {self._size_bytes} arrived; send it again",
                field="checkpoint.size_bytes",
            )
        if self._digest.digest() != self._ref.sha256:
            raise CorruptDataError(
                f"SHA-256 of the checkpoint must be {self._ref.sha256.hex()}, was {self._digest.hexdigest()}; send it "
                "again"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._staging.rename(self._path)
        fsync_directory(self._path.parent)

    def discard(self) -> None:
        """Close the file, and remove it unless it was published."""
        if self._file is None:
            return
        self._staging.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what a full disk did not take is not wanted any more
            self._file.close()


async def _next_chunk(chunks: AsyncIterator[UploadChunk], idle_timeout_s: float) -> UploadChunk | None:
    try:
        async with asyncio.timeout(idle_timeout_s):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise UnavailableError(
            f"the other side sent nothing of the checkpoint for {idle_timeout_s:g} s; send it again"
        ) from error
