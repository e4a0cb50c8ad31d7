"""The model store: immutable versions in directories, `latest` beside them.

```
<root>/<strategy>/<symbols>_<timeframes>_v<N>/       a version
<root>/<strategy>/<symbols>_<timeframes>_latest      symbolic link to the newest one
<root>/<strategy>/<symbols>_<timeframes>.versions    the highest number ever given, so none is given twice
```
A version appears by one rename of a complete, fsynced directory. A file lock orders publishers of all processes; the
rename itself cannot clobber, since a directory with files in it is never renamed over.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

from ktrdr_core.clock import utc_now
from ktrdr_core.config.naming import check_name
from ktrdr_core.data.durable import fsync_directory, fsync_tree, write_durably
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.errors import CorruptDataError, InvalidInputError, ModelNotFoundError, NotFoundError
from ktrdr_core.storage.artifact import (
    ModelArtifact,
    artifact_files,
    derive_torch_files,
    has_torch,
    load_result,
    verify_artifact,
    write_artifact,
)
from ktrdr_core.storage.publication import PUBLICATION_FILE, Publication, check_publication
from ktrdr_core.storage.stored_model import StoredModel

logger = logging.getLogger(__name__)

LATEST = "latest"
_LOCK_FILE = ".lock"
_STAGING_DIR = ".staging"
_VERSION_DIR = re.compile(r"(?P<set>.+)_v(?P<version>[1-9][0-9]*)")
_MAX_SET_LENGTH = 100


class ModelStorage:
    """A store of models in the directory `root`, shared by any number of threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root)
        self._cache: dict[Path, StoredModel] = {}
        self._cache_lock = threading.Lock()

    @property
    def root(self) -> Path:
        return self._root

    def save(self, artifact: ModelArtifact) -> StoredModel:
        """Store `artifact` as the next version of its strategy, symbols and timeframes."""
        staging = self._root / _STAGING_DIR / uuid4().hex
        try:
            write_artifact(staging, artifact)
            if has_torch():
                derive_torch_files(staging)
            return self.publish(staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def publish(self, directory: Path, *, training_id: str = "", attempt: int = 0) -> StoredModel:
        """Move the complete artifact in `directory` into the store as the next version.

        Publishing the same digest for the same training and attempt again answers the version that is there.

        Args:
            directory: The artifact; afterwards gone from there.
            training_id: Training it came from, if any.
            attempt: Session within that training.

        Raises:
            NotFoundError, CorruptDataError: The artifact is incomplete or damaged.
            InvalidInputError: Its strategy name, a symbol or a timeframe is no name.
        """
        result = verify_artifact(directory)
        strategy_name, set_name = _place(result)
        digest = result["artifact_digest"]
        with self._lock():
            if training_id:
                known = self.find_by_training(training_id)
                if known is not None and (known.attempt, known.digest) == (attempt, digest):
                    if directory.resolve() != known.path.resolve():
                        shutil.rmtree(directory)
                    return known
            parent = self._root / strategy_name
            parent.mkdir(parents=True, exist_ok=True)
            fsync_directory(self._root)
            publication = Publication(
                training_id=training_id,
                attempt=attempt,
                digest=digest,
                create_time=utc_now(),
                files=tuple(artifact_files(directory)),
            )
            write_durably(directory / PUBLICATION_FILE, publication.render())
            fsync_tree(directory)
            target = self._move_in(directory, parent, set_name)
            _point(parent / f"{set_name}_{LATEST}", target.name)
            return self._read(target)

    def load(self, name: str) -> StoredModel:
        """Return a model, its files checked against their SHA-256.

        Args:
            name: "strategy/EURUSD_1h_v3", "strategy/EURUSD_1h_latest", "strategy" (its newest version) or a model_id.

        Raises:
            ModelNotFoundError: There is none.
            CorruptDataError: A file differs from its SHA-256.
        """
        model = self._find(name)
        check_publication(model.path)
        return model

    def list(self, strategy_name: str | None = None) -> list[StoredModel]:
        """Return the stored versions, newest first; those of one strategy if named."""
        if strategy_name is not None:
            parents = [self._root / check_name(strategy_name, field="strategy_name", what="strategy name")]
        else:
            parents = sorted(self._root.iterdir()) if self._root.is_dir() else []
        models = []
        for parent in parents:
            if parent.name.startswith(".") or not parent.is_dir():
                continue
            for entry in parent.iterdir():
                if entry.name.startswith(".") or entry.is_symlink() or not _VERSION_DIR.fullmatch(entry.name):
                    continue
                try:
                    models.append(self._read(entry))
                except FileNotFoundError:  # deleted while listing
                    continue
                except (CorruptDataError, NotFoundError) as error:
                    logger.warning("left a damaged version out: %s", error)
        return sorted(models, key=lambda model: (model.create_time, model.version), reverse=True)

    def find_by_training(self, training_id: str) -> StoredModel | None:
        """Return the newest version that came from a training, or None."""
        return next((model for model in self.list() if model.training_id == training_id), None)

    def delete(self, name: str) -> None:
        """Delete a version; `latest` moves to the newest one that is left.

        Raises:
            ModelNotFoundError: There is none.
        """
        with self._lock():
            model = self._find(name)
            set_name = _set_of(model.path)
            parent = model.path.parent
            left = [other for other in self._versions(parent, set_name) if other != model.version]
            link = parent / f"{set_name}_{LATEST}"
            if left:
                _point(link, f"{set_name}_v{max(left)}")
            else:
                link.unlink(missing_ok=True)
            # Out of sight by one rename, so that nobody sees half of it.
            grave = self._root / _STAGING_DIR / uuid4().hex
            grave.parent.mkdir(parents=True, exist_ok=True)
            model.path.rename(grave)
            fsync_directory(parent)
            with self._cache_lock:
                self._cache.pop(model.path, None)
            shutil.rmtree(grave)

    def _find(self, name: str) -> StoredModel:
        strategy_name, _, version_name = name.partition("/")
        for part in (strategy_name, *([version_name] if version_name else [])):
            check_name(part, field="name", what="model name", error_class=InvalidInputError)
        parent = self._root / strategy_name
        if version_name:
            entry = parent / version_name
            if entry.is_symlink():
                entry = parent / os.readlink(entry)
            if _VERSION_DIR.fullmatch(entry.name) and entry.is_dir():
                return self._read(entry)
        elif _is_uuid(name):
            for model in self.list():
                if model.result["model_id"] == name:
                    return model
        elif models := self.list(strategy_name):
            return models[0]
        known = ", ".join(model.name for model in self.list()[:5]) or "none yet; train one"
        raise ModelNotFoundError(f"there is no model {name!r}; stored: {known}", metadata={"name": name})

    def _read(self, path: Path) -> StoredModel:
        with self._cache_lock:
            model = self._cache.get(path)
        if model is None or not path.is_dir():
            model = self._load_version(path)
            with self._cache_lock:
                self._cache[path] = model
        return replace(model, aliases=_aliases(path))

    def _load_version(self, path: Path) -> StoredModel:
        if not path.is_dir():
            raise FileNotFoundError(path)
        publication, result = Publication.read(path), load_result(path)
        match = _VERSION_DIR.fullmatch(path.name)
        return StoredModel(
            name=f"{path.parent.name}/{path.name}",
            path=path,
            strategy_name=path.parent.name,
            symbols=tuple(result["metadata"]["symbols"]),
            timeframes=tuple(result["metadata"]["timeframes"]),
            version=int(match["version"]) if match else 0,
            create_time=publication.create_time,
            training_id=publication.training_id,
            attempt=publication.attempt,
            digest=publication.digest,
            files=publication.files,
            result=result,
        )

    def _move_in(self, directory: Path, parent: Path, set_name: str) -> Path:
        counter = parent / f"{set_name}.versions"
        given = int(counter.read_text()) if counter.is_file() else 0
        version = max([given, *self._versions(parent, set_name)]) + 1
        while True:
            write_durably(counter, str(version).encode())
            target = parent / f"{set_name}_v{version}"
            try:
                _rename_across(directory, target, self._root / _STAGING_DIR)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                version += 1
                continue
            fsync_directory(parent)
            return target

    @staticmethod
    def _versions(parent: Path, set_name: str) -> Sequence[int]:
        matches = (_VERSION_DIR.fullmatch(entry.name) for entry in parent.iterdir())
        return [int(match["version"]) for match in matches if match and match["set"] == set_name]

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / _LOCK_FILE).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _place(result: TrainingResult) -> tuple[str, str]:
    """Return the strategy's name and the name of the set of versions a model belongs to; each a safe path part."""
    strategy_name = check_name(
        result["config"]["strategy_config"].get("name"), field="strategy_config.name", what="strategy name"
    )
    parts = []
    for field in ("symbols", "timeframes"):
        values: list[str] = result["metadata"]["symbols" if field == "symbols" else "timeframes"]
        if not values:
            raise InvalidInputError(f"metadata.{field} is empty; a model needs at least one", field=field)
        parts.append(
            "-".join(check_name(value, field=f"metadata.{field}", what=field.removesuffix("s")) for value in values)
        )
    set_name = "_".join(parts)
    if len(set_name) > _MAX_SET_LENGTH:
        set_name = f"{set_name[:60].rstrip('.-_')}-{sha256(set_name.encode()).hexdigest()[:16]}"
    return strategy_name, set_name


def _set_of(path: Path) -> str:
    match = _VERSION_DIR.fullmatch(path.name)
    if match is None:
        raise InvalidInputError(f"{path.name} is no version")
    return match["set"]


def _aliases(path: Path) -> tuple[str, ...]:
    link = path.with_name(f"{_set_of(path)}_{LATEST}")
    return (LATEST,) if link.is_symlink() and os.readlink(link) == path.name else ()


def _point(link: Path, target_name: str) -> None:
    """Make `link` point at its sibling `target_name`, in one step."""
    staging = link.with_name(f".{link.name}.{uuid4().hex}")
    staging.symlink_to(target_name)
    staging.replace(link)
    fsync_directory(link.parent)


def _rename_across(source: Path, target: Path, staging_root: Path) -> None:
    """Rename a directory; from another file system, copy it beside the store first."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = staging_root / uuid4().hex
        try:
            shutil.copytree(source, copy)
            fsync_tree(copy)
            copy.rename(target)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(source)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
