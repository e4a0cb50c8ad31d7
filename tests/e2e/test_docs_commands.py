"""The documents against the program: what they tell people to type works, and everything there is stands in them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ktrdr_client import model_types, types
from ktrdr_client.cli.app import app
from ktrdr_client.cli.checks import Check
from ktrdr_client.cli.exit_codes import ExitCode

from ktrdr_core.domain import progress
from ktrdr_core.domain.scheduling import Scheduling
from ktrdr_core.storage.stored_model import Lineage
from tests.kit.cli import ROOT, Cli, embedded_cli
from tests.kit.documents import fenced_blocks, last_names
from tests.kit.eventually import PATIENCE_S

CLI_PAGE = ROOT / "docs" / "cli.md"
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")})


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with embedded_cli(tmp_path_factory.mktemp("docs") / "state") as cli:
        yield cli


def test_first_session_of_the_page_works_line_by_line(cli: Cli) -> None:
    (block,) = fenced_blocks(CLI_PAGE)["A first session"]
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[0] == "ktrdr"
        ran = cli.run(*words[1:])
        assert ran.code == 0, f"{line}\n{ran.out}{ran.err}"


def test_commands_of_the_strategies_page_work_line_by_line(cli: Cli) -> None:
    ((block,),) = fenced_blocks(ROOT / "docs" / "strategies.md").values()
    for line in block.splitlines():
        ran = cli.run(*shlex.split(line)[1:])
        assert ran.code == 0, f"{line}\n{ran.out}{ran.err}"


def test_commands_of_the_operations_page_work_line_by_line(cli: Cli) -> None:
    blocks = fenced_blocks(ROOT / "docs" / "operations.md")
    blocks.pop("Trainers")  # services on other hosts: see test_docs_operations.py
    ((block,),) = blocks.values()
    for line in block.splitlines():
        ran = cli.run(*shlex.split(line)[1:])
        assert ran.code == 0, f"{line}\n{ran.out}{ran.err}"


def test_client_example_trains_and_prints_the_test_metrics(cli: Cli) -> None:
    cli.run("config", "get")
    ran = subprocess.run(
        [sys.executable, "examples/train_and_watch.py", cli.embedded["backend"]],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "EpochDetail(epoch=3" in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("COMPLETED {'loss'")
    assert "majority_baseline_accuracy" in ran.stdout


def test_client_example_is_ten_lines() -> None:
    code = (ROOT / "examples" / "train_and_watch.py").read_text().splitlines()[1:]
    assert sum(bool(line.strip()) for line in code) <= 10


def _commands() -> Iterator[tuple[str, set[str]]]:
    """Yield each command's words and its options."""

    def walk(command: Any, words: str) -> Iterator[tuple[str, set[str]]]:
        options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
        yield words, options - {"--help"}
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{words} {name}")

    yield from walk(typer.main.get_command(app), "ktrdr")


COMMANDS = dict(_commands())
GROUPS = {words for words in COMMANDS if any(other.startswith(f"{words} ") for other in COMMANDS)}


@pytest.mark.parametrize("words", sorted(set(COMMANDS) - GROUPS))
def test_every_command_stands_on_the_page(words: str) -> None:
    assert re.search(rf"`{words}[ `]", CLI_PAGE.read_text()), f"{words} is not in docs/cli.md"


@pytest.mark.parametrize("words", ["ktrdr", "ktrdr train", "ktrdr cancel", "ktrdr show"])
def test_every_option_of_these_commands_and_every_global_one_stands_on_the_page(words: str) -> None:
    text = CLI_PAGE.read_text()
    assert not [option for option in COMMANDS[words] if f"`{option}" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_told_in_a_page_exists_with_its_options(page: Path) -> None:
    joined = [block.replace("\\\n", " ") for blocks in fenced_blocks(page).values() for block in blocks]
    blocks = [line for block in joined for line in block.splitlines()]
    inline = re.findall(r"`(ktrdr [^`]+)`", page.read_text())
    for line in [*(line for line in blocks if line.startswith("ktrdr ")), *inline]:
        words = shlex.split(line.split("&&")[0].split("#")[0].replace("\\|", "|"))
        known, path = COMMANDS["ktrdr"], "ktrdr"
        skip_value = False
        for word in words[1:]:
            if word.startswith("--"):
                option = word.split("=")[0]
                passes_through = path in ("ktrdr backend serve", "ktrdr trainer serve")
                assert option in known or option == "--help" or passes_through, f"{page.name}: {line}: no {word}"
                skip_value = path == "ktrdr" and option in ("--backend", "--data-dir") and "=" not in word
            elif skip_value:
                skip_value = False
            elif path in GROUPS:
                assert f"{path} {word}" in COMMANDS or word == "COMMAND", f"{page.name}: {line}: no command {word}"
                path = f"{path} {word}"
                known = COMMANDS.get(path, set())


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "data" / "README.md"], ids=lambda page: f"{page.parent.name}/{page.name}"
)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_exit_code_stands_on_the_page() -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", CLI_PAGE.read_text(), re.MULTILINE)}
    assert rows == {int(code) for code in ExitCode}


def _row(first: str) -> list[str]:
    return last_names(CLI_PAGE, first)


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("training", types.Training),
        ("model", model_types.Model),
        ("lineage", Lineage),
        ("files", model_types.ModelFile),
        ("sessions", types.SessionRef),
        ("queue", types.QueueStatus),
        ("scheduling", Scheduling),
        ("trainer", types.TrainerStatus),
        ("check", Check),
        ("config", types.BackendConfig),
        ("config_change", types.ModeChange),
        ("strategy", types.Strategy),
        ("state", progress.StateDetail),
        ("step", progress.StepDetail),
        ("epoch", progress.EpochDetail),
        ("batch", progress.BatchDetail),
        ("warning", progress.WarningDetail),
    ],
)
def test_json_fields_on_the_page_are_those_that_are_printed(kind: str, cls: Any) -> None:
    assert _row(kind) == [field.name for field in fields(cls)]


def test_json_fields_of_a_prediction_are_those_that_are_printed(cli: Cli) -> None:
    assert cli.run("train", "strategies/neuro_mean_reversion.yaml", "--epochs", "1").code == 0
    ran = cli.run("models", "predict", "neuro_mean_reversion", "--start", "2017-12-29", "--end", "2017-12-29", "--json")
    assert [list(line) for line in ran.lines] == [["type", *_row("prediction")]] * len(ran.lines)
    assert ran.lines
