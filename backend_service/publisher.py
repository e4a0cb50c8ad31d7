"""From a complete artifact directory to a stored version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec

from ktrdr_core.errors import ModelNotFoundError, StorageError
from ktrdr_core.execution.child import run_in_child
from ktrdr_core.storage.artifact import MAX_DERIVED_WEIGHTS_BYTES
from ktrdr_core.storage.artifact_files import DERIVED_FILES, WEIGHTS_FILE, ArtifactFile
from ktrdr_core.storage.layout import ASIDE_NAME, aside_name
from ktrdr_core.storage.model_query import MAX_PAGE_MODELS, ModelQuery
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.stored_model import ModelSummary, StoredModel
from ktrdr_core.storage.torch_files import derive_torch_files

P = ParamSpec("P")

DERIVE_TIMEOUT_S = 120.0
MAX_PREDECESSOR_PAGES = 3


class Publisher:
    """Puts artifacts into the model store, off the event loop.

    Args:
        storage: The model store.
        has_torch: Whether the .pt files can be derived here; without torch a version has none.
    """

    def __init__(self, storage: ModelStorage, *, has_torch: bool) -> None:
        self._storage = storage
        self._has_torch = has_torch

    async def publish(
        self,
        directory: Path,
        *,
        training_id: str = "",
        attempt: int = 0,
        files: Sequence[ArtifactFile] | None = None,
    ) -> StoredModel:
        """Verify the artifact in `directory`, which is consumed, and publish it as the next version.

        Args:
            directory: The artifact.
            training_id, attempt: Where it came from, if from a training.
            files: Sizes and SHA-256 of its travelling files, where the caller has just seen them verified.

        Raises:
            CorruptDataError: A file differs from its digest.
            InvalidResultError: Its result is not complete.
            QuotaExceededError: The store would become larger than it may.
            StorageError: The disk takes no writes; `directory` is as it was.
        """
        if self._has_torch and await asyncio.to_thread(_lacks_derived_files, directory):
            await run_in_child(derive_torch_files, directory, timeout_s=DERIVE_TIMEOUT_S)
        return await _store(self._storage.publish, directory, training_id=training_id, attempt=attempt, files=files)

    async def keep_aside(
        self, directory: Path, *, training_id: str, attempt: int, files: Sequence[ArtifactFile] | None = None
    ) -> StoredModel:
        """Verify the artifact in `directory`, which is consumed, and keep it: it is listed, and no version.

        Raises:
            AlreadyExistsError: Another artifact of this attempt is kept.
            CorruptDataError, InvalidResultError, QuotaExceededError, StorageError: As for `publish`.
        """
        return await _store(self._storage.keep_aside, directory, training_id=training_id, attempt=attempt, files=files)

    async def list_by_training(self, training_id: str) -> list[StoredModel]:
        """Return the versions a training has published; those of "" are the imports."""
        return await asyncio.to_thread(self._storage.list_by_training, training_id)

    async def find_published(self, training_id: str, attempt: int, files: Sequence[ArtifactFile]) -> StoredModel | None:
        """Return the version of a training and attempt, or the import, that has all of `files`, or None."""
        return await asyncio.to_thread(self._storage.find_published, training_id, attempt, files)

    async def find_kept_aside(self, training_id: str, attempt: int) -> StoredModel | None:
        """Return what is kept aside of an attempt, or None."""
        try:
            return await asyncio.to_thread(self._storage.get, f"{ASIDE_NAME}/{aside_name(training_id, attempt)}")
        except ModelNotFoundError:
            return None

    async def find_file(self, sha256: str, size_bytes: int) -> Path | None:
        """Return a stored file that was published with these bytes, or None; whoever uses them checks them."""
        return await asyncio.to_thread(self._storage.find_file, sha256, size_bytes)

    async def check_room(self, size_bytes: int) -> None:
        """Raise QuotaExceededError unless `size_bytes` more may be stored."""
        await asyncio.to_thread(self._storage.check_room, size_bytes)

    async def find_by_training(self, training_id: str) -> StoredModel | None:
        """Return the version a training has published, or None."""
        return await asyncio.to_thread(self._storage.find_by_training, training_id)

    async def find_predecessor(self, model: ModelSummary) -> ModelSummary | None:
        """Return the newest earlier version of the same name that was trained on the same days, or None.

        Only the newest thousands of the strategy's versions are looked at.
        """
        return await asyncio.to_thread(self._find_predecessor, model)

    def _find_predecessor(self, model: ModelSummary) -> ModelSummary | None:
        query, after = ModelQuery(strategy_name=model.strategy_name), ""
        for _ in range(MAX_PREDECESSOR_PAGES):
            page = self._storage.query(query, limit=MAX_PAGE_MODELS, after=after)
            for other in page.models:
                is_same_set = (other.symbols, other.timeframes) == (model.symbols, model.timeframes)
                if is_same_set and other.version < model.version and _days(other) == _days(model):
                    return other
            after = page.next
            if not after:
                break
        return None


async def _store(call: Callable[P, StoredModel], *args: P.args, **kwargs: P.kwargs) -> StoredModel:
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except OSError as error:
        raise StorageError(f"the model store takes no writes ({error}); free some space") from error


def _lacks_derived_files(directory: Path) -> bool:
    weights = directory / WEIGHTS_FILE
    if not weights.is_file() or weights.stat().st_size > MAX_DERIVED_WEIGHTS_BYTES:
        return False
    return not all((directory / name).exists() for name in DERIVED_FILES)


def _days(model: ModelSummary) -> tuple[str, str]:
    return model.lineage.start_date, model.lineage.end_date
