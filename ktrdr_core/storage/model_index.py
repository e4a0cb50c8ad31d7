"""The index of a model store: what its directories hold, for lists, filters and pages over many thousand models.

The directories are the truth. Before each answer the index looks at the time of change of each directory it answers
about; of one that has changed it reads the entries that are new, and only those.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ktrdr_core.config.naming import is_name
from ktrdr_core.errors import CorruptDataError, InvalidInputError
from ktrdr_core.storage.artifact_files import METADATA_FILE, ArtifactFile
from ktrdr_core.storage.index_database import IndexDatabase, transaction
from ktrdr_core.storage.index_rows import IndexedEntry, insert_entry, select_page, select_where, split_aliases
from ktrdr_core.storage.layout import (
    ASIDE_DIR,
    INDEX_FILE,
    LATEST,
    link_target,
    split_version,
    version_name,
)
from ktrdr_core.storage.model_query import ModelPage, ModelQuery
from ktrdr_core.storage.publication import Publication, check_sizes
from ktrdr_core.storage.read_version import read_version
from ktrdr_core.storage.stored_model import ModelSummary

logger = logging.getLogger(__name__)

T = TypeVar("T")

# File systems keep times of change coarsely: of a directory that changed this recently, another change may not show.
SETTLED_AFTER_NS = 2 * 10**9
_BATCH = 256
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class WrongLatest:
    """A set of versions whose `latest` does not point at `version`, its newest sound one; 0: it has none."""

    directory: str
    set_name: str
    version: int


class ModelIndex:
    """What is in the store at `root`; any number of threads and processes ask at once.

    Args:
        root: The store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._database = IndexDatabase(root / INDEX_FILE)
        self._seen: dict[str, tuple[str, int]] = {}
        self._generation = 0

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._database.close()

    def refresh(self, directory: str | None = None) -> list[WrongLatest]:
        """Take over what has changed in the store, or in one of its directories, since it was last looked at.

        Returns:
            Sets of the directories that had changed, whose `latest` is wrong.
        """
        return self._database.run(lambda connection: self._refresh(connection, directory))

    def page(self, query: ModelQuery, *, limit: int | None, after: str = "") -> ModelPage:
        """Return a page of models.

        Raises:
            InvalidInputError: `after` is no token of this query.
        """
        page = self._ask(lambda connection: select_page(connection, self._root, query, limit=limit, after=after))
        return ModelPage(*page)

    def find_newest(self, strategy_name: str) -> ModelSummary | None:
        """Return the newest version of a strategy."""
        return self._first("+is_kept_aside = 0 AND strategy_name = ?", strategy_name)

    def find_by_id(self, model_id: str) -> ModelSummary | None:
        """Return the newest model, versions before those kept aside, with this identity."""
        return self._first("+is_kept_aside = 0 AND model_id = ?", model_id.lower()) or self._first(
            "model_id = ?", model_id.lower()
        )

    def list_by_training(self, training_id: str) -> list[ModelSummary]:
        """Return the versions that came from a training, newest first."""
        return self._select("+is_kept_aside = 0 AND training_id = ?", training_id)

    def find_published(self, training_id: str, attempt: int, files: Sequence[ArtifactFile]) -> ModelSummary | None:
        """Return the newest version of this training and attempt that has all these files."""
        wanted = {(file.name, file.sha256) for file in files}
        # It has the model_id, so no other file tells artifacts apart as well.
        metadata = next((file.sha256 for file in files if file.name == METADATA_FILE), "")
        found = self._select(
            "+is_kept_aside = 0 AND training_id = ? AND attempt = ? "
            "AND id IN (SELECT model FROM files WHERE sha256 = ?)",
            *(training_id, attempt, metadata),
        )
        return next((model for model in found if wanted <= {(file.name, file.sha256) for file in model.files}), None)

    def find_files(self, sha256: str) -> list[Path]:
        """Return the stored files that were published with these bytes."""
        rows: list[tuple[str, str, str]] = self._ask(
            lambda connection: connection.execute(
                "SELECT directory, entry, files.name FROM files JOIN models ON models.id = files.model "
                "WHERE sha256 = ? ORDER BY is_kept_aside, create_time DESC",
                (sha256,),
            ).fetchall()
        )
        return [self._root.joinpath(*row) for row in rows]

    def aliases_of(self, directory: str, entry: str) -> tuple[str, ...]:
        """Return the aliases that point at a version."""
        (joined,) = self._ask(
            lambda connection: connection.execute(
                "SELECT group_concat(alias, '/') FROM aliases WHERE directory = ? AND entry = ?", (directory, entry)
            ).fetchone()
        )
        return split_aliases(joined)

    def newest_versions(self) -> dict[str, int]:
        """Return the number of the newest version of each strategy."""
        return dict(
            self._ask(
                lambda connection: connection.execute(
                    # SQLite takes the other columns from the row that has the maximum.
                    "SELECT strategy_name, version FROM (SELECT strategy_name, version, max(create_time) FROM models "
                    "WHERE problem = '' AND is_kept_aside = 0 GROUP BY strategy_name)"
                ).fetchall()
            )
        )

    def newest_sound(self, directory: str, set_name: str, *, besides: int = 0) -> int:
        """Return the highest version of a set that is not damaged, leaving one out; 0 if there is none."""
        (version,) = self._ask(
            lambda connection: connection.execute(
                "SELECT coalesce(max(version), 0) FROM models "
                "WHERE directory = ? AND set_name = ? AND problem = '' AND version <> ?",
                (directory, set_name, besides),
            ).fetchone()
        )
        return int(version)

    def size_bytes(self) -> int:
        """Return the size of all files, of damaged versions too."""
        (size_bytes,) = self._ask(
            lambda connection: connection.execute("SELECT coalesce(sum(size_bytes), 0) FROM models").fetchone()
        )
        return int(size_bytes)

    def _first(self, condition: str, *values: object) -> ModelSummary | None:
        found = self._ask(lambda connection: select_where(connection, self._root, condition, values, limit=1))
        return found[0] if found else None

    def _select(self, condition: str, *values: object) -> list[ModelSummary]:
        return self._ask(lambda connection: select_where(connection, self._root, condition, values))

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `work` returns; it never sees a database that was begun anew since the last look and is empty."""

        def look_and_work(connection: sqlite3.Connection) -> T:
            if self._generation != self._database.generation:
                self._refresh(connection, None)
            return work(connection)

        return self._database.run(look_and_work)

    def _refresh(self, connection: sqlite3.Connection, only: str | None) -> list[WrongLatest]:
        if self._generation != self._database.generation:
            self._generation = self._database.generation
            self._seen.clear()
        names = [only] if only is not None else self._directories(connection)
        wrong = [each for name in names for each in self._refresh_directory(connection, name)]
        wrong += self._reread_damaged(connection, only)
        # They are found by looking again, until somebody has put them right.
        for name in {each.directory for each in wrong}:
            self._seen.pop(name, None)
            connection.execute("UPDATE directories SET inode = '' WHERE name = ?", (name,))
        return wrong

    def _directories(self, connection: sqlite3.Connection) -> list[str]:
        """Return the directories that there are or that the index knows."""
        with os.scandir(self._root) as entries:
            found = {entry.name for entry in entries if is_name(entry.name) and entry.is_dir()}
        found.add(ASIDE_DIR)
        found.update(name for (name,) in connection.execute("SELECT name FROM directories"))
        return sorted(found)

    def _refresh_directory(self, connection: sqlite3.Connection, name: str) -> list[WrongLatest]:
        path = self._root / name
        try:
            status = path.stat()
        except FileNotFoundError:
            self._forget(connection, name)
            return []
        state = (str(status.st_ino), status.st_mtime_ns)
        if self._seen.get(name) == state:
            return []
        if connection.execute("SELECT inode, mtime_ns FROM directories WHERE name = ?", (name,)).fetchone() == state:
            self._seen[name] = state
            return []
        wrong = self._scan(connection, name, path)
        is_settled = time.time_ns() - status.st_mtime_ns >= SETTLED_AFTER_NS
        with transaction(connection):
            connection.execute(
                "INSERT OR REPLACE INTO directories VALUES (?, ?, ?)", (name, *(state if is_settled else ("", 0)))
            )
        return wrong

    def _forget(self, connection: sqlite3.Connection, name: str) -> None:
        self._seen.pop(name, None)
        if connection.execute("SELECT 1 FROM directories WHERE name = ?", (name,)).fetchone():
            with transaction(connection):
                connection.execute("DELETE FROM models WHERE directory = ?", (name,))
                connection.execute("DELETE FROM aliases WHERE directory = ?", (name,))
                connection.execute("DELETE FROM directories WHERE name = ?", (name,))

    def _scan(self, connection: sqlite3.Connection, name: str, path: Path) -> list[WrongLatest]:
        """Compare the entries of a directory with what is known, and read those that are new."""
        inodes: dict[str, str] = {}
        links: dict[str, tuple[str, int]] = {}
        with os.scandir(path) as entries:
            for entry in entries:
                if not is_name(entry.name):
                    continue
                if entry.is_symlink():
                    if target := link_target(path / entry.name):
                        links[entry.name] = target
                elif (name == ASIDE_DIR or split_version(entry.name)) and entry.is_dir():
                    inodes[entry.name] = str(entry.inode())
        known = dict(connection.execute("SELECT entry, inode FROM models WHERE directory = ?", (name,)).fetchall())
        new = [entry for entry, inode in inodes.items() if known.get(entry) != inode]
        for begin in range(0, len(new), _BATCH):
            self._read_entries(connection, [(name, entry) for entry in new[begin : begin + _BATCH]])
        with transaction(connection):
            connection.executemany(
                "DELETE FROM models WHERE directory = ? AND entry = ?",
                [(name, entry) for entry in known.keys() - inodes.keys()],
            )
            connection.execute("DELETE FROM aliases WHERE directory = ?", (name,))
            connection.executemany(
                "INSERT INTO aliases VALUES (?, ?, ?, ?)",
                [
                    (name, link, link.removeprefix(f"{set_name}_"), version_name(set_name, version))
                    for link, (set_name, version) in links.items()
                ],
            )
        return list(_wrong_latest(connection, name, path, links)) if name != ASIDE_DIR else []

    def _reread_damaged(self, connection: sqlite3.Connection, only: str | None) -> list[WrongLatest]:
        """Look again at damaged versions that were changed: one that is being copied in is incomplete for a while."""
        rows = connection.execute(
            "SELECT directory, entry, signature FROM models WHERE problem <> '' AND (? IS NULL OR directory = ?)",
            (only, only),
        ).fetchall()
        changed = [(name, entry) for name, entry, old in rows if _signature(self._root / name / entry) != old]
        self._read_entries(connection, changed)
        wrong: list[WrongLatest] = []
        for name in sorted({name for name, _ in changed} - {ASIDE_DIR}):
            links = {
                link: target
                for (link,) in connection.execute("SELECT link FROM aliases WHERE directory = ?", (name,)).fetchall()
                if (target := link_target(self._root / name / link))
            }
            wrong += _wrong_latest(connection, name, self._root / name, links)
        return wrong

    def _read_entries(self, connection: sqlite3.Connection, entries: Sequence[tuple[str, str]]) -> None:
        found = [read for name, entry in entries if (read := _read_entry(self._root / name / entry)) is not None]
        if found:
            with transaction(connection):
                for each in found:
                    insert_entry(connection, each)


def _read_entry(path: Path) -> IndexedEntry | None:
    """Return what is in the directory of a version; None if it is gone."""
    signature = _signature(path)  # first: what changes while it is read must look changed
    inode = problem = ""
    model: ModelSummary | None = None
    try:
        inode = str(path.stat().st_ino)
        check_sizes(path, Publication.read(path).files)
        model = read_version(path)
    except (CorruptDataError, InvalidInputError) as error:
        problem = error.message
    except FileNotFoundError:
        return None
    except OSError as error:
        # It says nothing of the files: looked at again each time.
        signature, problem = _UNKNOWN, f"{path} cannot be read: {error}"
    if problem and not path.is_dir():
        return None
    if problem:
        logger.warning("left a damaged version out: %s", problem)
    return IndexedEntry(
        directory=path.parent.name,
        entry=path.name,
        inode=inode,
        model=model,
        problem=problem,
        signature=signature if problem else "",
        size_bytes=model.size_bytes if model else _size_on_disk(path),
    )


def _signature(path: Path) -> str:
    """Return what changes when a file in a directory does."""
    try:
        found = sorted((entry.name, *_facts(entry.stat(follow_symlinks=False))) for entry in os.scandir(path))
    except OSError:
        return ""
    return json.dumps(found)


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _size_on_disk(path: Path) -> int:
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(path))
    except OSError:
        return 0


def _wrong_latest(
    connection: sqlite3.Connection, name: str, path: Path, links: dict[str, tuple[str, int]]
) -> Iterator[WrongLatest]:
    newest = dict(
        connection.execute(
            "SELECT set_name, max(version) FROM models WHERE directory = ? AND problem = '' GROUP BY set_name", (name,)
        ).fetchall()
    )
    for set_name, version in newest.items():
        if links.get(f"{set_name}_{LATEST}") != (set_name, version):
            yield WrongLatest(name, set_name, version)
    for link, (set_name, version) in links.items():
        is_latest = link == f"{set_name}_{LATEST}"
        if is_latest and set_name not in newest and not (path / version_name(set_name, version)).exists():
            yield WrongLatest(name, set_name, 0)
