"""The worker process: runs one session and reports over its pipe. It never imports grpc."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ktrdr_core.data.durable import write_durably
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    CancellationError,
    InternalError,
    KtrdrError,
    OutOfMemoryError,
    StorageError,
    TrainingError,
)
from ktrdr_core.execution.cancel_flag import CancelFlag, FlagToken
from ktrdr_core.execution.engine import SessionJob, SessionOutcome
from ktrdr_core.execution.event_pipe import MessageWriter
from ktrdr_core.execution.fork_server import THREADS_PER_WORKER
from ktrdr_core.execution.found_checkpoint import CHECKPOINTS_NAME
from ktrdr_core.execution.progress_tracker import ProgressTracker
from ktrdr_core.logging import configure_logging, log_context
from ktrdr_core.training.checkpoint_file import CHECKPOINT_NAME, read_position

LOG_NAME = "worker.log"
ARTIFACT_NAME = "artifact"

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
        checkpoint_every_s=job.checkpoint_every_s,
        checkpoint_callback=tracker.report_checkpoint,
        resume_from=job.resume_from,
        must_resume=False,
        tell_epochs_after=job.last_epoch_told,
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
    messages = MessageWriter(writer.fileno())
    try:
        _send_output_to(job.work_dir / LOG_NAME)
    except OSError as error:
        outcome = _failed(StorageError(f"the worker's log cannot be written ({error}); free space there, train again"))
    else:
        configure_logging(log_level, service="worker")
        tracker = ProgressTracker(
            messages.send_event, attempt=job.attempt, begin_s=begin_s, send_checkpoint=messages.send_checkpoint
        )
        tracker.report_running(f"Training in worker process {os.getpid()}")
        with log_context(training_id=job.training_id, attempt=job.attempt):
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
        return _stopped(job, tracker, error.checkpoint_path)
    except KtrdrError as error:
        # What torch or the system said, rather than what we made of it: the outcome's message tells that.
        _print_traceback((error.__cause__ if isinstance(error, TrainingError) else None) or error)
        return _failed(error)
    except MemoryError as error:
        _print_traceback(error)
        return _failed(
            OutOfMemoryError("this machine has no memory left; train on fewer bars or features, or on a larger machine")
        )
    except Exception as error:  # noqa: BLE001  # worker main is one of the two edges that must not die: the parent needs an outcome
        _print_traceback(error)
        return _failed(
            InternalError(
                f"the training failed with {type(error).__name__}, a defect of this program; "
                f"see {job.work_dir / LOG_NAME}"
            )
        )
    return _outcome(TrainingState.UPLOADING, "The artifact is complete", result=result)


def _stopped(job: SessionJob, tracker: ProgressTracker, path: str) -> dict[str, Any]:
    """Return the outcome of a session that was to stop with a checkpoint; `path` is "" if it wrote none then."""
    message = "Stopped; the checkpoint is saved"
    if not path and tracker.checkpoint is not None:
        path = str(tracker.checkpoint.path)
        message = f"Stopped; the last state could not be saved, the checkpoint is of epoch {tracker.checkpoint.epoch}"
    elif not path and not tracker.has_training_begun and job.resume_from is not None:
        try:
            path = _carry_over(job.resume_from, job, tracker)
            message = "Stopped before training went on; the checkpoint is the one it was to go on from"
        except (OSError, KtrdrError) as error:
            message = f"Stopped before training went on; the checkpoint {job.resume_from} cannot be kept: {error}"
    elif not path:
        moment = "" if tracker.has_training_begun else " before training began"
        message = f"Stopped{moment}; there is no checkpoint"
    return _outcome(TrainingState.STOPPED, message, checkpoint_path=path)


def _carry_over(checkpoint: Path, job: SessionJob, tracker: ProgressTracker) -> str:
    """Make the checkpoint that the session was to go on from its own; return its path."""
    position = read_position(checkpoint)
    path = job.work_dir / CHECKPOINTS_NAME / CHECKPOINT_NAME
    path.parent.mkdir(exist_ok=True)
    write_durably(path, checkpoint.read_bytes())
    tracker.report_checkpoint(path, position)
    return str(path)


def _failed(error: KtrdrError) -> dict[str, Any]:
    return _outcome(TrainingState.FAILED, error.message, error_reason=error.reason)


def _print_traceback(error: BaseException) -> None:
    # The log cannot be written where the disk is full, and the outcome must be told all the same.
    with contextlib.suppress(OSError):
        traceback.print_exception(error)


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
