"""A model store in a test's directory, and ways to put small models into it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.stored_model import ModelSummary, StoredModel
from tests.kit.artifacts import make_artifact

_LONG_AGO_NS = 10**10


class Shelf:
    """A store at `root`/models, beside artifacts that are staged at `root`."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.storage = ModelStorage(root / "models", **options)
        self._count = 0

    def stage(self, **facts: Any) -> Path:
        """Write an artifact, with `facts` as make_artifact takes them, and return where it is."""
        self._count += 1
        directory = self.root / f"staged{self._count}"
        write_artifact(directory, make_artifact(**facts))
        return directory

    def publish(self, training_id: str = "", attempt: int = 0, **facts: Any) -> StoredModel:
        return self.storage.publish(self.stage(**facts), training_id=training_id, attempt=attempt)

    def keep_aside(self, training_id: str = "t1", attempt: int = 1, **facts: Any) -> StoredModel:
        return self.storage.keep_aside(self.stage(**facts), training_id=training_id, attempt=attempt)

    def settle(self) -> None:
        """Let every directory look as if it had not changed for long, so that the index need not look into it again."""
        long_ago = time.time_ns() - _LONG_AGO_NS
        for path in (self.storage.root, *self.storage.root.iterdir()):
            if path.is_dir():
                os.utime(path, ns=(long_ago, long_ago))

    def reopen(self) -> ModelStorage:
        """Return the store as another process would see it."""
        return ModelStorage(self.storage.root)


def names(models: Iterable[ModelSummary]) -> list[str]:
    return [model.name for model in models]
