"""The warm-up beside the start of a service: a failure is logged, and no stop waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.kit.builders import REPOSITORY
from tests.kit.engine import cold_environment
from tests.kit.eventually import PATIENCE_S

SERVICES = ["trainer_service", "backend_service"]


def start(module: str, directory: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    flags = ["--port", "0", "--data-dir", str(directory / "state"), "--bars-dir", str(REPOSITORY / "data")]
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("module", SERVICES)
def test_a_service_ends_in_the_middle_of_a_warm_up_that_never_does(tmp_path: Path, module: str) -> None:
    modules = tmp_path / "endless"
    modules.mkdir()
    (modules / "torch.py").write_text("import time\ntime.sleep(3_600)\n")  # only the fork server imports it
    with start(module, tmp_path, {**os.environ, "PYTHONPATH": str(modules)}) as service:
        assert service.stdout is not None
        assert "listening on" in service.stdout.readline()
        service.send_signal(signal.SIGTERM)
        try:
            _, log = service.communicate(timeout=PATIENCE_S)
        finally:
            service.kill()
    assert service.returncode == 0, log
    assert "Traceback" not in log


@pytest.mark.parametrize("module", SERVICES)
def test_a_warm_up_that_fails_is_logged_and_the_service_goes_on(tmp_path: Path, module: str) -> None:
    with start(module, tmp_path, cold_environment(tmp_path)) as service:
        limit = threading.Timer(PATIENCE_S, service.kill)
        limit.start()
        assert service.stderr is not None
        lines = iter(service.stderr.readline, "")
        found = next((line for line in lines if "Trainings may fail or start slowly here" in line), "")
        assert service.poll() is None
        service.terminate()
        service.communicate()
        limit.cancel()
    assert "this fork server stays cold" in found
    assert service.returncode == 0
