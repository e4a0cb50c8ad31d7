"""Life and death of the embedded backend and of `ktrdr up`."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.kit.cli import Cli, wait_until_gone


@dataclass(frozen=True)
class ShortLived(Cli):
    """A command whose embedded backend ends after a second without work."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "KTRDR_EMBEDDED_IDLE_S": "1"}


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
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    wait_until_gone(services)
