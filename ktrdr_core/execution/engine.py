"""The port every place that executes trainings implements: start a session, stream its events, cancel it.

The process engine (`process_engine.py`) is the first implementation; a cluster engine is another. An engine knows
slots, workers and artifacts on disk; it knows nothing of RPCs, databases, journals or uploads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.resources import ResourceUsage

DEFAULT_CANCEL_REASON = "Cancelled on request"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionJob:
    """One session to execute.

    Attributes:
        session_id: Name of the session; unique among the sessions an engine runs at once.
        training_id: Training it belongs to.
        attempt: Number of the session within its training, from 1.
        spec: What to train.
        work_dir: Directory of this session alone: `artifact/`, `checkpoints/` and `worker.log` go under it. Created
            if missing, never removed by the engine.
        bars_dir: Directory with the bars (`<SYMBOL>_<timeframe>.csv` or `.parquet`).
        resume_from: Checkpoint of an earlier attempt to go on from; one that cannot be used is a warning
            (CHECKPOINT_UNUSABLE), and training begins at the beginning. None begins there.
        checkpoint_every_s: Keep a checkpoint at most about this old, more rarely if that would cost more than 1 % of
            the time; None only when stopped.
        last_epoch_told: Last epoch that earlier attempts told of; those that are in `resume_from` after it are told
            again.
    """

    session_id: str
    training_id: str
    attempt: int
    spec: TrainingSpec
    work_dir: Path
    bars_dir: Path
    resume_from: Path | None = None
    checkpoint_every_s: float | None = None
    last_epoch_told: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCheckpoint:
    """A whole checkpoint on disk; the file is replaced by newer ones, and only the newest two stay.

    Attributes:
        path: The file.
        epoch: Last epoch that is in it; 0 if it was taken within the first.
        size_bytes: Its size.
        sha256: SHA-256 of its bytes, hex.
    """

    path: Path
    epoch: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOutcome:
    """How a session ended; it exists only once every process of the session is gone.

    Attributes:
        state: UPLOADING means "the artifact at `artifact_path` is complete and `result` is set"; else FAILED,
            CANCELLED or STOPPED.
        message: One sentence for people.
        error_reason: `KtrdrError.reason` when FAILED, else "".
        artifact_path: Directory of the complete artifact when UPLOADING, else None.
        result: The training's result when UPLOADING, else None.
        checkpoint_path: Checkpoint of a STOPPED session; "" if training had not begun when it was stopped.
    """

    state: TrainingState
    message: str
    error_reason: str = ""
    artifact_path: Path | None = None
    result: TrainingResult | None = None
    checkpoint_path: str = ""


class EngineSession(Protocol):
    """One running (or ended) session."""

    @property
    def job(self) -> SessionJob: ...

    @property
    def pid(self) -> int:
        """Process id of the worker; 0 while it is being started."""

    @property
    def checkpoint(self) -> SessionCheckpoint | None:
        """The newest whole checkpoint of this session on disk, also after its end; None before the first."""

    def events(self) -> AsyncIterator[ProgressEvent]:
        """Yield the session's events, once, to one reader.

        Events are un-numbered (`sequence` 0). The first is the state RUNNING; then steps, epochs, batches and
        warnings. Ends when the worker is gone. The terminal state is not among them: it is `wait()`'s answer, which
        the owner of the log appends.
        """

    async def wait(self) -> SessionOutcome:
        """Return the outcome once the worker's process group is verified gone; any number of callers."""

    async def cancel(self, *, save_checkpoint: bool = False, reason: str = DEFAULT_CANCEL_REASON) -> SessionOutcome:
        """End the session and return its outcome.

        Args:
            save_checkpoint: False asks the worker to end and kills its process group after 40 ms; the outcome is
                CANCELLED. True lets it stop at its next check and write a checkpoint; the outcome is STOPPED, with an
                empty `checkpoint_path` if training had not begun. A worker that has not stopped after 30 s is killed,
                and the outcome is CANCELLED: nothing was saved, and nothing says so.
            reason: Given as the outcome's message.

        An artifact that was complete before the cancel reached the worker is kept: the outcome is UPLOADING, and the
        caller decides. A plain cancel overtakes a stop under way, never the other way round.
        """

    def resource_usage(self) -> ResourceUsage | None:
        """Return what the worker uses now; None once it is gone."""


class ExecutionEngine(Protocol):
    """Executes sessions in a fixed number of slots."""

    @property
    def num_slots(self) -> int: ...

    @property
    def num_free_slots(self) -> int: ...

    async def warm_up(self) -> None:
        """Return once the first session will start as fast as the others.

        Raises:
            InternalError: The warm-up failed; sessions will fail too, or start slowly.
        """

    async def start(self, job: SessionJob) -> EngineSession:
        """Take a slot and start a session in it.

        Raises:
            NoSlotError: Every slot is taken, or the job asks for more devices than there are.
            DrainingError: The engine is closed.
            IllegalStateError: A session with this `session_id` is running.
            ExecutionModeError: This installation cannot train.
        """

    async def close(self) -> None:
        """End every session's worker and return when all are gone, within a stated limit; a second call does nothing.

        A session whose worker survives the limit raises UnavailableError to those who wait for its outcome.
        """
