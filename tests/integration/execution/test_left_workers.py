"""Workers that a killed service leaves behind are gone once the next one has started."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from ktrdr_core.execution.left_workers import NOTE_NAME, WorkerProcess, end_left_workers
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.process_group import has_live_member
from tests.kit import engine as kit
from tests.kit.builders import REPOSITORY
from tests.kit.engine import build_job, cold_environment
from tests.kit.eventually import eventually


def parent_pid(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_stopped_worker_of_a_killed_service_is_ended_at_the_next_start(tmp_path: Path) -> None:
    script = (
        "import asyncio; from pathlib import Path; from tests.kit import engine as kit; "
        f"asyncio.run(kit.hold_session_for_ever(Path({str(tmp_path)!r})))"
    )
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=cold_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(await asyncio.to_thread(parent.stdout.readline))
        await eventually((tmp_path / "held" / "grandchild").exists, what="grandchild")
        server = parent_pid(worker)
        os.kill(worker, signal.SIGSTOP)
        # Else the fork server would end the worker.
        os.kill(server, signal.SIGSTOP)
        await eventually(lambda: state_of(worker) == state_of(server) == "T", what="both stopped")
        parent.kill()
    try:
        assert has_live_member(worker)
        assert await end_left_workers(tmp_path) == ["held"]
        assert not has_live_member(worker)
        assert not (tmp_path / "held" / NOTE_NAME).exists()
    finally:
        os.kill(server, signal.SIGCONT)
    await eventually(lambda: not Path(f"/proc/{server}").exists(), what="end of the fork server")


async def test_a_worker_is_noted_while_it_lives(tmp_path: Path) -> None:
    engine = ProcessEngine(1, runner=kit.ignore_token, devices=[])
    session = await engine.start(build_job(tmp_path))
    note = session.job.work_dir / NOTE_NAME
    worker = WorkerProcess.of(session.pid)
    assert worker is not None
    assert str(worker.start_ticks) in note.read_text()
    await session.cancel()
    assert not note.exists()
    await engine.close()


async def test_a_note_the_disk_does_not_take_costs_no_training(tmp_path: Path) -> None:
    engine = ProcessEngine(1, runner=kit.finish, devices=[])
    job = build_job(tmp_path)
    (job.work_dir / NOTE_NAME / "in the way").mkdir(parents=True)
    outcome = await (await engine.start(job)).wait()
    assert outcome.artifact_path is not None
    await engine.close()
