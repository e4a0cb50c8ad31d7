"""The benchmarks that train through the services still do: a figure that cannot be taken again is worth nothing."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.kit.builders import REPOSITORY

LIMIT_S = 300.0
END_S = 30.0


@pytest.mark.parametrize("name", ["cancel_latency", "cancel_by_state", "service_start", "bars_to_trainer"])
def test_benchmark_runs_to_its_table(name: str) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", name]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it ends its services
            said, _ = process.communicate(timeout=END_S)
            raise AssertionError(f"no table after {LIMIT_S:g} s: {said}") from None
    assert process.returncode == 0, said
    assert "ktrdr benchmarks" in said
