"""How errors of a training become the outcome a worker sends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_core.domain.progress import TrainingStep
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CancellationError, DeviceFailedError, InvalidBarsError, NonFiniteLossError
from ktrdr_core.execution.cancel_flag import CancelFlag, FlagToken, Want
from ktrdr_core.execution.engine import SessionJob, SessionOutcome
from ktrdr_core.execution.progress_tracker import ProgressTracker
from ktrdr_core.execution.worker import read_outcome, run_job
from tests.kit.engine import build_job, build_result, leave_checkpoint


def outcome_of(job: SessionJob, act: Callable[[], TrainingResult], want: Want = Want.GO_ON) -> SessionOutcome:
    flag = CancelFlag()

    def runner(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
        flag.want = want
        return act()

    tracker = ProgressTracker(lambda event: None, attempt=1)
    return read_outcome(json.dumps(run_job(job, runner, tracker, FlagToken(flag))).encode(), job)


def raising(error: BaseException) -> Callable[[], TrainingResult]:
    def act() -> TrainingResult:
        raise error

    return act


def test_a_result_means_the_artifact_is_complete(tmp_path: Path) -> None:
    job = build_job(tmp_path)
    outcome = outcome_of(job, build_result)
    assert outcome.state is TrainingState.UPLOADING
    assert outcome.artifact_path == job.work_dir / "artifact"
    assert outcome.result == build_result()


@pytest.mark.parametrize("error", [NonFiniteLossError("loss is nan"), InvalidBarsError("row 3 has high below low")])
def test_an_error_of_the_tree_keeps_its_reason_and_message(
    tmp_path: Path, error: NonFiniteLossError | InvalidBarsError
) -> None:
    outcome = outcome_of(build_job(tmp_path), raising(error))
    assert (outcome.state, outcome.error_reason, outcome.message) == (
        TrainingState.FAILED,
        error.reason,
        error.message,
    )
    assert outcome.artifact_path is None


def test_any_other_error_is_internal_and_its_text_stays_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = build_job(tmp_path)
    outcome = outcome_of(job, raising(RuntimeError("secret detail")))
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "INTERNAL")
    assert "secret detail" not in outcome.message
    assert str(job.work_dir / "worker.log") in outcome.message
    assert "secret detail" in capfd.readouterr().err


def test_running_out_of_memory_is_said_in_words(tmp_path: Path) -> None:
    outcome = outcome_of(build_job(tmp_path), raising(MemoryError()))
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "OUT_OF_MEMORY")
    assert "memory" in outcome.message


def test_a_cancelled_training_is_cancelled_even_if_it_carries_a_checkpoint(tmp_path: Path) -> None:
    error = CancellationError("enough")
    error.checkpoint_path = "/somewhere"
    outcome = outcome_of(build_job(tmp_path), raising(error), want=Want.CANCEL)
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.CANCELLED, "")


def test_a_stopped_training_names_its_checkpoint(tmp_path: Path) -> None:
    error = CancellationError("enough")
    error.checkpoint_path = "/somewhere"
    outcome = outcome_of(build_job(tmp_path), raising(error), want=Want.STOP_WITH_CHECKPOINT)
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.STOPPED, "/somewhere")


def test_a_training_whose_last_state_could_not_be_saved_names_the_newest_checkpoint_it_has(tmp_path: Path) -> None:
    job, flag = build_job(tmp_path), CancelFlag()

    def runner(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
        tracker.report_step(TrainingStep.TRAINING)
        leave_checkpoint(job, tracker, "timed", epoch=7)
        flag.want = Want.STOP_WITH_CHECKPOINT
        raise CancellationError("enough")

    tracker = ProgressTracker(lambda event: None, attempt=1)
    outcome = read_outcome(json.dumps(run_job(job, runner, tracker, FlagToken(flag))).encode(), job)
    assert outcome.state is TrainingState.STOPPED
    assert Path(outcome.checkpoint_path).name == "timed.safetensors"
    assert "could not be saved, the checkpoint is of epoch 7" in outcome.message


def test_a_training_that_was_stopped_and_could_save_nothing_does_not_say_it_had_not_begun(tmp_path: Path) -> None:
    job, flag = build_job(tmp_path), CancelFlag()

    def runner(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
        tracker.report_step(TrainingStep.TRAINING)
        flag.want = Want.STOP_WITH_CHECKPOINT
        raise CancellationError("enough")

    tracker = ProgressTracker(lambda event: None, attempt=1)
    outcome = read_outcome(json.dumps(run_job(job, runner, tracker, FlagToken(flag))).encode(), job)
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.STOPPED, "")
    assert outcome.message == "Stopped; there is no checkpoint"


@pytest.mark.parametrize("content", [None, b"no checkpoint"])
def test_a_training_stopped_before_it_went_on_from_a_bad_checkpoint_claims_none(
    tmp_path: Path, content: bytes | None
) -> None:
    earlier = tmp_path / "earlier.safetensors"
    if content is not None:
        earlier.write_bytes(content)
    job = replace(build_job(tmp_path), resume_from=earlier)
    job.work_dir.mkdir()
    outcome = outcome_of(job, raising(CancellationError()), want=Want.STOP_WITH_CHECKPOINT)
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.STOPPED, "")
    assert str(earlier) in outcome.message


def test_a_failure_caused_by_another_has_that_ones_traceback_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def act() -> TrainingResult:
        try:
            raise RuntimeError("CUDA error: launch failed")
        except RuntimeError as cause:
            raise DeviceFailedError("the GPU failed") from cause

    outcome = outcome_of(build_job(tmp_path), act)
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "DEVICE_FAILED")
    assert capfd.readouterr().err.splitlines()[-1] == "RuntimeError: CUDA error: launch failed"


def test_a_log_that_takes_nothing_does_not_cost_the_outcome(tmp_path: Path) -> None:
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115  # closing it fails too
    try:
        with contextlib.redirect_stderr(full):
            outcome = outcome_of(build_job(tmp_path), raising(NonFiniteLossError("loss is nan")))
    finally:
        with pytest.raises(OSError, match="No space left"):
            full.close()
    assert outcome.error_reason == "NON_FINITE_LOSS"


def test_a_training_stopped_before_it_began_says_there_is_no_checkpoint(tmp_path: Path) -> None:
    outcome = outcome_of(build_job(tmp_path), raising(CancellationError()), want=Want.STOP_WITH_CHECKPOINT)
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.STOPPED, "")
    assert "no checkpoint" in outcome.message
