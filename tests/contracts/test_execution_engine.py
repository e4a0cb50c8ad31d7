"""What every execution engine must do; each implementation runs this suite."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_core.domain.progress import (
    BatchDetail,
    EpochDetail,
    ProgressEvent,
    StateDetail,
    StepDetail,
    TrainingStep,
    WarningDetail,
)
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import DrainingError, ExecutionModeError, IllegalStateError, NoSlotError
from ktrdr_core.execution.devices import Device
from ktrdr_core.execution.engine import EngineSession, ExecutionEngine, SessionOutcome
from ktrdr_core.execution.found_checkpoint import find_checkpoint
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.process_group import has_live_member
from ktrdr_core.execution.worker import Runner
from ktrdr_core.training.checkpoint_file import LoopPosition
from tests.kit import engine as kit
from tests.kit.engine import build_job, build_result, write_checkpoint
from tests.kit.eventually import PATIENCE_S, eventually

EngineFactory = Callable[..., ExecutionEngine]

CPU = Device(device_type="cpu", name="CPU", memory_available_gb=None, supports_mixed_precision=False)


@pytest.fixture(params=[ProcessEngine])
async def build_engine(request: pytest.FixtureRequest) -> AsyncIterator[EngineFactory]:
    """Build engines that are closed at the end of the test."""
    engines: list[ExecutionEngine] = []

    def build(runner: Runner, num_slots: int = 1) -> ExecutionEngine:
        engine: ExecutionEngine = request.param(num_slots, runner=runner, devices=[CPU])
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        await engine.close()


async def collect(session: EngineSession) -> tuple[list[ProgressEvent], SessionOutcome]:
    events = [event async for event in session.events()]
    return events, await session.wait()


async def first_event(session: EngineSession, kind: type) -> ProgressEvent:
    """Read events up to the first of a kind."""
    async for event in session.events():
        if isinstance(event.detail, kind):
            return event
    raise AssertionError(f"the session ended without a {kind.__name__}")


async def test_a_session_streams_every_level_of_progress_and_ends_with_its_artifact(
    build_engine: EngineFactory, tmp_path: Path
) -> None:
    session = await build_engine(kit.finish).start(build_job(tmp_path))
    events, outcome = await collect(session)
    details = [event.detail for event in events]
    assert isinstance(details[0], StateDetail)
    assert details[0].state is TrainingState.RUNNING
    assert [detail.step for detail in details if isinstance(detail, StepDetail)] == list(TrainingStep)
    assert [detail.epoch for detail in details if isinstance(detail, EpochDetail)] == [1, 2]
    assert sum(isinstance(detail, WarningDetail) for detail in details) == 1
    assert all(event.sequence == 0 and event.attempt == 1 for event in events)
    assert [event.overall for event in events] == sorted(event.overall for event in events)
    assert outcome.state is TrainingState.UPLOADING
    assert outcome.result == build_result()
    assert outcome.artifact_path == session.job.work_dir / "artifact"
    assert outcome.artifact_path.is_dir()


async def test_events_end_only_when_the_outcome_is_known(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.finish).start(build_job(tmp_path))
    async for _ in session.events():
        pass
    assert (await asyncio.wait_for(session.wait(), timeout=0.001)).state is TrainingState.UPLOADING


async def test_no_durable_event_is_lost_on_a_reader_that_comes_late(
    build_engine: EngineFactory, tmp_path: Path
) -> None:
    session = await build_engine(kit.flood).start(build_job(tmp_path))
    await session.wait()
    events, _ = await collect(session)
    epochs = [event.detail.epoch for event in events if isinstance(event.detail, EpochDetail)]
    assert epochs == list(range(1, 3001))
    assert not any(isinstance(event.detail, BatchDetail) for event in events)


async def test_cancel_ends_a_training_loop_and_its_process_group(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.loop_until_cancelled).start(build_job(tmp_path))
    await first_event(session, StepDetail)
    outcome = await session.cancel(reason="no longer wanted")
    assert not has_live_member(session.pid)
    assert (outcome.state, outcome.message) == (TrainingState.CANCELLED, "no longer wanted")
    assert outcome == await session.wait()


@pytest.mark.parametrize("runner", [kit.ignore_token, kit.hold_interpreter])
async def test_cancel_ends_a_worker_that_does_not_listen(
    build_engine: EngineFactory, tmp_path: Path, runner: Runner
) -> None:
    session = await build_engine(runner).start(build_job(tmp_path))
    await first_event(session, StepDetail)
    outcome = await session.cancel()
    assert outcome.state is TrainingState.CANCELLED
    assert not has_live_member(session.pid)


async def test_stop_with_a_checkpoint_names_the_checkpoint(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.loop_until_cancelled).start(build_job(tmp_path))
    await first_event(session, StepDetail)
    outcome = await session.cancel(save_checkpoint=True)
    assert outcome.state is TrainingState.STOPPED
    assert session.checkpoint is not None
    assert (str(session.checkpoint.path), session.checkpoint.epoch) == (outcome.checkpoint_path, 3)
    assert session.checkpoint == find_checkpoint(session.job.work_dir)


@pytest.mark.parametrize("runner", [kit.keep_checkpoints, kit.finish_with_checkpoint])
async def test_the_newest_checkpoint_is_known_while_a_session_runs_and_after_its_end(
    build_engine: EngineFactory, tmp_path: Path, runner: Runner
) -> None:
    session = await build_engine(runner).start(build_job(tmp_path))
    assert session.checkpoint is None or session.checkpoint.epoch < 3
    await first_event(session, EpochDetail)
    known = session.checkpoint
    assert known is not None
    assert known.epoch == 2
    content = known.path.read_bytes()
    assert (known.size_bytes, known.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    await session.cancel()
    assert session.checkpoint == known == find_checkpoint(session.job.work_dir)


async def test_a_session_without_checkpoints_knows_none(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.finish).start(build_job(tmp_path))
    await session.wait()
    assert session.checkpoint is None
    assert find_checkpoint(session.job.work_dir) is None


async def test_stop_before_a_resumed_training_goes_on_keeps_the_checkpoint_it_was_to_go_on_from(
    build_engine: EngineFactory, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier.safetensors"
    write_checkpoint(earlier, LoopPosition(epoch=5, batches_done=2))
    session = await build_engine(kit.loop_before_training).start(replace(build_job(tmp_path), resume_from=earlier))
    await first_event(session, StepDetail)
    outcome = await session.cancel(save_checkpoint=True)
    assert outcome.state is TrainingState.STOPPED
    assert session.checkpoint is not None
    assert (session.checkpoint.epoch, str(session.checkpoint.path)) == (4, outcome.checkpoint_path)
    assert session.checkpoint.path.read_bytes() == earlier.read_bytes()
    assert session.job.work_dir in session.checkpoint.path.parents


async def test_stop_before_training_has_no_checkpoint_and_says_so(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.loop_before_training).start(build_job(tmp_path))
    await first_event(session, StepDetail)
    outcome = await session.cancel(save_checkpoint=True)
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.STOPPED, "")
    assert "no checkpoint" in outcome.message


async def test_a_cancel_overtakes_a_stop_that_is_not_heard(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.ignore_token).start(build_job(tmp_path))
    await first_event(session, StepDetail)
    stop = asyncio.create_task(session.cancel(save_checkpoint=True))
    await asyncio.sleep(0)
    outcome = await asyncio.wait_for(session.cancel(reason="at once"), timeout=PATIENCE_S)
    assert (outcome.state, outcome.message) == (TrainingState.CANCELLED, "at once")
    assert await stop == outcome


async def test_cancel_right_after_start_ends_the_session(build_engine: EngineFactory, tmp_path: Path) -> None:
    engine = build_engine(kit.ignore_token)
    session = await engine.start(build_job(tmp_path))
    assert (await session.cancel()).state is TrainingState.CANCELLED
    assert engine.num_free_slots == 1


async def test_cancel_of_an_ended_session_keeps_its_outcome(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.finish).start(build_job(tmp_path))
    outcome = await session.wait()
    assert await session.cancel() == outcome
    assert outcome.state is TrainingState.UPLOADING


async def test_giving_up_a_cancel_does_not_call_it_off(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.ignore_token).start(build_job(tmp_path))
    caller = asyncio.create_task(session.cancel())
    await asyncio.sleep(0)
    caller.cancel()
    assert (await asyncio.wait_for(session.wait(), timeout=PATIENCE_S)).state is TrainingState.CANCELLED


async def test_eight_starts_at_once_on_one_slot_start_one(build_engine: EngineFactory, tmp_path: Path) -> None:
    engine = build_engine(kit.ignore_token)
    answers = await asyncio.gather(*(engine.start(build_job(tmp_path)) for _ in range(8)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, NoSlotError)]
    assert len(refused) == 7
    assert engine.num_free_slots == 0
    assert "all 1 slots are taken" in refused[0].message
    assert refused[0].retry_after_s > 0


async def test_an_ended_session_gives_its_slot_back(build_engine: EngineFactory, tmp_path: Path) -> None:
    engine = build_engine(kit.finish)
    for _ in range(2):
        await (await engine.start(build_job(tmp_path))).wait()
        assert engine.num_free_slots == 1


async def test_a_job_that_asks_for_more_gpus_than_there_are_gets_no_slot(
    build_engine: EngineFactory, tmp_path: Path
) -> None:
    engine = build_engine(kit.finish)
    with pytest.raises(NoSlotError, match="asks for 2 GPUs and this machine has 0"):
        await engine.start(build_job(tmp_path, num_gpus=2))
    with pytest.raises(ExecutionModeError, match="requires a GPU"):
        await engine.start(build_job(tmp_path, require_gpu=True))
    assert engine.num_free_slots == 1


async def test_a_session_id_that_runs_cannot_be_started_again(build_engine: EngineFactory, tmp_path: Path) -> None:
    engine = build_engine(kit.ignore_token, num_slots=2)
    await engine.start(build_job(tmp_path, "one"))
    with pytest.raises(IllegalStateError, match="one is running already"):
        await engine.start(build_job(tmp_path, "one"))


async def test_close_ends_every_worker_and_takes_no_more(build_engine: EngineFactory, tmp_path: Path) -> None:
    engine = build_engine(kit.ignore_token, num_slots=2)
    sessions = [await engine.start(build_job(tmp_path)) for _ in range(2)]
    await engine.close()
    assert not any(has_live_member(session.pid) for session in sessions)
    assert [(await session.wait()).state for session in sessions] == [TrainingState.CANCELLED] * 2
    with pytest.raises(DrainingError):
        await engine.start(build_job(tmp_path))


async def test_resource_usage_is_known_while_the_worker_lives(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.hold_interpreter).start(build_job(tmp_path))
    await first_event(session, StepDetail)

    def has_worked() -> bool:
        usage = session.resource_usage()
        return usage is not None and usage.cpu_time_s > 0 and usage.resident_memory_bytes > 10_000_000

    await eventually(has_worked, what="resource usage")
    await session.cancel()
    assert session.resource_usage() is None


async def test_the_worker_is_another_process_in_a_group_of_its_own(build_engine: EngineFactory, tmp_path: Path) -> None:
    session = await build_engine(kit.describe_process).start(build_job(tmp_path))
    outcome = await session.wait()
    assert outcome.result is not None
    facts = outcome.result["config"]["strategy_config"]
    assert facts["pid"] == session.pid == facts["pgid"] == facts["sid"] != os.getpid()
