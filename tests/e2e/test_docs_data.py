"""docs/data.md against the program: its commands work, its options and its findings are those there are."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from ktrdr_client.cli.app import app
from ktrdr_client.cli.run import run

from ktrdr_core.data.files import load_bars
from tests.kit.builders import make_bars
from tests.kit.cli import ROOT
from tests.kit.documents import fenced_blocks
from tests.kit.market import running_market
from tests.kit.series_files import bars_parquet

PAGE = ROOT / "docs" / "data.md"
REMOTE = "The bars of a backend elsewhere"


def test_commands_of_the_page_work_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KTRDR_BARS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    blocks = fenced_blocks(PAGE)
    assert set(blocks) == {"Import, list, check", REMOTE}
    lines = commands(blocks["Import, list, check"])
    assert len(lines) == 4
    for words in lines:
        assert run(words) == 0, capsys.readouterr().err
    assert [path.name for path in (tmp_path / "bars").iterdir() if not path.name.startswith(".")] == ["EURUSD_1h"]


async def test_commands_for_a_backend_elsewhere_work_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    async with running_market(tmp_path / "backend") as market:
        monkeypatch.setenv("KTRDR_BACKEND", market.address)
        lines = commands(fenced_blocks(PAGE)[REMOTE])
        assert len(lines) == 3
        for words in lines:
            assert await asyncio.to_thread(run, words) == 0, capsys.readouterr().err
    june = load_bars(tmp_path / "june.parquet", symbol="EURUSD", timeframe="1h")
    assert (str(june.first_day), str(june.last_day)) == ("2017-06-01", "2017-06-30")


async def test_python_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EURUSD_1h.parquet").write_bytes(bars_parquet(make_bars(100)))
    ((block,),) = fenced_blocks(PAGE, "python").values()
    async with running_market(tmp_path / "backend") as market:
        code = block.replace("127.0.0.1:50051", market.address)
        assert code != block
        await asyncio.to_thread(exec, code, {})
    assert len(load_bars(tmp_path / "all.parquet", symbol="EURUSD", timeframe="1h")) == 100


def commands(blocks: list[str]) -> list[list[str]]:
    """Return the words after `ktrdr` of each line."""
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert all(words[0] == "ktrdr" for words in lines)
    return [words[1:] for words in lines]


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
