"""docs/models.md against the program: its commands work line by line, its options and fields are those there are."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main
from ktrdr_client.cli.app import app

from ktrdr_core.storage.stored_model import Lineage
from tests.kit.cli import ROOT, Cli, Ran, embedded_cli
from tests.kit.documents import fenced_blocks, tables
from tests.kit.eventually import PATIENCE_S

PAGE = ROOT / "docs" / "models.md"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with embedded_cli(tmp_path_factory.mktemp("models") / "state") as cli:
        yield cli


@pytest.fixture(scope="module")
def ran(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """How each line of the page ended, typed in one directory, in order."""
    here = tmp_path_factory.mktemp("here")
    for name in ("data", "strategies"):
        (here / name).symlink_to(ROOT / name)
    ended = {}
    for line in (line for blocks in fenced_blocks(PAGE).values() for block in blocks for line in block.splitlines()):
        with cli.start(*shlex.split(line)[1:], cwd=here) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        ended[line] = Ran(process.returncode, out, err)
        assert process.returncode == 0, f"{line}\n{out}{err}"
    return ended


def _only(ran: dict[str, Ran], words: str) -> Ran:
    (found,) = [each for line, each in ran.items() if words in line]
    return found


def test_commands_of_the_page_do_what_it_says(ran: dict[str, Ran]) -> None:
    assert all(line.startswith("ktrdr ") for line in ran)
    assert _only(ran, "models alias").out == (
        "neuro_mean_reversion/EURUSD_1h_champion is neuro_mean_reversion/EURUSD_1h_v1\n"
    )
    assert "neuro_mean_reversion/EURUSD_1h_v1 is in champion: " in _only(ran, "models pull").out
    assert "champion is stored as neuro_mean_reversion/EURUSD_1h_v3" in _only(ran, "models import").out
    assert [line["version"] for line in _only(ran, "--alias champion").lines] == [1]
    assert "neuro_mean_reversion/EURUSD_1h_v2" in _only(ran, "models gc").out
    assert "deleted neuro_mean_reversion/EURUSD_1h_v3" in _only(ran, "models delete").out


def test_lineage_of_a_trained_model_is_complete(ran: dict[str, Ran]) -> None:
    """So that the page's promise holds for what a training really writes."""
    (model,) = _only(ran, "--alias champion").lines
    lineage = model["lineage"]
    (series,) = lineage["series"]
    assert (series["symbol"], series["timeframe"], len(series["digest"])) == ("EURUSD", "1h", 64)
    assert series["num_bars"] > 1_000
    assert len(lineage["strategy_digest"]) == 64
    assert lineage["seed"] == 42
    assert lineage["start_date"] < lineage["end_date"]
    assert lineage["code_version"]
    assert lineage["data_mode"] == "backend"
    assert lineage["parent_checkpoint"] is None


def test_models_are_found_by_the_bars_they_were_trained_on(cli: Cli, ran: dict[str, Ran]) -> None:
    digest = _only(ran, "--alias champion").lines[0]["lineage"]["series"][0]["digest"]
    found = cli.run("models", "list", "--series-digest", digest, "--json")
    assert {line["version"] for line in found.lines} >= {1, 2}
    assert cli.run("models", "list", "--series-digest", "0" * 64, "--json").lines == []


def test_python_of_the_page_pulls_the_best_model(cli: Cli, ran: dict[str, Ran], tmp_path: Path) -> None:
    ((code,),) = fenced_blocks(PAGE, "python").values()
    assert "127.0.0.1:50051" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:50051", cli.embedded["backend"])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("neuro_mean_reversion/EURUSD_1h_v")
    assert len(set(last.split()[::2][:2])) == 1, last
    assert (tmp_path / "best" / "model.safetensors").is_file()


def test_pulled_directory_has_no_parts_left(ran: dict[str, Ran], cli: Cli, tmp_path: Path) -> None:
    with cli.start("models", "pull", "neuro_mean_reversion", "--to", str(tmp_path / "m"), "--json") as process:
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert {file["name"] for file in json.loads(out)["files"]} == {path.name for path in (tmp_path / "m").iterdir()}


def test_every_field_of_a_lineage_stands_on_the_page() -> None:
    (table,) = tables(PAGE)["Where a model comes from"]
    named = {name.strip("` ") for row in table[1:] for name in row[0].split(",")}
    assert named == {field.name for field in fields(Lineage)}


@pytest.mark.parametrize("command", ["list", "pull", "alias", "delete", "gc"])
def test_every_option_of_these_commands_stands_on_the_page(command: str) -> None:
    parameters = typer.main.get_command(app).commands["models"].commands[command].params  # type: ignore[attr-defined]
    options = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    text = PAGE.read_text()
    assert not [option for option in options - {"--help", "--json", "--limit"} if option not in text]
