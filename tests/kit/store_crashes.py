"""Kills a process with SIGKILL at every step of a change of a model store, and looks at the store after each.

A step is a call that changes what another process sees: a file, a name, the index. What a power failure would lose, an
fsync that was not done, no signal can show. Run as a program of its own,
`python -m tests.kit.store_crashes OPERATION DIRECTORY`, since it forks: it prints one JSON object.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from ktrdr_core.clock import utc_now
from ktrdr_core.errors import KtrdrError
from ktrdr_core.storage.model_query import ModelQuery
from ktrdr_core.storage.model_storage import ModelStorage
from tests.kit.model_shelf import Shelf

SET = "small/EURUSD_1h"
MAX_STEPS = 2000
_POSIX_CALLS = {"link", "mkdir", "rename", "replace", "rmdir", "symlink", "unlink", "write", "truncate"}
_FILE_CALLS = {"flush", "execute", "executemany"}
_KEPT_HIDDEN = {".aside", ".index.sqlite", ".index.sqlite-shm", ".index.sqlite-wal", ".lock", ".staging",
                ".publication.json"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A change, and what may be in the store at any moment of it.

    Attributes:
        change: What is killed; it gets the store and a staged artifact.
        has_models: Whether the store has something before.
        may_go: Models that may be gone.
        may_come: Models that may have come.
        aliases: Where each alias may point; 0: nowhere.
    """

    change: Callable[[ModelStorage, Path], object]
    has_models: bool = True
    may_go: frozenset[str] = frozenset()
    may_come: frozenset[str] = frozenset()
    aliases: dict[str, set[int]] = field(default_factory=lambda: {"champion": {1}})


OPERATIONS: dict[str, Operation] = {
    "publish": Operation(
        change=lambda storage, staged: storage.publish(staged, training_id="t9", attempt=1),
        may_come=frozenset({f"{SET}_v4"}),
    ),
    "publish the first": Operation(
        change=lambda storage, staged: storage.publish(staged, training_id="t9", attempt=1),
        has_models=False,
        may_come=frozenset({f"{SET}_v1"}),
        aliases={},
    ),
    "keep aside": Operation(
        change=lambda storage, staged: storage.keep_aside(staged, training_id="t9", attempt=1),
        may_come=frozenset({"aside/t9-1"}),
    ),
    "move alias": Operation(
        change=lambda storage, staged: storage.set_alias(SET, "champion", 2, expected=1), aliases={"champion": {1, 2}}
    ),
    "remove alias": Operation(
        change=lambda storage, staged: storage.set_alias(SET, "champion", 0), aliases={"champion": {0, 1}}
    ),
    "delete the newest": Operation(
        change=lambda storage, staged: storage.delete(f"{SET}_v3"), may_go=frozenset({f"{SET}_v3"})
    ),
    "delete by force": Operation(
        change=lambda storage, staged: storage.delete(f"{SET}_v1", force=True),
        may_go=frozenset({f"{SET}_v1"}),
        aliases={"champion": {0, 1}},
    ),
    "delete what is kept aside": Operation(
        change=lambda storage, staged: storage.delete("aside/t1-1"), may_go=frozenset({"aside/t1-1"})
    ),
    "collect garbage": Operation(
        change=lambda storage, staged: storage.collect_garbage(
            keep_versions=1, dry_run=False, now=utc_now() + timedelta(days=40)
        ),
        may_go=frozenset({f"{SET}_v2", "aside/t1-1"}),
    ),
}


