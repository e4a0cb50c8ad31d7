"""What the client answers about stored models. Times are timezone-aware, UTC; None means the service left it unset."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from ktrdr_core.domain.result import Evaluation, TestMetrics, TrainingMetrics
from ktrdr_core.storage.stored_model import Lineage


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file of a stored model; `sha256` is hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A stored version of a trained model.

    Attributes:
        version: From 1; 0 if it is kept aside.
        path: Its directory on the backend's machine.
        feature_importance: In model order.
        aliases: Names that point at it, "latest" among them.
        evaluation: None in lists.
        is_kept_aside: The artifact of an attempt that was given up; never published as a result.
    """

    name: str
    model_id: str
    strategy_name: str
    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    version: int
    path: str
    create_time: datetime | None
    training_id: str
    attempt: int
    artifact_digest: str
    files: tuple[ModelFile, ...]
    training_metrics: TrainingMetrics
    test_metrics: TestMetrics
    feature_importance: dict[str, float]
    aliases: tuple[str, ...]
    evaluation: Evaluation | None = None
    lineage: Lineage = field(default_factory=Lineage)
    size_bytes: int = 0
    is_kept_aside: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelPage:
    """One page of models and the token of the next; "" on the last page."""

    models: tuple[Model, ...]
    next_page_token: str


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """What was found of one file of a model; `problem` is empty if it is sound."""

    name: str
    is_sound: bool
    problem: str


@dataclass(frozen=True, kw_only=True)
class ModelVerification:
    """Whether the files of a model are those that were published."""

    model: Model
    checks: tuple[FileCheck, ...]
    is_sound: bool


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something in the model store that nothing refers to; `cause` says why, for people."""

    name: str
    size_bytes: int
    cause: str


@dataclass(frozen=True, kw_only=True)
class UploadStatus:
    """How much of an upload is safely stored."""

    committed_size_bytes: int
    is_complete: bool
