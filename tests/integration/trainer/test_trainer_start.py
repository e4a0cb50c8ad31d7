"""How the trainer's process starts, and how it refuses to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.eventually import PATIENCE_S
from tests.kit.trainer_process import ROOT


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


def test_the_entry_point_knows_no_grpc_before_the_fork_server_runs() -> None:
    done = run(
        "-c", "import sys, trainer_service.__main__; sys.exit(bool({'grpc', 'torch', 'ktrdr'} & set(sys.modules)))"
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        (["--slots", "0"], 2, "slots"),
        (["--backend", "here"], 2, "host:port"),
        (["--host", "0.0.0.0", "--backend", "a:1"], 2, "--advertise-address"),  # noqa: S104  refused
        (["--host", "203.0.113.7"], 2, "--insecure"),
        (["--host", "203.0.113.7", "--insecure"], 3, "choose another --host or --port"),
        (["--token-file", "nowhere.json"], 3, "nowhere.json cannot be read"),
        (["--tls-cert", "nowhere.crt", "--tls-key", "nowhere.key"], 3, "nowhere.crt cannot be read"),
    ],
)
def test_a_start_that_cannot_work_says_why_in_one_sentence(
    tmp_path: Path, flags: list[str], status: int, text: str
) -> None:
    done = run("-m", "trainer_service", "--port", "0", "--data-dir", str(tmp_path), "--log-level", "ERROR", *flags)

    assert done.returncode == status
    assert done.stdout == ""
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_without_a_disk_to_write_to_says_so_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "trainer").write_text("a file where the directory should be")

    done = run("-m", "trainer_service", "--port", "0", "--data-dir", str(tmp_path), "--log-level", "ERROR")

    assert done.returncode == 3
    assert f"the trainer cannot use {tmp_path / 'trainer'}" in done.stderr
    assert "Traceback" not in done.stderr