class Crashes:
    """Runs one operation again and again, killed one step later each time."""

    def __init__(self, operation: Operation, directory: Path) -> None:
        self._operation = operation
        self._directory = directory
        self._template = directory / "template"
        self._template.mkdir()
        shelf = Shelf(self._template)
        if operation.has_models:
            for seed in (1, 2, 3):
                shelf.publish(seed=seed)
            shelf.keep_aside("t1", 1, seed=5)
            shelf.storage.set_alias(SET, "champion", 1)
        (self._template / "models").mkdir(exist_ok=True)
        shelf.stage(seed=8).rename(self._template / "staged")
        shelf.stage(seed=9).rename(self._template / "next")
        self._before = {model.name: model.digest for model in everything(shelf.storage)}
        shelf.storage.close()

    def run(self) -> dict[str, Any]:
        """Return how many steps there were, and what was wrong after which."""
        problems: list[str] = []
        for step in range(1, MAX_STEPS):
            root = self._directory / "now"
            shutil.copytree(self._template, root, symlinks=True)
            shelf = Shelf(root)
            shelf.settle()
            shelf.storage.list()
            shelf.storage.close()
            exit_code = self._run_and_die(root, step)
            try:
                found = self._problems(root)
            except (KtrdrError, OSError, AssertionError) as error:
                found = [f"{type(error).__name__}: {error}"]
            problems += [f"killed at step {step}: {each}" for each in found]
            shutil.rmtree(root)
            if exit_code == 0:
                return {"num_kills": step - 1, "problems": problems}
            if exit_code != -signal.SIGKILL:
                problems.append(f"step {step} ended with {exit_code}")
        return {"num_kills": MAX_STEPS, "problems": [*problems, "it never came to its end"]}

    def _run_and_die(self, root: Path, step: int) -> int:
        child = os.fork()
        if child == 0:
            try:
                die_at(step)
                self._operation.change(ModelStorage(root / "models"), root / "staged")
            finally:
                sys.setprofile(None)
                code = 0 if sys.exc_info()[0] is None else 1
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _problems(self, root: Path) -> list[str]:
        """Return what is wrong in the store, also with the next changes of it."""
        operation, problems = self._operation, []
        storage = ModelStorage(root / "models")
        models = {model.name: model for model in everything(storage)}
        lost = self._before.keys() - models.keys() - operation.may_go
        strange = models.keys() - self._before.keys() - operation.may_come
        if lost or strange:
            problems.append(f"lost {sorted(lost)}, strange {sorted(strange)}")
        for name, model in models.items():
            if name in self._before and model.digest != self._before[name]:
                problems.append(f"{name} is another model")
            _, checks = storage.verify(name)
            problems += [f"{name}: {check.name} {check.problem}" for check in checks if check.problem]
        problems += [f"{path} is half a model" for path in self._directories(root) if path not in models]
        problems += self._wrong_links(storage, {name for name in models if name.startswith(f"{SET}_v")})

        # What is done again after a crash ends as if there had been none.
        if (root / "staged").exists() and operation.may_come:
            operation.change(storage, root / "staged")
        if operation.may_come and not operation.may_come <= {model.name for model in everything(storage)}:
            # A number may be lost with who was given it.
            versions = [model.version for model in storage.list_by_training("t9")]
            if len(versions) != 1:
                problems.append(f"done again it gave the versions {versions}")
        used = {model.version for model in storage.list("small")}
        published = storage.publish(root / "next")
        if published.version in used or published.version <= max(used, default=0):
            problems.append(f"number {published.version} was given after {sorted(used)}")
        if storage.get(f"{SET}_latest").version != published.version:
            problems.append("latest does not follow")
        storage.collect_garbage(keep_versions=None, dry_run=False, now=utc_now() + timedelta(days=2))
        hidden = {path.name for path in (root / "models").rglob(".*")} - _KEPT_HIDDEN
        if hidden or list((root / "models").glob(".staging/*")):
            problems.append(f"garbage stays: {sorted(hidden)}")
        storage.close()
        return problems

    def _wrong_links(self, storage: ModelStorage, versions: set[str]) -> list[str]:
        problems = []
        if versions:
            newest = max(int(name.rpartition("_v")[2]) for name in versions)
            if (latest := storage.get(f"{SET}_latest").version) != newest:
                problems.append(f"latest is {latest} instead of {newest}")
        for alias, allowed in self._operation.aliases.items():
            found = storage.query(ModelQuery(alias=alias), limit=5).models
            points = [model.version for model in found] or [0]
            if len(points) != 1 or points[0] not in allowed:
                problems.append(f"{alias} points at {points}")
        return problems

    @staticmethod
    def _directories(root: Path) -> list[str]:
        found = [path for path in (root / "models").glob("*/*_v*") if path.is_dir() and not path.is_symlink()]
        aside = [path for path in (root / "models").glob(".aside/*") if path.is_dir()]
        return [f"{path.parent.name}/{path.name}" for path in found if path.parent.name[0] != "."] + [
            f"aside/{path.name}" for path in aside
        ]


def everything(storage: ModelStorage) -> list[Any]:
    return [*storage.list(), *storage.query(ModelQuery(kept_aside=True), limit=50).models]


def die_at(step: int) -> None:
    """Kill this process right before its `step`-th call that changes something outside of it."""
    count = 0

    def on_call(frame: FrameType, event: str, function: Any) -> None:
        nonlocal count
        if event != "c_call":
            return
        name = function.__name__
        owner = getattr(function, "__self__", None)
        is_change = (name in _POSIX_CALLS and function.__module__ == "posix") or (
            name in _FILE_CALLS and isinstance(owner, io.IOBase | sqlite3.Connection)
        )
        if is_change:
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(on_call)


if __name__ == "__main__":
    print(json.dumps(Crashes(OPERATIONS[sys.argv[1]], Path(sys.argv[2])).run()))
