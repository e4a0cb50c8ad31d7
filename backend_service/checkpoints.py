"""The newest checkpoint of each training that may need another attempt: `<root>/<training_id>/<epoch>-<sha256>`."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.errors import StorageError
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.checkpoint_transfer import receive_checkpoint

_SUFFIX = ".safetensors"
_log = get_logger(__name__)


class CheckpointStore:
    """Keeps, for each training, the checkpoint of its highest epoch; any attempt may go on from it.

    Args:
        root: Directory of them all.
        max_size_bytes: Largest checkpoint that is taken.
    """

    def __init__(self, root: Path, *, max_size_bytes: int) -> None:
        self._root = root
        self._max_size_bytes = max_size_bytes

    async def find(self, training_id: str) -> SessionCheckpoint | None:
        """Return the checkpoint of a training, or None."""
        return await asyncio.to_thread(self._find, training_id)

    async def receive(self, training_id: str, ref: CheckpointRef, chunks: AsyncIterator[UploadChunk]) -> None:
        """Take a checkpoint that arrives in chunks, and drop the one before.

        Raises:
            InvalidUploadError: It is larger than allowed, or its chunks are not what `ref` declares.
            CorruptDataError: A checksum differs.
            StorageError: The disk takes no writes.
        """
        path = self._path(training_id, ref.epoch, ref.sha256.hex())
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        await receive_checkpoint(ref, chunks, path, max_size_bytes=self._max_size_bytes)
        await asyncio.to_thread(self._keep_only, path)

    async def adopt(self, training_id: str, checkpoint: SessionCheckpoint) -> None:
        """Take over a checkpoint of a worker on this machine, unless a newer one is here.

        Raises:
            StorageError: The disk takes no writes.
        """
        await asyncio.to_thread(self._adopt, training_id, checkpoint)

    async def remove(self, training_id: str) -> None:
        """Remove what there is of a training."""
        await asyncio.to_thread(shutil.rmtree, self._root / training_id, ignore_errors=True)

    async def training_ids(self) -> list[str]:
        """Return the trainings that have a checkpoint here."""
        return await asyncio.to_thread(
            lambda: [path.name for path in self._root.iterdir()] if self._root.is_dir() else []
        )

    async def sweep(self, wanted: Iterable[str]) -> None:
        """Remove half-received files, and the checkpoints of all but the `wanted` trainings."""
        await asyncio.to_thread(self._sweep, frozenset(wanted))

    def _find(self, training_id: str) -> SessionCheckpoint | None:
        found = sorted((self._root / training_id).glob(f"*{_SUFFIX}"))
        if not found:
            return None
        epoch, _, sha256 = found[-1].name.removesuffix(_SUFFIX).partition("-")
        return SessionCheckpoint(path=found[-1], epoch=int(epoch), size_bytes=found[-1].stat().st_size, sha256=sha256)

    def _adopt(self, training_id: str, checkpoint: SessionCheckpoint) -> None:
        path = self._path(training_id, checkpoint.epoch, checkpoint.sha256)
        known = self._find(training_id)
        if path.exists() or (known is not None and known.epoch > checkpoint.epoch):
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(checkpoint.path, path)  # whole and fsynced already; both are under the data directory
            fsync_directory(path.parent)
        except OSError as error:
            raise StorageError(f"the checkpoint {checkpoint.path} cannot be kept: {error}; free some space") from error
        self._keep_only(path)

    def _keep_only(self, path: Path) -> None:
        for other in path.parent.iterdir():
            if other != path:
                other.unlink(missing_ok=True)

    def _sweep(self, wanted: frozenset[str]) -> None:
        if not self._root.is_dir():
            return
        for directory in self._root.iterdir():
            if directory.name not in wanted:
                shutil.rmtree(directory, ignore_errors=True)
                _log.info("Removed the checkpoint of a training that needs none: %s", directory.name)
                continue
            for path in directory.iterdir():
                if path.suffix != _SUFFIX:
                    path.unlink(missing_ok=True)

    def _path(self, training_id: str, epoch: int, sha256: str) -> Path:
        return self._root / training_id / f"{epoch:08d}-{sha256}{_SUFFIX}"
