"""A model in a store, and what a store is to the code that trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ktrdr_core.domain.result import TestMetrics, TrainingMetrics, TrainingResult
from ktrdr_core.storage.artifact_files import ArtifactFile

if TYPE_CHECKING:
    from ktrdr_core.storage.artifact import ModelArtifact


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesDigest:
    """Bars of one series that a model was trained on; `digest` is `Bars.digest` of them."""

    symbol: str
    timeframe: str
    num_bars: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentCheckpoint:
    """The checkpoint a training went on from: its last epoch, and the SHA-256 of its bytes, hex."""

    epoch: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What would have to be the same to make a model again; what an artifact does not tell is empty.

    Attributes:
        strategy_digest: SHA-256 of the strategy as trained, hex.
        series: Bars, by symbol and timeframe.
        start_date, end_date: First and last day, UTC, ISO 8601, both inclusive.
        data_mode: Where the bars came from, as in DataMode.
        code_version: Version of ktrdr that trained.
        seed: Seed of every random draw.
        parent_checkpoint: What it went on from; None if it began at the beginning.
    """

    strategy_digest: str = ""
    series: tuple[SeriesDigest, ...] = ()
    start_date: str = ""
    end_date: str = ""
    data_mode: str = ""
    code_version: str = ""
    seed: int | None = None
    parent_checkpoint: ParentCheckpoint | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """What a list tells of a stored version; versions never change.

    Attributes:
        name: Name in the store, for example "neuro_mean_reversion/EURUSD_1h_v3".
        path: Its directory.
        model_id: Identity, a UUID.
        strategy_name, symbols, timeframes: What it was trained from.
        version: From 1; 0 if it is not in a store yet, or kept aside.
        create_time: When it was published, UTC.
        training_id: Training it came from; "" if none.
        attempt: Session within that training; 0 if none.
        digest: `artifact_digest` of its deterministic files.
        files: Its files with sizes and SHA-256.
        training_metrics, test_metrics: As in TrainingResult.
        feature_importance: By feature, in model order.
        lineage: Where it comes from.
        aliases: Names that point at it, "latest" among them.
        is_kept_aside: The artifact of an attempt that was given up; never published.
    """

    name: str
    path: Path
    model_id: str
    strategy_name: str
    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    version: int
    create_time: datetime
    training_id: str
    attempt: int
    digest: str
    files: tuple[ArtifactFile, ...]
    training_metrics: TrainingMetrics
    test_metrics: TestMetrics
    feature_importance: dict[str, float]
    lineage: Lineage = field(default_factory=Lineage)
    aliases: tuple[str, ...] = ()
    is_kept_aside: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, kw_only=True)
class StoredModel(ModelSummary):
    """A stored version with all that its training answered."""

    result: TrainingResult


class SaveTarget(Protocol):
    """Where a training puts its model."""

    def save(self, artifact: ModelArtifact) -> StoredModel:
        """Store `artifact` completely and return it."""
