"""docs/data.md against the program: its commands work, its options and its findings are those there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from ktrdr_client.cli.app import app, run

from tests.kit.cli import ROOT
from tests.kit.documents import fenced_blocks

PAGE = ROOT / "docs" / "data.md"


def test_commands_of_the_page_work_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KTRDR_BARS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    lines = [line for blocks in fenced_blocks(PAGE).values() for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "ktrdr"
        assert run(words[1:]) == 0, capsys.readouterr().err
    assert [path.name for path in (tmp_path / "bars").iterdir() if not path.name.startswith(".")] == ["EURUSD_1h"]


def test_every_option_of_an_import_stands_on_the_page() -> None:
    command = typer.main.get_command(app).commands["data"].commands["import"]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    text = PAGE.read_text()
    assert not [option for option in options - {"--help"} if option not in text]


def test_every_finding_stands_on_the_page() -> None:
    names = set(
        re.findall(
            r"[a-z_]+", (ROOT / "ktrdr_core" / "data" / "quality.py").read_text().split("kind: ")[1].split(".")[0]
        )
    )
    named = {name for name in names if f"`{name}`" in PAGE.read_text()}
    assert {"gap", "clock_jump", "duplicate_time", "zero_volume"} <= named
    assert not names - named - {"stable", "name", "table"}
