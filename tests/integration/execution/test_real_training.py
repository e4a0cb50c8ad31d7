"""The process engine with real trainings."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.progress import EpochDetail, StepDetail, TrainingStep, WarningDetail
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.execution.engine import EngineSession, SessionJob
from ktrdr_core.execution.found_checkpoint import find_checkpoint
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.process_group import has_live_member
from ktrdr_core.storage.artifact_files import artifact_digest
from ktrdr_core.storage.staging import StagedStorage
from ktrdr_core.training.checkpoint import load_checkpoint
from ktrdr_core.training.checkpoint_file import LoopPosition
from ktrdr_core.training.run_job import run_training
from tests.kit.builders import REPOSITORY, strategy_text
from tests.kit.engine import write_checkpoint

BARS_DIR = REPOSITORY / "data"
LONG = 100_000


def build_job(directory: Path, **spec: int) -> SessionJob:
    return SessionJob(
        session_id="real",
        training_id="real",
        attempt=1,
        spec=TrainingSpec(strategy_yaml=strategy_text(), **spec),  # type: ignore[arg-type]
        work_dir=directory / "real",
        bars_dir=BARS_DIR,
    )


@pytest.fixture
async def engine() -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine(1)
    yield engine
    await engine.close()


async def wait_for_epoch(session: EngineSession) -> None:
    async for event in session.events():
        if isinstance(event.detail, EpochDetail):
            return
    raise AssertionError(f"no epoch was seen: {await session.wait()}")


async def test_a_worker_makes_the_same_artifact_as_a_library_call(engine: ProcessEngine, tmp_path: Path) -> None:
    job = build_job(tmp_path, epochs=2)
    session = await engine.start(job)
    events = [event async for event in session.events()]
    outcome = await session.wait()
    assert outcome.state is TrainingState.UPLOADING, outcome
    assert [event.detail.step for event in events if isinstance(event.detail, StepDetail)] == list(TrainingStep)
    epochs = [event.detail for event in events if isinstance(event.detail, EpochDetail)]
    assert [detail.epoch for detail in epochs] == [1, 2]
    assert all(detail.rows_per_second > 0 for detail in epochs)

    result = run_training(
        job.spec, bar_store=DirectoryBarStore(BARS_DIR), model_storage=StagedStorage(tmp_path / "library")
    )
    assert outcome.result is not None
    assert outcome.artifact_path is not None
    assert outcome.result["artifact_digest"] == result["artifact_digest"] == artifact_digest(outcome.artifact_path)
    assert outcome.result["test_metrics"] == result["test_metrics"]
    assert outcome.result["feature_importance"] == result["feature_importance"]


async def test_a_stopped_training_leaves_a_checkpoint_that_loads(engine: ProcessEngine, tmp_path: Path) -> None:
    session = await engine.start(build_job(tmp_path, epochs=LONG))
    await wait_for_epoch(session)
    outcome = await session.cancel(save_checkpoint=True)
    assert outcome.state is TrainingState.STOPPED, outcome
    assert load_checkpoint(Path(outcome.checkpoint_path))
    assert not has_live_member(session.pid)


async def test_a_killed_training_goes_on_from_its_last_checkpoint_and_ends_with_the_same_artifact(
    engine: ProcessEngine, tmp_path: Path
) -> None:
    epochs = 40
    job = replace(build_job(tmp_path, epochs=epochs), checkpoint_every_s=0.0)
    session = await engine.start(job)
    async for event in session.events():
        # 30 epochs take longer than an interval of 1 % of the time: there is one between two epochs by now.
        if isinstance(event.detail, EpochDetail) and event.detail.epoch == epochs - 10:
            break
    os.kill(session.pid, signal.SIGKILL)
    assert (await session.wait()).error_reason == "WORKER_DIED"
    checkpoint = session.checkpoint
    assert checkpoint is not None
    assert checkpoint == find_checkpoint(job.work_dir)
    assert len(list((job.work_dir / "checkpoints").iterdir())) <= 2

    again = replace(job, session_id="again", attempt=2, work_dir=tmp_path / "again", resume_from=checkpoint.path)
    session = await engine.start(again)
    events = [event async for event in session.events()]
    outcome = await session.wait()
    assert outcome.result is not None, outcome
    seen = [event.detail.epoch for event in events if isinstance(event.detail, EpochDetail)]
    assert seen == list(range(checkpoint.epoch + 1, epochs + 1))
    library = run_training(job.spec, bar_store=DirectoryBarStore(BARS_DIR), model_storage=None)
    assert outcome.result["artifact_digest"] == library["artifact_digest"]
    assert outcome.result["warnings"] == library["warnings"]


async def test_a_session_begins_at_the_beginning_where_its_checkpoint_is_of_no_use(
    engine: ProcessEngine, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    write_checkpoint(other, LoopPosition(epoch=3, batches_done=0))
    session = await engine.start(replace(build_job(tmp_path, epochs=2), resume_from=other))
    events = [event async for event in session.events()]
    outcome = await session.wait()
    assert outcome.state is TrainingState.UPLOADING, outcome
    (warning,) = [event.detail for event in events if isinstance(event.detail, WarningDetail)]
    assert warning.reason == "CHECKPOINT_UNUSABLE"
    assert [event.detail.epoch for event in events if isinstance(event.detail, EpochDetail)] == [1, 2]


async def test_a_cancelled_training_leaves_no_artifact(engine: ProcessEngine, tmp_path: Path) -> None:
    session = await engine.start(build_job(tmp_path, epochs=LONG))
    await wait_for_epoch(session)
    outcome = await session.cancel()
    assert outcome.state is TrainingState.CANCELLED
    assert not has_live_member(session.pid)
    assert not (session.job.work_dir / "artifact").exists()


async def test_bad_bars_fail_the_session_with_their_reason(engine: ProcessEngine, tmp_path: Path) -> None:
    job = build_job(tmp_path)
    empty = SessionJob(
        session_id="no-bars",
        training_id="no-bars",
        attempt=1,
        spec=job.spec,
        work_dir=tmp_path / "no-bars",
        bars_dir=tmp_path / "nowhere",
    )
    outcome = await (await engine.start(empty)).wait()
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "SERIES_NOT_FOUND")
    assert "EURUSD" in outcome.message
