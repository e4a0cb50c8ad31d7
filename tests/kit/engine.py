"""Runners for workers under test, and jobs to give them. A runner stands in for a real training in a worker process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ktrdr_core.domain.cancellation import raise_if_cancelled
from ktrdr_core.domain.progress import TrainingStep
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import CancellationError, NonFiniteLossError
from ktrdr_core.execution.cancel_flag import FlagToken
from ktrdr_core.execution.engine import SessionJob
from ktrdr_core.execution.found_checkpoint import CHECKPOINTS_NAME
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.progress_tracker import ProgressTracker
from ktrdr_core.execution.worker import Runner
from ktrdr_core.training.checkpoint_file import FORMAT_VERSION, STATE_KEY, LoopPosition
from tests.kit.evaluations import make_evaluation

STRATEGY = "name: engine_test\n"


def build_job(directory: Path, session_id: str = "", **spec: Any) -> SessionJob:
    session_id = session_id or uuid.uuid4().hex
    return SessionJob(
        session_id=session_id,
        training_id=f"training-{session_id}",
        attempt=1,
        spec=TrainingSpec(strategy_yaml=STRATEGY, **spec),
        work_dir=directory / session_id,
        bars_dir=directory / "bars",
    )


def build_result(**facts: Any) -> TrainingResult:
    """Return a well-formed result; `facts` go to its strategy_config, to bring observations out of a worker."""
    return {
        "success": True,
        "model_path": "",
        "model_id": str(uuid.UUID(int=1)),
        "training_metrics": {
            "epochs": 1,
            "best_epoch": 1,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "val_loss": 1.0,
            "val_accuracy": 0.5,
        },
        "test_metrics": {
            "loss": 1.0,
            "accuracy": 0.5,
            "precision": 0.5,
            "recall": 0.5,
            "f1_score": 0.5,
            "majority_baseline_accuracy": 0.5,
        },
        "feature_names": [],
        "feature_importance": {},
        "config": {"strategy_config": facts, "training_config": {}, "model_config": {}, "data_config": {}},
        "metadata": {
            "start_time": "2020-01-01T00:00:00Z",
            "end_time": "2020-01-01T00:00:01Z",
            "duration_seconds": 1.0,
            "device": "cpu",
            "symbols": [],
            "timeframes": [],
            "start_date": "2020-01-01",
            "end_date": "2020-01-01",
            "total_samples": 1,
            "training_samples": 1,
            "test_samples": 1,
        },
        "artifact_digest": "0" * 64,
        "evaluation": make_evaluation(),
    }


def batch_metrics(batch: int, total: int) -> dict[str, Any]:
    return {
        "progress_type": "batch",
        "batch": batch,
        "total_batches_per_epoch": total,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "learning_rate": 0.001,
        "rows_per_second": 1000.0,
    }


def epoch_metrics() -> dict[str, Any]:
    return {
        "progress_type": "epoch",
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": 1.1,
        "val_accuracy": 0.4,
        "learning_rate": 0.001,
        "rows_per_second": 1000.0,
    }


def finish(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Walk through all steps and two epochs, and leave an artifact."""
    for step in TrainingStep:
        tracker.report_step(step)
        if step is TrainingStep.TRAINING:
            for epoch in (1, 2):
                tracker.report_progress(epoch, 2, batch_metrics(1, 2))
                tracker.report_progress(epoch, 2, epoch_metrics())
            tracker.report_warning("TEST", "a warning")
    (job.work_dir / "artifact").mkdir()
    return build_result()


