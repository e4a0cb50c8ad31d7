"""The worker process: runs one session and reports over its pipe. It never imports grpc."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CancellationError, InternalError, KtrdrError, TrainingError
from ktrdr_core.execution.cancel_flag import CancelFlag, FlagToken
from ktrdr_core.execution.engine import SessionJob, SessionOutcome
from ktrdr_core.execution.event_pipe import MessageWriter
from ktrdr_core.execution.fork_server import THREADS_PER_WORKER
from ktrdr_core.execution.progress_tracker import ProgressTracker
from ktrdr_core.logging import configure_logging

LOG_NAME = "worker.log"
ARTIFACT_NAME = "artifact"
CHECKPOINTS_NAME = "checkpoints"

Runner = Callable[[SessionJob, ProgressTracker, FlagToken], TrainingResult]
"""What a worker runs; an importable function. It leaves the artifact in `work_dir/artifact`."""


def run_training_job(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Run a real training; the runner of every session outside tests."""
    import torch

    from ktrdr_core.data.bar_store import DirectoryBarStore
    from ktrdr_core.storage.staging import StagedStorage
    from ktrdr_core.training.run_job import run_training

    torch.set_num_threads(THREADS_PER_WORKER)
    return run_training(
        job.spec,
        bar_store=DirectoryBarStore(job.bars_dir),
        model_storage=StagedStorage(job.work_dir / ARTIFACT_NAME),
        progress_callback=tracker.report_progress,
        step_callback=tracker.report_step,
        warning_callback=tracker.report_warning,
        cancellation_token=token,
        checkpoint_dir=job.work_dir / CHECKPOINTS_NAME,
    )


def worker_main(
    job: SessionJob, runner: Runner, flag: CancelFlag, writer: Connection, begin_s: float, log_level: str
) -> None:
    """Run one session in this process.

    Args:
        job: The session.
        runner: What to run.
        flag: What the parent wants, shared with it.
        writer: Write end of the event pipe.
        begin_s: When the session began on the machine's monotonic clock.
        log_level: Of the worker's log.
    """
    _send_output_to(job.work_dir / LOG_NAME)
    configure_logging(log_level, service="worker")
    messages = MessageWriter(writer.fileno())
    tracker = ProgressTracker(messages.send_event, attempt=job.attempt, begin_s=begin_s)
    tracker.report_running(f"Training in worker process {os.getpid()}")
    outcome = run_job(job, runner, tracker, FlagToken(flag))
    messages.send_outcome(json.dumps(outcome).encode())


def run_job(job: SessionJob, runner: Runner, tracker: ProgressTracker, token: FlagToken) -> dict[str, Any]:
    """Run the job and return how it ended, as JSON can carry it; every error becomes an outcome."""
    try:
        if token.is_cancelled():
            raise CancellationError(token.reason)
        result = runner(job, tracker, token)
    except CancellationError as error:
        if not token.save_checkpoint:
            return _outcome(TrainingState.CANCELLED, error.message)
        path = error.checkpoint_path
        message = (
            "Stopped; the checkpoint is saved" if path else "Stopped before training began; there is no checkpoint"
        )
        return _outcome(TrainingState.STOPPED, message, checkpoint_path=path)
    except KtrdrError as error:
        traceback.print_exc()
        return _outcome(TrainingState.FAILED, error.message, error_reason=error.reason)
    except MemoryError:
        traceback.print_exc()
        message = "the worker ran out of memory; train on fewer bars or features, or on a larger machine"
        return _outcome(TrainingState.FAILED, message, error_reason=TrainingError.reason)
    except Exception as error:  # noqa: BLE001  # worker main is one of the two edges that must not die: the parent needs an outcome
        traceback.print_exc()
        message = (
            f"the training failed with {type(error).__name__}, a defect of this program; see {job.work_dir / LOG_NAME}"
        )
        return _outcome(TrainingState.FAILED, message, error_reason=InternalError.reason)
    return _outcome(TrainingState.UPLOADING, "The artifact is complete", result=result)


def _outcome(
    state: TrainingState,
    message: str,
    *,
    error_reason: str = "",
    checkpoint_path: str = "",
    result: TrainingResult | None = None,
) -> dict[str, Any]:
    return {
        "state": state,
        "message": message,
        "error_reason": error_reason,
        "checkpoint_path": checkpoint_path,
        "result": result,
    }


def read_outcome(payload: bytes, job: SessionJob) -> SessionOutcome:
    """Return the outcome a worker of `job` sent."""
    raw = json.loads(payload)
    raw["state"] = TrainingState(raw["state"])
    is_complete = raw["state"] is TrainingState.UPLOADING
    return SessionOutcome(**raw, artifact_path=job.work_dir / ARTIFACT_NAME if is_complete else None)


def _send_output_to(path: Path) -> None:
    """Send stdout and stderr of this process to the file, also those of its C code and of its crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("wb") as log_file:
        os.dup2(log_file.fileno(), 1)
        os.dup2(log_file.fileno(), 2)
    faulthandler.enable()
