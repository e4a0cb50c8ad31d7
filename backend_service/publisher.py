"""From a complete artifact directory to a stored version."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ktrdr_core.errors import StorageError
from ktrdr_core.execution.child import run_in_child
from ktrdr_core.storage.artifact import DERIVED_FILES, derive_torch_files
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.stored_model import StoredModel

DERIVE_TIMEOUT_S = 120.0


class Publisher:
    """Puts artifacts into the model store, off the event loop.

    Args:
        storage: The model store.
        has_torch: Whether the .pt files can be derived here; without torch a version has none.
    """

    def __init__(self, storage: ModelStorage, *, has_torch: bool) -> None:
        self._storage = storage
        self._has_torch = has_torch

    async def publish(self, directory: Path, *, training_id: str = "", attempt: int = 0) -> StoredModel:
        """Verify the artifact in `directory`, which is consumed, and publish it as the next version.

        Raises:
            CorruptDataError: A file differs from its digest.
            InvalidResultError: Its result is not complete.
            StorageError: The disk takes no writes; `directory` is as it was.
        """
        try:
            if self._has_torch and not all((directory / name).exists() for name in DERIVED_FILES):
                await run_in_child(derive_torch_files, directory, timeout_s=DERIVE_TIMEOUT_S)
            return await asyncio.to_thread(self._storage.publish, directory, training_id=training_id, attempt=attempt)
        except OSError as error:
            raise StorageError(f"the model store takes no writes ({error}); free some space") from error

    async def list_by_training(self, training_id: str) -> list[StoredModel]:
        """Return the versions a training has published; those of "" are the imports."""
        models = await asyncio.to_thread(self._storage.list)
        return [model for model in models if model.training_id == training_id]

    async def find_by_training(self, training_id: str) -> StoredModel | None:
        """Return the version a training has published, or None."""
        return await asyncio.to_thread(self._storage.find_by_training, training_id)
