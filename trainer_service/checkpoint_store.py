"""Checkpoints that backends have put here for sessions to go on from: bounded, and gone once they were used."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from ktrdr_core.errors import CheckpointNotFoundError, StorageError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.checkpoint_transfer import MAX_CHECKPOINT_BYTES, check_ref, receive_checkpoint
from trainer_service.journal import ResumePoint

MAX_NUM_CHECKPOINTS = 256
MAX_TOTAL_BYTES = 16 << 30
_SUFFIX = ".safetensors"
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size_bytes: int
    modified_s: float


class CheckpointStore:
    """Keeps each checkpoint under the name of its content, until a session that used it has ended.

    Args:
        directory: Where they are; made if missing.
        max_num: How many are kept; the oldest that no session uses makes room.
        max_checkpoint_bytes: Largest that is accepted.
        max_total_bytes: How much is kept.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_num: int = MAX_NUM_CHECKPOINTS,
        max_checkpoint_bytes: int = MAX_CHECKPOINT_BYTES,
        max_total_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        self._directory = directory
        self._max_num = max_num
        self._max_checkpoint_bytes = max_checkpoint_bytes
        self._max_total_bytes = max_total_bytes
        self._uses: Counter[Path] = Counter()
        self._num_incoming = 0
        self._incoming_bytes = 0
        self._removing = asyncio.Lock()

    async def put(self, ref: CheckpointRef, chunks: AsyncIterator[UploadChunk]) -> None:
        """Take a checkpoint; one that is here already is replaced by the same bytes.

        Raises:
            InvalidUploadError: Size or order breaks the contract.
            CorruptDataError: A checksum differs.
            StorageError: The disk takes no writes, or everything that is kept is in use.
            UnavailableError: The sender has stalled.
        """
        check_ref(ref, max_size_bytes=self._max_checkpoint_bytes)
        async with self._removing:
            await self._make_room(ref.size_bytes)
            self._num_incoming += 1
            self._incoming_bytes += ref.size_bytes
        try:
            path = self._path(ref.sha256.hex())
            await receive_checkpoint(ref, chunks, path, max_size_bytes=self._max_checkpoint_bytes)
        finally:
            self._num_incoming -= 1
            self._incoming_bytes -= ref.size_bytes

    async def use(self, point: ResumePoint) -> Path:
        """Return the file of a checkpoint, and keep it until `end_use`.

        Raises:
            CheckpointNotFoundError: It is not here.
        """
        path = self._path(point.sha256)
        async with self._removing:
            if await asyncio.to_thread(path.is_file):
                self._uses[path] += 1
                return path
        raise CheckpointNotFoundError(
            f"checkpoint {point.sha256[:12]} of epoch {point.epoch} is not on this trainer; put it there with"
            " PutCheckpoint, then train",
            metadata={"sha256": point.sha256},
        )

    async def end_use(self, point: ResumePoint, *, is_removed: bool) -> None:
        """Let go of a checkpoint.

        Args:
            point: What `use` was called with; it may have been by a process before this one.
            is_removed: Whether its session has ended: then it is removed unless another session uses it.
        """
        path = self._path(point.sha256)
        async with self._removing:
            self._uses[path] -= 1
            if self._uses[path] <= 0:
                del self._uses[path]
                if not is_removed:
                    return
                await asyncio.to_thread(path.unlink, missing_ok=True)

    async def sweep(self, keep_s: float) -> None:
        """Remove what no session has used for `keep_s`."""
        oldest_s = time.time() - keep_s
        async with self._removing:
            for file in await asyncio.to_thread(self._files):
                if file.modified_s <= oldest_s and file.path not in self._uses:
                    await asyncio.to_thread(file.path.unlink, missing_ok=True)

    def prepare(self) -> None:
        """Make the directory, and remove what a killed process was receiving; blocking, before the first `put`.

        Raises:
            OSError: The disk takes no writes.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for path in self._directory.glob(".*.tmp"):
            path.unlink()

    async def _make_room(self, size_bytes: int) -> None:
        files = await asyncio.to_thread(self._files)
        removable = [file for file in files if file.path not in self._uses]
        num, total_bytes = len(files) + self._num_incoming, self._incoming_bytes
        total_bytes += sum(file.size_bytes for file in files)
        while num + 1 > self._max_num or total_bytes + size_bytes > self._max_total_bytes:
            if not removable:
                raise StorageError(
                    f"{num} checkpoints of {total_bytes} bytes are in use on this trainer, and it keeps"
                    f" {self._max_num} of {self._max_total_bytes}; try again when a session has ended"
                )
            file = removable.pop(0)
            _log.info("Removing checkpoint %s to make room", file.path.name)
            await asyncio.to_thread(file.path.unlink, missing_ok=True)
            num -= 1
            total_bytes -= file.size_bytes

    def _files(self) -> list[_File]:
        """Return what is kept, the oldest first; blocking."""
        stats = [(path, path.stat()) for path in self._directory.glob(f"*{_SUFFIX}")]
        files = [_File(path, stat.st_size, stat.st_mtime) for path, stat in stats]
        return sorted(files, key=lambda file: file.modified_s)

    def _path(self, sha256: str) -> Path:
        return self._directory / f"{sha256}{_SUFFIX}"
