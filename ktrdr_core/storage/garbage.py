"""What of a model store nothing refers to."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ktrdr_core.config.naming import is_name
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.storage.layout import ASIDE_DIR, STAGING_DIR, split_version
from ktrdr_core.storage.stored_model import ModelSummary

LEFTOVER_AFTER = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something nothing refers to.

    Attributes:
        name: Of a version or an artifact kept aside, or a path within the store.
        size_bytes: Size on disk.
        cause: Why it is garbage, for people.
    """

    name: str
    size_bytes: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageRules:
    """What is garbage.

    Attributes:
        keep_versions: Newest versions of each set that stay; None: all.
        kept_aside_days: How long artifacts are kept aside.
        is_protected: Says of a model that it stays.
        now: The time.
    """

    keep_versions: int | None
    kept_aside_days: int
    is_protected: Callable[[ModelSummary], bool]
    now: datetime

    def check(self) -> None:
        """Raise InvalidInputError unless the limits are at least 1."""
        for field in ("keep_versions", "kept_aside_days"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidInputError(f"{field} must be at least 1, was {value}", field=field)

    def find_models(
        self, versions: Sequence[ModelSummary], kept_aside: Sequence[ModelSummary]
    ) -> Iterator[tuple[ModelSummary, Garbage]]:
        """Yield the models that may go: never the newest of a set, one that an alias points at, or a protected one."""
        for model in kept_aside:
            # Compared as a difference: so many days before now need not be a date.
            is_old = (self.now - model.create_time) / timedelta(days=1) >= self.kept_aside_days
            if is_old and not self.is_protected(model):
                cause = f"kept aside for {self.kept_aside_days} days or more"
                yield model, Garbage(model.name, model.size_bytes, cause)
        if self.keep_versions is None:
            return
        sets: dict[tuple[str, str], list[ModelSummary]] = defaultdict(list)
        for model in versions:
            if split := split_version(model.path.name):
                sets[model.strategy_name, split[0]].append(model)
        for models in sets.values():
            models.sort(key=lambda model: model.version, reverse=True)
            for model in models[self.keep_versions :]:
                if not model.aliases and not self.is_protected(model):
                    cause = f"older than the {self.keep_versions} newest of its set"
                    yield model, Garbage(model.name, model.size_bytes, cause)

    def find_leftovers(self, root: Path) -> Iterator[Garbage]:
        """Yield what writers and deletions left behind that were killed, by its path within the store."""
        for path in _temporary(root):
            try:
                status = path.lstat()
                size_bytes = status.st_size if not path.is_dir() or path.is_symlink() else _size_of_tree(path)
            except FileNotFoundError:
                continue
            # Its inode was changed last when it was renamed to where it is.
            if self.now.timestamp() - status.st_ctime >= LEFTOVER_AFTER.total_seconds():
                yield Garbage(str(path.relative_to(root)), size_bytes, "left behind by a writer that was killed")


def _temporary(root: Path) -> Iterator[Path]:
    """Yield everything that is on its way in or out; such names begin with a dot."""
    staging = root / STAGING_DIR
    if staging.is_dir():
        yield from sorted(staging.iterdir())
    for parent in sorted(root.iterdir()):
        if parent.is_dir() and (is_name(parent.name) or parent.name == ASIDE_DIR):
            yield from sorted(entry for entry in parent.iterdir() if entry.name.startswith("."))


def _size_of_tree(directory: Path) -> int:
    return sum(
        os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(directory) for name in names
    )
