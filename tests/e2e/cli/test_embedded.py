"""Life and death of the embedded backend and of `ktrdr up`."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.kit.cli import ROOT, STRATEGY, Cli, wait_until_gone
from tests.kit.eventually import PATIENCE_S


@dataclass(frozen=True)
class ShortLived(Cli):
    """A command whose embedded backend ends after a second without work."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "KTRDR_EMBEDDED_IDLE_S": "4"}


@dataclass(frozen=True)
class Elsewhere(Cli):
    """A command that is typed in a directory of its own, beside its data directory."""

    @property
    def here(self) -> Path:
        return self.data_dir.parent / "elsewhere"

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return super().start(*arguments, cwd=self.here, **options)


def test_killed_embedded_backend_leaves_no_process_and_is_started_anew_until_idle(tmp_path: Path) -> None:
    cli = ShortLived(tmp_path / "state")
    try:
        assert cli.run("config", "get").code == 0
        first = cli.embedded["pid"]
        services = [child.pid for child in psutil.Process(first).children()]
        assert len(services) == 2
        os.kill(first, signal.SIGKILL)
        wait_until_gone([first, *services])
        # Its file is still there, with the pid of a dead process.
        assert cli.embedded["pid"] == first
        again = cli.run("config", "get")
        assert again.code == 0, again.err
        assert "starting an embedded backend" in again.err
        second = cli.embedded["pid"]
        assert second != first
        wait_until_gone([second])
        assert not (cli.data_dir / "embedded.json").exists()
    finally:
        cli.end_embedded()


def test_embedded_backend_that_cannot_start_says_why(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    ran = Cli(blocked).run("list")
    assert ran.code == 5
    assert "--data-dir" in ran.err
    assert "starting" in ran.err.splitlines()[0]


def test_up_prints_both_addresses_and_ends_both_on_ctrl_c(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "state")
    with cli.start("up", "--port", "0", "--trainer-port", "0") as process:
        assert process.stdout is not None
        trainer, backend = (process.stdout.readline().split() for _ in range(2))
        assert (trainer[0], backend[0]) == ("trainer", "backend")
        services = [child.pid for child in psutil.Process(process.pid).children()]
        trainers = cli.run("--backend", backend[1], "trainers", "--json")
        assert [line["address"] for line in trainers.lines] == [trainer[1]]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    wait_until_gone(services)


@pytest.mark.parametrize("service", ["backend", "trainer"])
def test_serve_becomes_the_service_says_where_it_listens_and_ends_on_sigterm(tmp_path: Path, service: str) -> None:
    cli = Cli(tmp_path / "state")
    with cli.start(service, "serve", "--port", "0", "--log-level", "WARNING") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"ktrdr-{service} listening on 127.0.0.1:"), process.communicate()
        # Replaced, not started beside: signals and exit codes are the service's own.
        assert f"{service}_service" in psutil.Process(process.pid).cmdline()
        if service == "backend":
            assert cli.run("--backend", line.split()[-1], "list", "--json").code == 0
        assert any(cli.data_dir.rglob("*.lock"))  # --data-dir is handed on
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


@pytest.mark.parametrize("service", ["backend", "trainer"])
def test_serve_with_a_wrong_flag_is_one_sentence(tmp_path: Path, service: str) -> None:
    ran = Cli(tmp_path / "state").run(service, "serve", "--port", "x")
    assert ran.code == 2
    assert "port" in ran.err
    assert "Traceback" not in ran.err


def test_first_run_without_bars_says_where_to_put_them(tmp_path: Path) -> None:
    """In a directory with a strategy file and nothing else."""
    cli = Elsewhere(tmp_path / "state")
    cli.here.mkdir()
    (cli.here / "mine.yaml").write_text((ROOT / STRATEGY).read_text())
    try:
        ran = cli.run("train", "mine.yaml")
    finally:
        cli.end_embedded()
    assert ran.code == 2
    assert f"no bars for EURUSD 1h in {cli.here / 'data'}" in ran.err
    assert "put a file such as EURUSD_1h.csv there" in ran.err
    assert "Traceback" not in ran.err
    assert [path.name for path in cli.here.iterdir()] == ["mine.yaml"]
