"""What the client answers about trainings, trainers and strategies: plain, frozen dataclasses, free of protobuf.

Times are timezone-aware, UTC. Durations are seconds. None means the service left it unset.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ktrdr_core.domain.progress import BatchDetail, EpochDetail, TrainingStep
from ktrdr_core.domain.result import Evaluation, TestMetrics, TrainingMetrics
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
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
    """A session of a training: one attempt.

    Attributes:
        trainer: Address of the trainer; "local" for the backend's machine.
        trainer_id: Stable identity of the trainer; "" for the backend's machine.
        reasons: Why it was placed there, each consideration in order.
        start_time: When it was handed over.
        end_time: When it was known to have ended or to be lost; None before.
        outcome: Name of the terminal state it ended in, or LOST; "" before.
        error_reason: Reason of the error if it FAILED or was LOST.
        message: One sentence on its end.
        resumed_from_epoch: Last epoch of the checkpoint it went on from; 0 if it began at the beginning.
        is_fenced: It was given up: nothing it produces counts any more.
    """

    session_id: str
    attempt: int
    trainer: str
    trainer_id: str = ""
    reasons: tuple[str, ...] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    outcome: str = ""
    error_reason: str = ""
    message: str = ""
    resumed_from_epoch: int = 0
    is_fenced: bool = False


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """A place in the queue.

    Attributes:
        position: Trainings that go first, plus one; also those that wait for other machines.
        num_queued: Trainings in the queue.
        estimated_wait_s: None while unknown.
        waiting_for: What it waits for, one clause.
    """

    position: int
    num_queued: int
    estimated_wait_s: float | None
    waiting_for: str


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
        sessions: Its attempts, oldest first.
        last_sequence: Sequence of its last durable event.
        scheduling: What was asked of the queue.
        queue: Where it is in the queue; None unless it waits there.
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
    scheduling: Scheduling = DEFAULT_SCHEDULING
    queue: QueueStatus | None = None

    @property
    def attempt(self) -> int:
        """Number of its newest attempt; 0 before the first."""
        return max((session.attempt for session in self.sessions), default=0)


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
class TrainerDevice:
    """A device of a trainer; `memory_available_gb` is None if unknown."""

    device_type: str
    name: str
    memory_available_gb: float | None


@dataclass(frozen=True, kw_only=True)
class TrainerStatus:
    """A trainer as the backend sees it.

    Attributes:
        message: What its health check found.
        trainer_id: Stable identity; "" if it has not answered yet.
        is_draining: It gets no new sessions: the backend or the trainer itself says so.
        is_registered: It announced itself, instead of being configured by address.
        silence_s: Since it was last heard of; None if it never was.
        num_sessions: Sessions of this backend's trainings on it.
        python_version, torch_version: "" if it did not answer; torch's also if it has none.
        device_details: Its devices with their memory, best first.
    """

    address: str
    is_healthy: bool
    message: str
    version: str
    devices: tuple[str, ...]
    has_gpu: bool
    num_slots: int
    num_free_slots: int
    latency_s: float
    trainer_id: str = ""
    is_draining: bool = False
    is_registered: bool = False
    silence_s: float | None = None
    num_sessions: int = 0
    python_version: str = ""
    torch_version: str = ""
    device_details: tuple[TrainerDevice, ...] = ()


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
class Device:
    """A device a worker can train on."""

    device_type: str
    name: str
    memory_available_gb: float | None
    supports_mixed_precision: bool


@dataclass(frozen=True, kw_only=True)
class TrainerInfo:
    """What a trainer is and has.

    Attributes:
        unavailable_reason: Why it cannot train; "" if it can.
        trainer_id: Stable identity, kept in its data directory.
        current_time: Its clock as it answered.
        disk_free_bytes: Bytes free on the disk of its data directory.
    """

    version: str
    python_version: str
    torch_version: str
    devices: tuple[Device, ...]
    num_slots: int
    num_free_slots: int
    is_draining: bool
    unavailable_reason: str
    start_time: datetime | None
    trainer_id: str = ""
    current_time: datetime | None = None
    disk_free_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Names a checkpoint by its content; `epoch` is the last one in it, `sha256` is hex."""

    epoch: int
    size_bytes: int
    sha256: str


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
    checkpoint: Checkpoint | None = None
    resumed_from_epoch: int = 0