def describe_process(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Answer facts of the worker's process."""
    torch = sys.modules.get("torch")
    return build_result(
        modules=sorted({name.partition(".")[0] for name in sys.modules}),
        is_torch_warm=torch is not None,
        num_torch_threads=torch.get_num_threads() if torch is not None else 0,
        pid=os.getpid(),
        ppid=os.getppid(),
        pgid=os.getpgid(0),
        sid=os.getsid(0),
    )


def loop_until_cancelled(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Behave as a training loop does: check the token at every batch, save a checkpoint if asked to."""
    tracker.report_step(TrainingStep.TRAINING)
    try:
        while True:
            raise_if_cancelled(token)
            time.sleep(0.0005)
    except CancellationError as error:
        if token.save_checkpoint:
            error.checkpoint_path = str(leave_checkpoint(job, tracker, "checkpoint", epoch=3))
        raise


def leave_checkpoint(job: SessionJob, tracker: ProgressTracker, name: str, *, epoch: int) -> Path:
    """Write a small checkpoint of a session where a training does, and report it."""
    position = LoopPosition(epoch=epoch + 1, batches_done=0)
    path = job.work_dir / CHECKPOINTS_NAME / f"{name}.safetensors"
    write_checkpoint(path, position)
    tracker.report_checkpoint(path, position)
    return path


def write_checkpoint(path: Path, position: LoopPosition) -> None:
    """Write a file that reads as a checkpoint taken at `position`."""
    state = {"format_version": FORMAT_VERSION, "epoch": position.epoch, "batches_done": position.batches_done}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save({"weight": np.zeros(8)}, {STATE_KEY: json.dumps(state)}))


def keep_checkpoints(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Leave checkpoints of two epochs, then be deaf."""
    tracker.report_step(TrainingStep.TRAINING)
    for epoch in (1, 2):
        leave_checkpoint(job, tracker, f"timed_{epoch}", epoch=epoch)
    tracker.report_progress(2, 2, epoch_metrics())
    time.sleep(600)
    return build_result()


def finish_with_checkpoint(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    leave_checkpoint(job, tracker, "timed", epoch=2)
    return finish(job, tracker, token)


def loop_before_training(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Check the token in a step before training: there is nothing to checkpoint."""
    tracker.report_step(TrainingStep.INDICATORS)
    while True:
        raise_if_cancelled(token)
        time.sleep(0.0005)


def ignore_token(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Be deaf, as a long call into C is."""
    tracker.report_step(TrainingStep.FEATURE_IMPORTANCE)
    time.sleep(600)
    return build_result()


def hold_interpreter(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Be deaf and keep the interpreter lock: no other thread of the worker runs either."""
    tracker.report_step(TrainingStep.FEATURE_IMPORTANCE)
    sum(range(10**13))
    return build_result()


def raise_training_error(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    raise NonFiniteLossError("loss is nan at epoch 3; lower the learning rate")


def raise_defect(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    raise RuntimeError("secret detail")


def crash(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    print("about to crash", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return build_result()


def leave_grandchild(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Finish while a process of the group goes on."""
    child = subprocess.Popen(["sleep", "600"])
    (job.work_dir / "artifact").mkdir()
    return build_result(grandchild=child.pid)


def keep_grandchild(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Tell the pid of a process of the group in a file, then be deaf."""
    child = subprocess.Popen(["sleep", "600"])
    path = job.work_dir / "grandchild"
    path.with_suffix(".tmp").write_text(str(child.pid))
    path.with_suffix(".tmp").rename(path)
    time.sleep(600)
    return build_result()


def flood(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Send more durable events than the pipe holds."""
    tracker.report_step(TrainingStep.TRAINING)
    for epoch in range(1, 3001):
        tracker.report_progress(epoch, 3000, epoch_metrics())
    (job.work_dir / "artifact").mkdir()
    return build_result()


def write_for_ever(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Be in the middle of writing an artifact and a checkpoint."""
    mark = uuid.uuid4().hex
    for name in (f".artifact.{mark}/model.safetensors", f"{CHECKPOINTS_NAME}/.timed.safetensors.{mark}"):
        path = job.work_dir / name
        path.parent.mkdir()
        path.write_bytes(b"half")
    tracker.report_step(TrainingStep.SAVING)
    time.sleep(600)
    return build_result()


def eat_memory(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Use a gigabyte, which the test's cgroup has not."""
    print("eating", file=sys.stderr, flush=True)
    piece = 16 * 1024 * 1024
    return build_result(eaten=len([b"x" * piece for _ in range(2**30 // piece)]))


async def print_outcome(directory: Path, runner: Runner) -> None:
    """Run one session and print state, reason and message of its outcome."""
    engine = ProcessEngine(1, runner=runner)
    outcome = await (await engine.start(build_job(directory))).wait()
    print(outcome.state, outcome.error_reason, outcome.message, sep="\n")
    await engine.close()


async def hold_session_for_ever(directory: Path) -> None:
    """Start one session, print the worker's pid, and wait; a test kills the process this runs in."""
    session = await ProcessEngine(1, runner=keep_grandchild).start(build_job(directory, "held"))
    print(session.pid, flush=True)
    await session.wait()


def cold_environment(directory: Path) -> dict[str, str]:
    """Return an environment in which a program's fork server starts at once, because its warm-up fails."""
    modules = directory / "cold"
    modules.mkdir()
    (modules / "pandas.py").write_text("raise ImportError('this fork server stays cold')\n")
    return {**os.environ, "PYTHONPATH": str(modules)}
