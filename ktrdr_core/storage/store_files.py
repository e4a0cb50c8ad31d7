"""The changes of a model store's directories, each one step that is whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

from ktrdr_core.data.durable import fsync_directory, fsync_tree, write_durably
from ktrdr_core.storage.layout import LOCK_FILE, STAGING_DIR, link_target, split_version, version_name
from ktrdr_core.storage.publication import PUBLICATION_FILE, Publication
from ktrdr_core.storage.store_lock import LOCK_TIMEOUT_S, hold_lock

logger = logging.getLogger(__name__)


class StoreFiles:
    """The directories of the store at `root`; whoever changes something holds `lock()`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def lock(self, *, timeout_s: float = LOCK_TIMEOUT_S) -> AbstractContextManager[None]:
        """Hold the store against changes by others.

        Raises:
            UnavailableError: Others held it for `timeout_s`.
        """
        return hold_lock(self._root / LOCK_FILE, timeout_s=timeout_s)

    def new_staging(self) -> Path:
        """Return a path for something on its way in or out; its parent is there."""
        staging = self._root / STAGING_DIR
        staging.mkdir(parents=True, exist_ok=True)
        return staging / uuid4().hex

    @contextmanager
    def nearby(self, directory: Path) -> Iterator[Path]:
        """Give `directory`, fsynced, on the store's file system: itself, or a copy that takes its place.

        Left without an exception, `directory` is gone: the caller has moved it, or its copy.
        """
        fsync_tree(directory)
        if directory.stat().st_dev == self._root.stat().st_dev:
            yield directory
            return
        copy = self._copy(directory)
        try:
            yield copy
        finally:
            if copy.exists():
                self.remove(copy)
        shutil.rmtree(directory)

    def sign(self, directory: Path, publication: Publication) -> None:
        """Make an artifact's directory a published one, without what its writer left hidden in it."""
        for entry in directory.iterdir():
            if entry.name.startswith(".") and entry.name != PUBLICATION_FILE:
                _remove(entry)
        write_durably(directory / PUBLICATION_FILE, publication.render())

    def move_in(self, directory: Path, strategy_name: str, set_name: str) -> Path:
        """Make `directory` the next version of a set and return where it is; a number is never given twice."""
        parent = self._root / strategy_name
        parent.mkdir(exist_ok=True)
        fsync_directory(self._root)
        counter = parent / f"{set_name}.versions"
        given = int(counter.read_text()) if counter.is_file() else 0
        version = max([given, *self._versions(parent, set_name)]) + 1
        while True:
            write_durably(counter, str(version).encode())
            target = parent / version_name(set_name, version)
            try:
                self.move(directory, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                version += 1
                continue
            return target

    def move(self, directory: Path, target: Path) -> None:
        """Rename a directory durably; between mounts of one file system, copy it beside the store first."""
        try:
            directory.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            copy = self._copy(directory)
            try:
                copy.rename(target)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
            fsync_directory(target.parent)
            shutil.rmtree(directory)
        fsync_directory(target.parent)

    def bury(self, path: Path) -> Path:
        """Take a directory out of sight, in one step so that nobody sees half of it; return where it is."""
        grave = self.new_staging()
        path.rename(grave)
        fsync_directory(path.parent)
        return grave

    def remove(self, path: Path) -> None:
        """Remove what is out of sight; what cannot be removed now is garbage."""
        try:
            _remove(path)
        except OSError as error:
            logger.warning("%s stays until garbage is collected: %s", path, error)

    def point(self, link: Path, target_name: str) -> None:
        """Make `link` point at its sibling `target_name`, in one step; "" removes it."""
        if not target_name:
            link.unlink(missing_ok=True)
        else:
            staging = link.with_name(f".{link.name}.{uuid4().hex}")
            staging.symlink_to(target_name)
            staging.replace(link)
        fsync_directory(link.parent)

    def links_to(self, path: Path) -> list[Path]:
        """Return the aliases beside a version that point at it."""
        target = split_version(path.name)
        with os.scandir(path.parent) as entries:
            links = sorted(path.parent / entry.name for entry in entries if entry.is_symlink())
        return [link for link in links if link_target(link) == target]

    def _copy(self, directory: Path) -> Path:
        copy = self.new_staging()
        try:
            shutil.copytree(directory, copy, symlinks=True)
            fsync_tree(copy)
        except BaseException:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        return copy

    @staticmethod
    def _versions(parent: Path, set_name: str) -> Sequence[int]:
        found = (split_version(name) for name in os.listdir(parent))
        return [each[1] for each in found if each and each[0] == set_name]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
