"""The reading side of the model store: find, get, list, verify, open. The layout of a store is in `layout.py`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ktrdr_core.config.naming import check_name
from ktrdr_core.errors import (
    CorruptDataError,
    InvalidInputError,
    ModelNotFoundError,
    NotFoundError,
    UnavailableError,
)
from ktrdr_core.storage.artifact_files import ArtifactFile
from ktrdr_core.storage.layout import (
    ASIDE_DIR,
    ASIDE_NAME,
    LATEST,
    is_uuid,
    link_target,
    split_version,
    version_name,
)
from ktrdr_core.storage.model_index import ModelIndex, WrongLatest
from ktrdr_core.storage.model_query import MAX_PAGE_MODELS, FileCheck, ModelPage, ModelQuery
from ktrdr_core.storage.publication import Publication, check_files, check_publication, check_sizes
from ktrdr_core.storage.read_version import read_version
from ktrdr_core.storage.store_files import StoreFiles
from ktrdr_core.storage.store_lock import hold_for_reading
from ktrdr_core.storage.stored_model import ModelSummary, StoredModel

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelCatalogue:
    """What is in the store in the directory `root`. Every call blocks; nothing but `latest` and the index is changed.

    A `name` is "strategy/EURUSD_1h_v3", "strategy/EURUSD_1h_latest" or of another alias, "strategy" (its newest
    version), "aside/<training_id>-<attempt>" (an artifact that is kept aside) or a model_id.

    Args:
        root: The store; it need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(root)
        self._files = StoreFiles(self._root)
        self._index = ModelIndex(self._root)

    @property
    def root(self) -> Path:
        return self._root

    def close(self) -> None:
        """Close the index; the next call opens it again."""
        self._index.close()

    def get(self, name: str) -> StoredModel:
        """Return a model; its weights are not read.

        Raises:
            ModelNotFoundError: There is none.
            CorruptDataError: What its files tell cannot be read.
        """
        return self._read(self._resolve(name))

    def load(self, name: str) -> StoredModel:
        """Return a model whose weights are to be used: every file is checked against its SHA-256.

        Raises:
            ModelNotFoundError: There is none.
            CorruptDataError: A file differs from what was published.
        """
        path = self._resolve(name)
        check_publication(path)
        return self._read(path)

    def verify(self, name: str) -> tuple[StoredModel, list[FileCheck]]:
        """Return a model and what was found of each of its files, those that were added last; every byte is read.

        Raises:
            ModelNotFoundError: There is none.
            CorruptDataError: What its files tell cannot be read; the message names all that are damaged.
        """
        path = self._resolve(name)
        try:
            return self._read(path), check_files(path)
        except CorruptDataError:
            check_publication(path)
            raise

    def query(self, query: ModelQuery, *, limit: int, after: str = "") -> ModelPage:
        """Return a page of models; it begins where the one before ended, also if models came or went meanwhile.

        Args:
            query: Which ones, and in which order.
            limit: How many at most, 1 to MAX_PAGE_MODELS.
            after: `next` of the page before.

        Raises:
            InvalidInputError: A filter or the limit is out of bounds, or `after` is no token of this query.
        """
        query.check()
        if not 1 <= limit <= MAX_PAGE_MODELS:
            raise InvalidInputError(f"a page has 1 to {MAX_PAGE_MODELS} models, was {limit}", field="page_size")
        if not self._sync(query.strategy_name if query.strategy_name and not query.kept_aside else None):
            return ModelPage([], "")
        return self._index.page(query, limit=limit, after=after)

    def newest_versions(self) -> dict[str, int]:
        """Return the number of the newest version of each strategy that has one."""
        return self._index.newest_versions() if self._sync() else {}

    def find_by_training(self, training_id: str) -> StoredModel | None:
        """Return the newest version that came from a training, or None."""
        return next(iter(self.list_by_training(training_id)), None)

    def list_by_training(self, training_id: str) -> list[StoredModel]:
        """Return the versions that came from a training, newest first; a damaged one is left out with a warning."""
        found = []
        for model in self._index.list_by_training(training_id) if self._sync() else ():
            try:
                found.append(self._read(model.path))
            except ModelNotFoundError:  # deleted meanwhile
                continue
            except CorruptDataError as error:
                logger.warning("left a damaged version out: %s", error)
        return found

    def find_published(self, training_id: str, attempt: int, files: Sequence[ArtifactFile]) -> StoredModel | None:
        """Return the newest version of a training and attempt that has all of `files`, or None."""
        model = self._index.find_published(training_id, attempt, files) if self._sync() else None
        return self._read(model.path) if model is not None else None

    def find_file(self, sha256: str, size_bytes: int) -> Path | None:
        """Return a stored file that was published with these bytes, or None; whoever uses them checks them."""
        if not _SHA256.fullmatch(sha256) or not self._sync():
            return None
        for path in self._index.find_files(sha256):
            if path.is_file() and path.stat().st_size == size_bytes:
                return path
        return None

    def size_bytes(self) -> int:
        """Return the size of all versions and of what is kept aside."""
        return self._index.size_bytes() if self._sync() else 0

    @contextmanager
    def open_file(self, name: str, file_name: str) -> Iterator[tuple[ArtifactFile, BinaryIO]]:
        """Open a file of a model to read; that the model is deleted meanwhile does not disturb the reader.

        Raises:
            ModelNotFoundError: There is no such model.
            NotFoundError: It has no such file.
            CorruptDataError: The file is missing or has another size than it was published with.
        """
        path = self._resolve(name)
        with hold_for_reading(path) as is_there:
            if not is_there:
                raise self._not_found(name)
            try:
                file, stream = _open_published(path, file_name)
            except (CorruptDataError, FileNotFoundError):
                if not path.is_dir():  # deleted meanwhile
                    raise self._not_found(name) from None
                raise
            with stream:
                yield file, stream

    def _resolve(self, name: str) -> Path:
        """Return the directory a name means; it was there a moment ago."""
        if "/" not in name:
            check_name(name, field="name", what="model name", error_class=InvalidInputError)
            known = self._sync() and (self._index.find_by_id(name) if is_uuid(name) else self._index.find_newest(name))
            if not known:
                raise self._not_found(name)
            return known.path
        strategy_name, entry = split_name(name)
        parent = self._root / strategy_name
        if split_version(entry):
            path = parent / entry
        elif strategy_name == ASIDE_NAME and (self._root / ASIDE_DIR / entry).is_dir():
            path = self._root / ASIDE_DIR / entry
        elif target := link_target(parent / entry):
            path = parent / version_name(*target)
        else:
            raise self._not_found(name)
        if path.is_symlink() or not path.is_dir():
            raise self._not_found(name)
        return path

    def _read(self, path: Path) -> StoredModel:
        name = f"{ASIDE_NAME if path.parent.name == ASIDE_DIR else path.parent.name}/{path.name}"
        self._sync(path.parent.name)
        try:
            return read_version(path, aliases=self._index.aliases_of(path.parent.name, path.name))
        except CorruptDataError:
            if not path.is_dir():
                raise self._not_found(name) from None
            raise

    def _not_found(self, name: str) -> ModelNotFoundError:
        known = ", ".join(model.name for model in self.query(ModelQuery(), limit=5).models) or "none yet; train one"
        return ModelNotFoundError(f"there is no model {name!r}; stored: {known}", metadata={"name": name})

    def _sync(self, directory: str | None = None) -> bool:
        """Bring the index up to date with all directories or one; False if there is no store yet."""
        if not self._root.is_dir():
            return False
        if wrong := self._index.refresh(directory):
            self._heal(wrong)
        return True

    def _heal(self, wrong: Sequence[WrongLatest]) -> None:
        """Put `latest` right where a writer was killed, or a version was copied in or removed by hand."""
        try:
            with self._files.lock(timeout_s=0.0):
                for each in wrong:
                    version = self._index.newest_sound(each.directory, each.set_name)
                    link = self._root / each.directory / f"{each.set_name}_{LATEST}"
                    if link_target(link) != ((each.set_name, version) if version else None):
                        self._files.point(link, version_name(each.set_name, version) if version else "")
                        logger.warning("%s points at version %d now", link, version)
                for name in sorted({each.directory for each in wrong}):
                    self._index.refresh(name)
        except UnavailableError:
            return  # who holds the lock is about to do it
        except OSError as error:
            logger.warning("latest cannot be put right: %s", error)

    def list(self, strategy_name: str | None = None) -> list[ModelSummary]:
        """Return the stored versions, newest first; those of one strategy if named."""
        if strategy_name is not None:
            check_name(strategy_name, field="strategy_name", what="strategy name", error_class=InvalidInputError)
        if not self._sync(strategy_name):
            return []
        return self._index.page(ModelQuery(strategy_name=strategy_name or ""), limit=None).models


def split_name(name: str) -> tuple[str, str]:
    """Return strategy and entry of a name with one slash; each a safe path part."""
    strategy_name, _, entry = name.partition("/")
    for part in (strategy_name, entry):
        check_name(part, field="name", what="model name", error_class=InvalidInputError)
    return strategy_name, entry


def _open_published(path: Path, file_name: str) -> tuple[ArtifactFile, BinaryIO]:
    files = Publication.read(path).files
    file = next((file for file in files if file.name == file_name), None)
    if file is None:
        known = ", ".join(file.name for file in files)
        raise NotFoundError(f"{path.name} has no file {file_name[:80]!r}; it has: {known}")
    check_sizes(path, [file])
    return file, (path / file_name).open("rb", buffering=0)
