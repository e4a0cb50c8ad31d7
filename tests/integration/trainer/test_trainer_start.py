"""How the trainer's process starts, and how it refuses to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ktrdr_core.clock import utc_now
from ktrdr_core.domain.spec import TrainingSpec
from tests.kit.eventually import PATIENCE_S
from tests.kit.trainer_process import ROOT, is_alive
from trainer_service.journal import Journal, SessionOrder, WorkerProcess
from trainer_service.recovery import load_sessions


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


def test_the_entry_point_knows_no_grpc_before_the_fork_server_runs() -> None:
    done = run(
        "-c", "import sys, trainer_service.__main__; sys.exit(bool({'grpc', 'torch', 'ktrdr'} & set(sys.modules)))"
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [(["--slots", "0"], 2, "slots"), (["--host", "203.0.113.7"], 3, "choose another --host or --port")],
)
def test_a_start_that_cannot_work_says_why_in_one_sentence(
    tmp_path: Path, flags: list[str], status: int, text: str
) -> None:
    done = run("-m", "trainer_service", "--port", "0", "--data-dir", str(tmp_path), "--log-level", "ERROR", *flags)

    assert done.returncode == status
    assert done.stdout == ""
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("is_same_process", [True, False], ids=["its worker", "a later owner of the pid"])
def test_a_worker_that_outlived_its_trainer_is_killed_and_nothing_else(tmp_path: Path, is_same_process: bool) -> None:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        worker = WorkerProcess.of(left.pid)
        assert worker is not None
        order = SessionOrder(
            session_id="s1",
            training_id="",
            attempt=1,
            spec=TrainingSpec(strategy_yaml="name: x"),
            upload_target="",
            create_time=utc_now(),
        )
        journal = Journal.create(tmp_path / "s1", order)
        journal.append_worker(worker if is_same_process else replace(worker, start_ticks=worker.start_ticks - 1))
        journal.close()

        (session,) = asyncio.run(load_sessions(tmp_path))

        assert session.session_id == "s1"
        assert is_alive(left.pid) != is_same_process
    finally:
        left.kill()
        left.wait()
