"""Workers that run out of memory, lose their GPU, or meet a full disk: the outcome says which."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.progress import TrainingStep, WarningDetail
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.cancel_flag import FlagToken
from ktrdr_core.execution.engine import SessionJob
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.progress_tracker import ProgressTracker
from ktrdr_core.execution.worker import Runner, run_training_job
from ktrdr_core.training.run_job import run_training
from tests.kit import engine as kit
from tests.kit.builders import REPOSITORY, strategy_text
from tests.kit.engine import build_job, build_result, cold_environment
from tests.kit.eventually import PATIENCE_S, eventually

BARS_DIR = REPOSITORY / "data"
BuildEngine = Callable[[Runner], ProcessEngine]
CGROUP = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 400 * 1024 * 1024


@pytest.fixture
async def build_engine() -> AsyncIterator[BuildEngine]:
    engines: list[ProcessEngine] = []

    def build(runner: Runner) -> ProcessEngine:
        engines.append(ProcessEngine(1, runner=runner, devices=[]))
        return engines[-1]

    yield build
    for engine in engines:
        await engine.close()


def own_cgroup() -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory" and (CGROUP / path.lstrip("/")).is_dir():
            return CGROUP / path.lstrip("/")
    return None


@pytest.fixture
async def small_cgroup() -> AsyncIterator[Path]:
    """A memory cgroup of 400 MB; processes join it by themselves."""
    parent = own_cgroup()
    if parent is None or os.geteuid() != 0:
        pytest.skip("needs root and a memory cgroup (v1) to have the kernel's OOM killer strike")
    cgroup = parent / f"ktrdr-{os.getpid()}"
    try:
        cgroup.mkdir()
        (cgroup / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield cgroup
    await eventually(lambda: not (cgroup / "cgroup.procs").read_text(), what="end of the fork server")
    cgroup.rmdir()


def raise_memory_error(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
    return build_result(eaten=len(bytes(1 << 34)))


def abort_in_driver(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """End as a C++ destructor does that meets a broken device."""
    print("terminate called after throwing an instance of 'c10::AcceleratorError'", file=sys.stderr)
    print(
        "  what():  CUDA error: device-side assert triggered\nCompile with ...\n\nframe #0", file=sys.stderr, flush=True
    )
    os.abort()


def abort_in_allocator(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
    os.abort()


async def test_the_kernels_oom_killer_is_named(tmp_path: Path, small_cgroup: Path) -> None:
    # A service with all its processes in a container that is too small.
    script = (
        "import asyncio, os; from pathlib import Path\n"
        f"Path({str(small_cgroup / 'cgroup.procs')!r}).write_text(str(os.getpid()))\n"
        "from tests.kit import engine as kit\n"
        f"asyncio.run(kit.print_outcome(Path({str(tmp_path)!r}), kit.eat_memory))\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=cold_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    state, reason, message = done.stdout.splitlines()
    assert (state, reason) == ("FAILED", "OUT_OF_MEMORY"), message
    assert "the kernel killed the worker process because memory ran out" in message
    assert message.endswith("worker.log, which ends: eating")


async def test_a_kill_by_someone_else_is_not_called_lack_of_memory(build_engine: BuildEngine, tmp_path: Path) -> None:
    session = await build_engine(kit.ignore_token).start(build_job(tmp_path))
    async for event in session.events():
        if event.overall:
            break
    os.kill(session.pid, signal.SIGKILL)
    assert (await session.wait()).error_reason == "WORKER_DIED"


@pytest.mark.parametrize(
    ("runner", "reason", "words"),
    [
        (raise_memory_error, "OUT_OF_MEMORY", "MemoryError"),
        (abort_in_driver, "DEVICE_FAILED", "Fatal Python error: Aborted"),
        (abort_in_allocator, "OUT_OF_MEMORY", "std::bad_alloc"),
    ],
)
async def test_a_failure_of_memory_or_device_has_its_reason_and_the_workers_last_words(
    build_engine: BuildEngine, tmp_path: Path, runner: Runner, reason: str, words: str
) -> None:
    session = await build_engine(runner).start(build_job(tmp_path))
    outcome = await session.wait()
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, reason)
    assert f"see {session.job.work_dir / 'worker.log'}, which ends: " in outcome.message
    assert words in outcome.message.rpartition("which ends: ")[2]


def training_job(directory: Path, **options: float) -> SessionJob:
    return SessionJob(
        session_id="full",
        training_id="full",
        attempt=1,
        spec=TrainingSpec(strategy_yaml=strategy_text(), epochs=3, enable_gpu=False),
        work_dir=directory / "full",
        bars_dir=BARS_DIR,
        **options,  # type: ignore[arg-type]
    )


def train_with_little_room(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Train where no file may grow beyond 4 kB, as on a full disk; the log is longer from the start."""
    os.ftruncate(2, 8_192)
    os.lseek(2, 0, os.SEEK_END)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
    return run_training_job(job, tracker, token)


def train_without_room_for_checkpoints(job: SessionJob, tracker: ProgressTracker, token: FlagToken) -> TrainingResult:
    """Lift the limit once training is over, as somebody does who frees space."""

    class Tracker(ProgressTracker):
        def report_step(self, step: TrainingStep) -> None:
            tracker.report_step(step)
            room = 4_096 if step is TrainingStep.TRAINING else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

        def report_warning(self, reason: str, message: str) -> None:
            tracker.report_warning(reason, message)

    return run_training_job(job, Tracker(lambda event: None, attempt=1), token)


async def test_a_disk_that_takes_no_artifact_fails_the_session_with_a_clear_sentence(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    session = await build_engine(train_with_little_room).start(training_job(tmp_path))
    outcome = await session.wait()
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "STORAGE_UNAVAILABLE"), outcome.message
    assert "the trained model could not be stored ([Errno 27] File too large" in outcome.message
    assert "free space" in outcome.message
    assert [path.name for path in session.job.work_dir.iterdir()] == ["worker.log"]


async def test_a_disk_that_takes_no_checkpoint_costs_a_warning_and_nothing_else(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    job = training_job(tmp_path, checkpoint_every_s=0.0)
    session = await build_engine(train_without_room_for_checkpoints).start(job)
    warnings = [event.detail async for event in session.events() if isinstance(event.detail, WarningDetail)]
    outcome = await session.wait()
    assert outcome.state is TrainingState.UPLOADING, outcome.message
    (failed,) = [detail for detail in warnings if detail.reason == "CHECKPOINT_FAILED"]
    assert "File too large" in failed.message
    assert session.checkpoint is None
    assert [path.name for path in (job.work_dir / "checkpoints").iterdir()] == []
    assert outcome.result is not None
    library = run_training(job.spec, bar_store=DirectoryBarStore(BARS_DIR), model_storage=None)
    assert outcome.result["artifact_digest"] == library["artifact_digest"]
    assert outcome.result["warnings"] == library["warnings"]


async def test_a_log_that_cannot_be_made_fails_the_session_by_the_reason_of_the_disk(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    job = replace(build_job(tmp_path), work_dir=tmp_path / "here")
    (job.work_dir / "worker.log").mkdir(parents=True)
    outcome = await (await build_engine(kit.finish).start(job)).wait()
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "STORAGE_UNAVAILABLE")
