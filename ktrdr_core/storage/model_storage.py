"""The model store: immutable versions in directories, aliases beside them, an index over all. Its layout: `layout.py`.

A version appears by one rename of a complete, fsynced directory and goes by one. A file lock orders whoever changes
something, over all processes; the rename itself cannot clobber, since a directory with files in it is never renamed
over. The directories are the truth: whatever else there is, the index and `latest`, is put right from them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from ktrdr_core.clock import utc_now
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.errors import (
    AlreadyExistsError,
    InvalidInputError,
    ModelReferencedError,
    QuotaExceededError,
    UnavailableError,
    WriteConflictError,
)
from ktrdr_core.storage.artifact import MAX_DERIVED_WEIGHTS_BYTES, ModelArtifact, verify_artifact, write_artifact
from ktrdr_core.storage.artifact_files import (
    DERIVED_FILES,
    TRAVELLING_FILES,
    WEIGHTS_FILE,
    ArtifactFile,
    artifact_files,
    digest_of_files,
    hash_file,
)
from ktrdr_core.storage.garbage import Garbage, GarbageRules
from ktrdr_core.storage.layout import (
    ASIDE_DIR,
    LATEST,
    aside_name,
    check_alias,
    link_target,
    place,
    split_version,
    version_name,
)
from ktrdr_core.storage.model_catalogue import ModelCatalogue, split_name
from ktrdr_core.storage.model_query import ModelQuery
from ktrdr_core.storage.publication import Publication, check_sizes
from ktrdr_core.storage.read_version import describe_version
from ktrdr_core.storage.store_lock import hold_unread
from ktrdr_core.storage.stored_model import ModelSummary, StoredModel
from ktrdr_core.storage.torch_files import derive_torch_files, has_torch

logger = logging.getLogger(__name__)


def _is_never_protected(model: ModelSummary) -> bool:
    return False


class ModelStorage(ModelCatalogue):
    """A store of models in the directory `root`, shared by any number of threads and processes. Every call blocks.

    Args:
        root: The store; made by the first that is stored in it.
        max_size_bytes: Size of all files together at most; None: as the disk has room.
    """

    def __init__(self, root: Path, *, max_size_bytes: int | None = None) -> None:
        super().__init__(root)
        self._max_size_bytes = max_size_bytes

    def save(self, artifact: ModelArtifact) -> StoredModel:
        """Store `artifact` as the next version of its strategy, symbols and timeframes."""
        staging = self._files.new_staging()
        try:
            write_artifact(staging, artifact)
            if has_torch() and (staging / WEIGHTS_FILE).stat().st_size <= MAX_DERIVED_WEIGHTS_BYTES:
                derive_torch_files(staging)
            return self.publish(staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def publish(
        self,
        directory: Path,
        *,
        training_id: str = "",
        attempt: int = 0,
        files: Sequence[ArtifactFile] | None = None,
    ) -> StoredModel:
        """Move the complete artifact in `directory` into the store as the next version.

        Publishing the same digest for the same training and attempt again answers the version that is there.

        Args:
            directory: The artifact; afterwards gone from there.
            training_id: Training it came from, if any.
            attempt: Session within that training.
            files: Sizes and SHA-256 of its travelling files, where the caller has just seen them verified; else they
                are read once more.

        Raises:
            NotFoundError, CorruptDataError: The artifact is incomplete or damaged.
            InvalidInputError: Its strategy name, a symbol or a timeframe is no name.
            QuotaExceededError: The store would become larger than it may.
        """
        if training_id:
            aside_name(training_id, attempt)  # one rule for origins
        files, result = _verify(directory, files)
        strategy_name, set_name = place(result)
        self._root.mkdir(parents=True, exist_ok=True)
        with self._files.nearby(directory) as source, self._files.lock():
            self._sync()
            for known in self._index.list_by_training(training_id) if training_id else ():
                if (known.attempt, known.digest) == (attempt, result["artifact_digest"]):
                    if source.resolve() != known.path.resolve():
                        shutil.rmtree(source)
                    return self._read(known.path)
            publication = self._sign(source, files, result, training_id=training_id, attempt=attempt)
            target = self._files.move_in(source, strategy_name, set_name)
            self._files.point(target.with_name(f"{set_name}_{LATEST}"), target.name)
            self._refresh_index(strategy_name)
        return describe_version(target, publication, {**result, "model_path": str(target)}, aliases=(LATEST,))

    def keep_aside(
        self, directory: Path, *, training_id: str, attempt: int, files: Sequence[ArtifactFile] | None = None
    ) -> StoredModel:
        """Move the artifact of an attempt that was given up out of the way: it is kept, listed, and no version.

        Keeping the same digest again answers what is there.

        Args:
            directory: The artifact; afterwards gone from there.
            training_id: Training it came from.
            attempt: Session within that training.
            files: As for `publish`.

        Raises:
            NotFoundError, CorruptDataError, InvalidInputError, QuotaExceededError: As for `publish`.
            AlreadyExistsError: Another artifact of this attempt is kept.
        """
        entry = aside_name(training_id, attempt)
        files, result = _verify(directory, files)
        target = self._root / ASIDE_DIR / entry
        (self._root / ASIDE_DIR).mkdir(parents=True, exist_ok=True)
        with self._files.nearby(directory) as source, self._files.lock():
            if target.exists():
                known = self._read(target)
                if known.digest != result["artifact_digest"]:
                    raise AlreadyExistsError(
                        f"another artifact is kept aside as {known.name}; delete it with 'ktrdr models delete "
                        f"{known.name}' if this one is wanted",
                        metadata={"name": known.name},
                    )
                shutil.rmtree(source)
                return known
            self._sync()
            publication = self._sign(source, files, result, training_id=training_id, attempt=attempt)
            self._files.move(source, target)
            self._refresh_index(ASIDE_DIR)
        return describe_version(target, publication, {**result, "model_path": str(target)})

    def check_room(self, size_bytes: int) -> None:
        """Raise QuotaExceededError unless `size_bytes` more may be stored."""
        if self._max_size_bytes is None:
            return
        used = self.size_bytes()
        if used + size_bytes > self._max_size_bytes:
            raise QuotaExceededError(
                f"the model store has {used} bytes, {size_bytes} more would pass its limit of {self._max_size_bytes}; "
                "remove models with 'ktrdr models gc' or 'ktrdr models delete', or raise the limit",
                metadata={"used": str(used), "limit": str(self._max_size_bytes)},
            )

    def set_alias(self, parent: str, alias: str, version: int, *, expected: int | None = None) -> StoredModel | None:
        """Point an alias of a set of versions at one of them, in one step.

        Args:
            parent: "strategy/EURUSD_1h".
            alias: Its name.
            version: Where it shall point; 0 removes it.
            expected: Where it must point now, 0: it must not exist; None: wherever it points.

        Returns:
            The model it points at; None if it was removed.

        Raises:
            InvalidInputError: The alias is no name or reserved, or is one of another set.
            ModelNotFoundError: There is no such version.
            WriteConflictError: It does not point at `expected`; the metadata tells where it points.
        """
        check_alias(alias)
        strategy_name, set_name = split_name(parent)
        if version < 0:
            raise InvalidInputError(f"version must be at least 0, was {version}", field="version")
        directory = self._root / strategy_name
        link = directory / f"{set_name}_{alias}"
        if not directory.is_dir():
            raise self._not_found(parent)
        with self._files.lock():
            present = link_target(link)
            if (present is None or present[0] != set_name) and os.path.lexists(link):
                raise InvalidInputError(f"{link.name} is no alias of {parent}; choose another name", field="alias")
            current = present[1] if present else 0
            if expected is not None and current != expected:
                points = f"points at version {current}" if current else "does not exist"
                raise WriteConflictError(
                    f"alias {alias!r} of {parent} {points}, expected was {expected or 'none'}; look again and "
                    "decide anew",
                    metadata={"version": str(current)},
                )
            target = directory / version_name(set_name, version)
            if version:
                if not target.is_dir():
                    raise self._not_found(f"{parent}_v{version}")
                self._read(target)  # a damaged one is refused
            self._files.point(link, target.name if version else "")
            self._refresh_index(strategy_name)
            return self._read(target) if version else None

    def delete(self, name: str, *, force: bool = False) -> None:
        """Delete a version, or an artifact that is kept aside; `latest` moves to the newest version that is left.

        Args:
            name: Its own name; not an alias, a strategy or a model_id.
            force: Also if an alias points at it, which goes too.

        Raises:
            ModelNotFoundError: There is none.
            ModelReferencedError: An alias other than `latest` points at it.
        """
        path = self._resolve(name)
        if not name.endswith(f"/{path.name}"):
            raise InvalidInputError(
                f"name must be that of one version or of an artifact kept aside, was {name!r}, which is "
                f"{path.parent.name}/{path.name} now",
                field="name",
            )
        with self._files.lock():
            if not path.is_dir():
                raise self._not_found(name)
            if path.parent.name != ASIDE_DIR:
                self._release(name, path, force=force)
            grave = self._files.bury(path)
            self._refresh_index(path.parent.name)
        self._files.remove(grave)

    def collect_garbage(
        self,
        *,
        keep_versions: int | None,
        kept_aside_days: int = 30,
        dry_run: bool,
        is_protected: Callable[[ModelSummary], bool] = _is_never_protected,
        now: datetime | None = None,
    ) -> list[Garbage]:
        """Remove what nothing refers to, and return it.

        Never removed are a version that an alias points at, the newest of its set, one that is protected, and one of
        which a file is open.

        Args:
            keep_versions: Newest versions of each set that stay; None: all.
            kept_aside_days: Days for which artifacts are kept aside.
            dry_run: Remove nothing, only tell.
            is_protected: Says of a model that it stays.
            now: The time; None: as the clock says.

        Raises:
            InvalidInputError: A limit is below 1.
        """
        rules = GarbageRules(
            keep_versions=keep_versions,
            kept_aside_days=kept_aside_days,
            is_protected=is_protected,
            now=now or utc_now(),
        )
        rules.check()
        if not self._root.is_dir():
            return []
        removed, graves = [], []
        with self._files.lock():
            self._sync()
            leftovers = sorted(rules.find_leftovers(self._root), key=lambda garbage: garbage.name)
            aside = self._index.page(ModelQuery(kept_aside=True), limit=None).models
            for model, garbage in rules.find_models(self._index.page(ModelQuery(), limit=None).models, aside):
                with hold_unread(model.path) as is_unread:
                    if is_unread:
                        removed.append(garbage)
                        if not dry_run:
                            graves.append(self._files.bury(model.path))
            if not dry_run:
                self._refresh_index(None)
        if not dry_run:
            for path in (*graves, *(self._root / garbage.name for garbage in leftovers)):
                self._files.remove(path)
        return [*removed, *leftovers]

    def _release(self, name: str, path: Path, *, force: bool) -> None:
        """Take away what points at a version that goes."""
        set_name, version = split_version(path.name) or ("", 0)
        latest = path.with_name(f"{set_name}_{LATEST}")
        links = [link for link in self._files.links_to(path) if link != latest]
        aliases = ", ".join(link.name.removeprefix(f"{set_name}_") for link in links)
        if links and not force:
            raise ModelReferencedError(
                f"{name} is what {aliases} points at; point that elsewhere first, or delete it with force",
                metadata={"aliases": aliases},
            )
        self._index.refresh(path.parent.name)
        newest = self._index.newest_sound(path.parent.name, set_name, besides=version)
        if link_target(latest) == (set_name, version) or not newest:
            self._files.point(latest, version_name(set_name, newest) if newest else "")
        for link in links:
            self._files.point(link, "")

    def _sign(
        self,
        directory: Path,
        files: Sequence[ArtifactFile],
        result: TrainingResult,
        *,
        training_id: str,
        attempt: int,
    ) -> Publication:
        self.check_room(sum(file.size_bytes for file in files))
        publication = Publication(
            training_id=training_id,
            attempt=attempt,
            digest=result["artifact_digest"],
            create_time=utc_now(),
            files=tuple(files),
        )
        self._files.sign(directory, publication)
        return publication

    def _refresh_index(self, directory: str | None) -> None:
        """Tell the index of a change that is done; it would find it by itself, so that nothing fails without it."""
        try:
            self._index.refresh(directory)
        except UnavailableError as error:
            logger.warning("a change of the model store is not in its index yet: %s", error)


def _verify(directory: Path, files: Sequence[ArtifactFile] | None) -> tuple[tuple[ArtifactFile, ...], TrainingResult]:
    """Return the files of an artifact and its result, or raise what is wrong with it."""
    if files is None:
        complete = tuple(artifact_files(directory))
    else:
        complete = _complete(directory, files)
    result = verify_artifact(directory, digest=digest_of_files(complete))
    # What cannot be told of it afterwards is refused before it is anywhere.
    preview = Publication(training_id="", attempt=0, digest="", create_time=utc_now(), files=complete)
    describe_version(directory, preview, result)
    return complete, result


def _complete(directory: Path, files: Sequence[ArtifactFile]) -> tuple[ArtifactFile, ...]:
    """Return `files` in their order, with those that were derived beside them."""
    known = {file.name: file for file in files}
    if set(known) - set(DERIVED_FILES) != set(TRAVELLING_FILES):
        raise InvalidInputError(f"the files of an artifact must be {', '.join(TRAVELLING_FILES)}, were {list(known)}")
    check_sizes(directory, files)
    for name in DERIVED_FILES:
        if (directory / name).is_file() and name not in known:
            known[name] = hash_file(directory / name)
    return tuple(known[name] for name in (*TRAVELLING_FILES, *DERIVED_FILES) if name in known)
