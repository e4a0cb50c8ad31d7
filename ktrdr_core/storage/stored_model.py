"""A model in a store, and what a store is to the code that trains."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.storage.artifact import ArtifactFile, ModelArtifact


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A stored version; versions never change.

    Attributes:
        name: Name in the store, for example "neuro_mean_reversion/EURUSD_1h_v3".
        path: Its directory.
        strategy_name, symbols, timeframes: What it was trained from.
        version: From 1; 0 if it is not in a store yet.
        create_time: When it was published, UTC.
        training_id: Training it came from; "" if none.
        attempt: Session within that training; 0 if none.
        digest: `artifact_digest` of its deterministic files.
        files: Its files with sizes and SHA-256.
        result: What its training answered.
        aliases: Names that point at it, "latest" among them.
    """

    name: str
    path: Path
    strategy_name: str
    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    version: int
    create_time: datetime
    training_id: str
    attempt: int
    digest: str
    files: tuple[ArtifactFile, ...]
    result: TrainingResult
    aliases: tuple[str, ...] = ()


class SaveTarget(Protocol):
    """Where a training puts its model."""

    def save(self, artifact: ModelArtifact) -> StoredModel:
        """Store `artifact` completely and return it."""
