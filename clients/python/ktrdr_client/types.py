"""What the client answers: plain, frozen dataclasses, free of protobuf.

Times are timezone-aware, UTC. Durations are seconds. None means the service left it unset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ktrdr_core.domain.progress import BatchDetail, EpochDetail, TrainingStep
from ktrdr_core.domain.result import Evaluation, TestMetrics, TrainingMetrics
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.resources import ResourceUsage


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Latest progress at each of the three levels.

    Attributes:
        overall: Overall fraction in [0, 1].
        step: Step now; None before the first.
        epoch: Last epoch that ended.
        batch: Last batches reported.
        elapsed_s: Since the session began.
        remaining_s: Estimated; None while unknown.
    """

    overall: float = 0.0
    step: TrainingStep | None = None
    epoch: EpochDetail | None = None
    batch: BatchDetail | None = None
    elapsed_s: float = 0.0
    remaining_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a training runs and why; `trainer` is empty for local."""

    mode: ExecutionMode
    trainer: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SessionRef:
    """A session of a training."""

    session_id: str
    attempt: int
    trainer: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a training failed: a stable reason and one sentence."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What a completed training produced."""

    model_id: str
    model_path: str
    training_metrics: TrainingMetrics
    test_metrics: TestMetrics
    feature_importance: dict[str, float]
    device: str
    start_time: datetime | None
    end_time: datetime | None
    duration_s: float
    total_samples: int
    training_samples: int
    test_samples: int
    artifact_digest: str
    warnings: tuple[str, ...]
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training: what a user asked for, from request to stored model.

    Attributes:
        spec: What was asked for; None where the service does not send it.
        strategy_source: Name of the backend's strategy if it was asked for by name, else "".
        error: Set when FAILED.
        result: Set when COMPLETED.
        placement: None while QUEUED.
        last_sequence: Sequence of its last durable event.
    """

    training_id: str
    request_id: str
    strategy_name: str
    spec: TrainingSpec | None
    strategy_source: str
    state: TrainingState
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    progress: Progress
    error: Failure | None
    result: TrainingReport | None
    placement: Placement | None
    sessions: tuple[SessionRef, ...]
    resource_usage: ResourceUsage | None
    checkpoint_path: str
    last_sequence: int
    message: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """The backend's configuration."""

    default_mode: ExecutionMode
    version: str
    models_path: str
    bars_path: str
    strategies_path: str
    trainers: tuple[str, ...]
    local_slots: int


@dataclass(frozen=True, kw_only=True)
class ModeChange:
    """Default mode before and after an update."""

    previous: ExecutionMode
    current: ExecutionMode


@dataclass(frozen=True, kw_only=True)
class TrainerStatus:
    """A trainer as the backend sees it; `message` says what its health check found."""

    address: str
    is_healthy: bool
    message: str
    version: str
    devices: tuple[str, ...]
    has_gpu: bool
    num_slots: int
    num_free_slots: int
    latency_s: float


class StrategyStatus(StrEnum):
    UNKNOWN = "unknown"
    UNTRAINED = "untrained"
    TRAINING = "training"
    TRAINED = "trained"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A strategy of the backend's directory; `error` says why its file is refused, "" if it is valid."""

    name: str
    description: str
    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    status: StrategyStatus
    latest_version: int | None
    error: str
    last_training_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A file of a stored model; `sha256` is hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A stored version of a trained model; `path` is on the backend's machine."""

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


@dataclass(frozen=True, kw_only=True)
class UploadStatus:
    """How much of an upload is safely stored."""

    committed_size_bytes: int
    is_complete: bool


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device a worker can train on."""

    device_type: str
    name: str
    memory_available_gb: float | None
    supports_mixed_precision: bool


@dataclass(frozen=True, kw_only=True)
class TrainerInfo:
    """What a trainer is and has; `unavailable_reason` says why it cannot train, "" if it can."""

    version: str
    python_version: str
    torch_version: str
    devices: tuple[Device, ...]
    num_slots: int
    num_free_slots: int
    is_draining: bool
    unavailable_reason: str
    start_time: datetime | None


@dataclass(frozen=True, kw_only=True)
class Session:
    """The execution of a training on one trainer."""

    session_id: str
    training_id: str
    attempt: int
    state: TrainingState
    spec: TrainingSpec | None
    create_time: datetime | None
    end_time: datetime | None
    progress: Progress
    error: Failure | None
    result: TrainingReport | None
    resource_usage: ResourceUsage | None
    artifact_path: str
    checkpoint_path: str
    worker_pid: int
    last_sequence: int
    message: str
