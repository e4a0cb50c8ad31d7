"""How workers end: by crash, by signal, with descendants, with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import UnavailableError
from ktrdr_core.execution.engine import EngineSession
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.process_group import has_group, has_live_member
from ktrdr_core.execution.worker import Runner
from tests.kit import engine as kit
from tests.kit.engine import build_job, cold_environment
from tests.kit.eventually import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[3]
BuildEngine = Callable[..., ProcessEngine]


@pytest.fixture
async def build_engine() -> AsyncIterator[BuildEngine]:
    engines: list[ProcessEngine] = []

    def build(
        runner: Runner, *, num_slots: int = 1, stop_limit_s: float = 30.0, close_limit_s: float = 10.0
    ) -> ProcessEngine:
        engines.append(
            ProcessEngine(num_slots, runner=runner, stop_limit_s=stop_limit_s, close_limit_s=close_limit_s, devices=[])
        )
        return engines[-1]

    yield build
    for engine in engines:
        await engine.close()


async def first_events(session: EngineSession, count: int) -> None:
    async for _ in session.events():
        count -= 1
        if not count:
            return


def parent_pid(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_crash_in_c_code_fails_the_session_with_signal_and_last_words(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    session = await build_engine(kit.crash).start(build_job(tmp_path))
    outcome = await session.wait()
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "WORKER_DIED")
    assert "SIGSEGV" in outcome.message
    assert "about to crash | Fatal Python error: Segmentation fault" in outcome.message
    assert str(session.job.work_dir / "worker.log") in outcome.message


async def test_a_worker_killed_from_outside_fails_the_session(build_engine: BuildEngine, tmp_path: Path) -> None:
    engine = build_engine(kit.ignore_token)
    session = await engine.start(build_job(tmp_path))
    await first_events(session, 2)
    os.kill(session.pid, signal.SIGKILL)
    outcome = await asyncio.wait_for(session.wait(), timeout=PATIENCE_S)
    assert (outcome.state, outcome.error_reason) == (TrainingState.FAILED, "WORKER_DIED")
    assert "SIGKILL" in outcome.message
    assert engine.num_free_slots == 1


async def test_signals_meant_for_the_service_leave_the_worker_alone(build_engine: BuildEngine, tmp_path: Path) -> None:
    session = await build_engine(kit.loop_until_cancelled).start(build_job(tmp_path))
    await first_events(session, 2)
    os.kill(session.pid, signal.SIGTERM)
    os.kill(session.pid, signal.SIGINT)
    os.kill(parent_pid(session.pid), signal.SIGTERM)
    outcome = await session.cancel(save_checkpoint=True)
    assert outcome.state is TrainingState.STOPPED


async def test_processes_the_worker_leaves_behind_are_ended_before_the_outcome(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    session = await build_engine(kit.leave_grandchild).start(build_job(tmp_path))
    outcome = await session.wait()
    assert outcome.state is TrainingState.UPLOADING
    assert not has_live_member(session.pid)


async def test_cancel_ends_processes_the_worker_started(build_engine: BuildEngine, tmp_path: Path) -> None:
    session = await build_engine(kit.keep_grandchild).start(build_job(tmp_path))
    await eventually((session.job.work_dir / "grandchild").exists, what="grandchild")
    assert has_live_member(session.pid)
    await session.cancel()
    assert not has_live_member(session.pid)


async def test_a_stop_that_is_not_heard_is_cancelled_at_its_limit_and_claims_no_checkpoint(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    session = await build_engine(kit.ignore_token, stop_limit_s=0.1).start(build_job(tmp_path))
    await first_events(session, 2)
    outcome = await session.cancel(save_checkpoint=True, reason="enough")
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.CANCELLED, "")
    assert outcome.message.startswith("enough; the worker did not stop within 0.1 s")


@pytest.mark.parametrize(
    ("runner", "kept"), [(kit.ignore_token, "no checkpoint"), (kit.keep_checkpoints, "none but that of epoch 2")]
)
async def test_a_stop_that_is_not_heard_says_what_is_left(
    build_engine: BuildEngine, tmp_path: Path, runner: Runner, kept: str
) -> None:
    session = await build_engine(runner, stop_limit_s=0.1).start(build_job(tmp_path))
    await first_events(session, 3 if runner is kit.keep_checkpoints else 2)
    outcome = await session.cancel(save_checkpoint=True)
    assert (outcome.state, outcome.checkpoint_path) == (TrainingState.CANCELLED, "")
    assert outcome.message.endswith(f"was killed, so there is {kept}")


async def test_a_worker_killed_while_it_writes_leaves_nothing_half_made(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    session = await build_engine(kit.write_for_ever).start(build_job(tmp_path))
    await first_events(session, 2)
    await session.cancel()
    left = [path.name for path in session.job.work_dir.rglob("*")]
    assert sorted(left) == ["checkpoints", "worker.log"]


async def test_cancel_while_the_session_is_being_started(build_engine: BuildEngine, tmp_path: Path) -> None:
    engine = build_engine(kit.ignore_token)
    starting = asyncio.create_task(engine.start(build_job(tmp_path, "early")))
    await asyncio.sleep(0)
    session = engine.session("early")
    assert session is not None
    assert session.pid == 0
    outcome = await asyncio.wait_for(session.cancel(), timeout=PATIENCE_S)
    assert outcome.state is TrainingState.CANCELLED
    assert await starting is session
    assert not session.pid or not has_group(session.pid)
    assert engine.num_free_slots == 1


async def test_giving_up_a_start_ends_its_worker_and_frees_the_slot(build_engine: BuildEngine, tmp_path: Path) -> None:
    engine = build_engine(kit.ignore_token)
    starting = asyncio.create_task(engine.start(build_job(tmp_path, "given-up")))
    await asyncio.sleep(0)
    session = engine.session("given-up")
    assert session is not None
    starting.cancel()
    outcome = await asyncio.wait_for(session.wait(), timeout=PATIENCE_S)
    assert outcome.state is TrainingState.CANCELLED
    assert engine.num_free_slots == 1


async def test_a_directory_that_cannot_be_used_refuses_the_start(build_engine: BuildEngine, tmp_path: Path) -> None:
    engine = build_engine(kit.finish)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UnavailableError, match="taken"):
        await engine.start(build_job(tmp_path, "taken"))
    assert engine.num_free_slots == 1


async def test_workers_know_no_grpc_though_this_process_does(build_engine: BuildEngine, tmp_path: Path) -> None:
    assert grpc.__name__ in sys.modules
    session = await build_engine(kit.describe_process).start(build_job(tmp_path))
    result = (await session.wait()).result
    assert result is not None
    facts = result["config"]["strategy_config"]
    assert not {"grpc", "google", "ktrdr"} & set(facts["modules"])
    assert facts["is_torch_warm"]
    assert facts["num_torch_threads"] == 1


async def test_the_fork_server_has_one_thread_when_it_forks(build_engine: BuildEngine, tmp_path: Path) -> None:
    session = await build_engine(kit.ignore_token).start(build_job(tmp_path))
    status = Path(f"/proc/{parent_pid(session.pid)}/status").read_text()  # noqa: ASYNC240
    assert "Threads:\t1\n" in status


async def test_forty_workers_in_a_row_all_finish(build_engine: BuildEngine, tmp_path: Path) -> None:
    engine = build_engine(kit.finish, num_slots=4)

    async def run() -> TrainingState:
        return (await (await engine.start(build_job(tmp_path))).wait()).state

    states: list[TrainingState] = []
    for _ in range(10):
        states += await asyncio.gather(*(run() for _ in range(4)))
    assert states == [TrainingState.UPLOADING] * 40


@pytest.mark.parametrize("is_worker_stopped", [False, True])
async def test_a_killed_parent_leaves_no_process(tmp_path: Path, is_worker_stopped: bool) -> None:
    script = (
        "import asyncio; from pathlib import Path; from tests.kit import engine as kit; "
        f"asyncio.run(kit.hold_session_for_ever(Path({str(tmp_path)!r})))"
    )
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=cold_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(await asyncio.to_thread(parent.stdout.readline))
        await eventually((tmp_path / "held" / "grandchild").exists, what="grandchild")
        server = parent_pid(worker)
        if is_worker_stopped:
            os.kill(worker, signal.SIGSTOP)
        parent.kill()
    await eventually(lambda: not has_live_member(worker), what="end of the worker's group")
    await eventually(lambda: not Path(f"/proc/{server}").exists(), what="end of the fork server")


def test_a_program_that_ends_without_closing_its_engine_does_not_hang(tmp_path: Path) -> None:
    script = (
        "import asyncio; from pathlib import Path; from tests.kit import engine as kit\n"
        "from ktrdr_core.execution.process_engine import ProcessEngine\n"
        "async def main():\n"
        f"    session = await ProcessEngine(1, runner=kit.ignore_token).start(kit.build_job(Path({str(tmp_path)!r})))\n"
        "    print(session.pid)\n"
        "    async for event in session.events():\n"
        "        if event.overall:\n"
        "            return\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=cold_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert not has_live_member(int(done.stdout))


async def test_a_worker_that_outlives_the_limit_of_a_close_is_never_called_cancelled(
    build_engine: BuildEngine, tmp_path: Path
) -> None:
    engine = build_engine(kit.ignore_token, close_limit_s=0.0)
    session = await engine.start(build_job(tmp_path))
    await first_events(session, 2)
    waiting = asyncio.create_task(session.wait())
    await asyncio.wait_for(engine.close(), PATIENCE_S)
    with pytest.raises(UnavailableError, match=f"worker {session.pid} was killed and is not gone"):
        await waiting
    await eventually(lambda: engine.num_free_slots == 1, what="end of the worker")
