"""The fork server: what it warms, what it says when it cannot, and what happens when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ktrdr_core.errors import InternalError, InvalidBarsError, WorkerDiedError
from ktrdr_core.execution.child import run_in_child
from ktrdr_core.execution.devices import probe_devices
from ktrdr_core.execution.fork_server import is_training_available
from ktrdr_core.execution.process_engine import ProcessEngine
from tests.kit.engine import cold_environment
from tests.kit.eventually import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


async def test_the_fork_server_is_warm_once_warm_up_returns() -> None:
    await ProcessEngine(1).warm_up()


def test_a_warm_up_that_fails_is_seen_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "talib.py").write_text("raise ImportError('no TA-Lib on this machine')\n")
    done = python(
        "import asyncio\n"
        "from ktrdr_core.errors import InternalError\n"
        "from ktrdr_core.execution.child import run_in_child\n"
        "from ktrdr_core.execution.process_engine import ProcessEngine\n"
        "import os\n"
        "async def main():\n"
        "    try:\n"
        "        await ProcessEngine(1).warm_up()\n"
        "    except InternalError as error:\n"
        "        print(error)\n"
        "    print(await run_in_child(os.getppid, timeout_s=100) > 0)\n"
        "asyncio.run(main())\n",
        PYTHONPATH=str(tmp_path),
    )
    assert "no TA-Lib on this machine" in done.stdout
    assert done.stdout.endswith("True\n")
    assert "Traceback" in done.stderr


def test_without_torch_an_engine_says_what_to_install(tmp_path: Path) -> None:
    done = python(
        "import sys; sys.modules['torch'] = None\n"
        "import asyncio\n"
        "from pathlib import Path\n"
        "from ktrdr_core.errors import ExecutionModeError\n"
        "from ktrdr_core.execution.process_engine import ProcessEngine\n"
        "from ktrdr_core.execution.devices import probe_devices\n"
        "from tests.kit.engine import build_job\n"
        "async def main():\n"
        "    print(await probe_devices())\n"
        "    try:\n"
        f"        await ProcessEngine(1).start(build_job(Path({str(tmp_path)!r})))\n"
        "    except ExecutionModeError as error:\n"
        "        print(error)\n"
        "asyncio.run(main())\n"
    )
    assert done.stdout.splitlines() == [
        "[]",
        "torch is not installed here, so this machine cannot train; install it with: pip install 'ktrdr[train]'",
    ], done.stderr


def test_asking_whether_training_is_available_does_not_load_torch() -> None:
    done = python(
        "import sys; from ktrdr_core.execution.process_engine import ProcessEngine\n"
        "from ktrdr_core.execution.fork_server import is_training_available\n"
        "print(is_training_available(), 'torch' in sys.modules, 'grpc' in sys.modules)"
    )
    assert done.stdout == "None False False\n", done.stderr
    assert is_training_available() is None


def test_the_death_of_the_fork_server_fails_its_sessions_and_the_next_one_starts(tmp_path: Path) -> None:
    done = python(
        "import asyncio, os, signal\n"
        "from pathlib import Path\n"
        "from ktrdr_core.execution.process_engine import ProcessEngine\n"
        "from ktrdr_core.execution.process_group import has_live_member\n"
        "from tests.kit import engine as kit\n"
        "async def main():\n"
        "    engine = ProcessEngine(1, runner=kit.ignore_token)\n"
        f"    session = await engine.start(kit.build_job(Path({str(tmp_path)!r})))\n"
        "    stat = Path(f'/proc/{session.pid}/stat').read_text()\n"
        "    os.kill(int(stat.rpartition(')')[2].split()[1]), signal.SIGKILL)\n"
        "    outcome = await asyncio.wait_for(session.wait(), timeout=100)\n"
        "    print(outcome.state, outcome.error_reason, has_live_member(session.pid))\n"
        f"    following = await engine.start(kit.build_job(Path({str(tmp_path)!r})))\n"
        "    print((await following.cancel()).state)\n"
        "asyncio.run(main())\n",
        **cold_environment(tmp_path),
    )
    assert done.stdout == "FAILED WORKER_DIED False\nCANCELLED\n", done.stderr


async def test_devices_are_asked_for_in_a_child() -> None:
    devices = await probe_devices()
    assert devices
    assert devices[-1].name


def refuse_row(row: int) -> None:
    raise InvalidBarsError(f"row {row} has high below low", field="bars[7]")


def fail_badly() -> None:
    raise RuntimeError("secret detail")


async def test_a_child_brings_its_answer_back() -> None:
    assert await run_in_child(sum, [1, 2, 3], timeout_s=PATIENCE_S) == 6
    assert await run_in_child(os.getpid, timeout_s=PATIENCE_S) != os.getpid()
    assert len(await run_in_child(bytes, 1_000_000, timeout_s=PATIENCE_S)) == 1_000_000


async def test_a_child_brings_its_error_back() -> None:
    with pytest.raises(InvalidBarsError, match="row 7") as caught:
        await run_in_child(refuse_row, 7, timeout_s=PATIENCE_S)
    assert caught.value.violations[0].field == "bars[7]"
    with pytest.raises(InternalError) as internal:
        await run_in_child(fail_badly, timeout_s=PATIENCE_S)
    assert "secret detail" not in str(internal.value)


async def test_a_child_that_takes_too_long_or_dies_is_said_to_have_died() -> None:
    with pytest.raises(WorkerDiedError, match=r"the limit is 0\.2 s"):
        await run_in_child(signal.pause, timeout_s=0.2)
    with pytest.raises(WorkerDiedError, match=r"did not begin in its process \(the limit is 0 s\)"):
        await run_in_child(signal.pause, timeout_s=0.0)
    with pytest.raises(WorkerDiedError, match="SIGKILL"):
        await run_in_child(signal.raise_signal, signal.SIGKILL, timeout_s=PATIENCE_S)


async def test_giving_up_a_child_ends_it(tmp_path: Path) -> None:
    call = asyncio.create_task(run_in_child(signal.pause, timeout_s=PATIENCE_S))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, timeout=PATIENCE_S)
