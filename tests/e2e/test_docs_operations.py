"""docs/operations.md against the program: its services start with their flags, its settings are those there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from backend_service.__main__ import parse_flags as parse_backend_flags
from backend_service.settings import BackendSettings
from tests.kit.cli import ROOT
from tests.kit.documents import fenced_blocks, tables
from trainer_service.__main__ import parse_flags as parse_trainer_flags
from trainer_service.settings import TrainerSettings

PAGE = ROOT / "docs" / "operations.md"
SERVICES = {"backend": (parse_backend_flags, BackendSettings), "trainer": (parse_trainer_flags, TrainerSettings)}
FlagsParser = Callable[[list[str]], dict[str, Any]]


def test_services_of_the_page_take_their_flags() -> None:
    """They are for other hosts, so nothing is started; the commands beside them are run in test_docs_commands.py."""
    (block,) = fenced_blocks(PAGE)["Trainers"]
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    assert len(lines) == 3
    for line in lines:
        program, service, verb, *flags = shlex.split(line)
        assert (program, verb) == ("ktrdr", "serve")
        parse_flags, settings_class = SERVICES[service]
        assert settings_class(**parse_flags(flags)).advertise_address, line


def _rows(heading: str) -> list[tuple[list[str], list[str], list[str]]]:
    """Return the names, the flags and the defaults of each row."""
    (table,) = tables(PAGE)[heading]
    return [
        (re.findall(r"`([^`]+)`", names), re.findall(r"`([^`]+)`", flags), defaults.split(", "))
        for names, flags, defaults, _ in table[1:]
    ]


def _variables(settings_class: type[BaseSettings]) -> dict[str, str]:
    """Return the variable of each field."""
    found = {}
    for name, field in settings_class.model_fields.items():
        prefix = settings_class.model_config["env_prefix"]
        variable = f"{prefix}{name.upper()}"
        aliases = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else [variable]
        assert variable in aliases
        found[variable] = name
    return found


@pytest.mark.parametrize(
    ("heading", "settings_class"), [("Of the backend", BackendSettings), ("Of a trainer", TrainerSettings)]
)
def test_every_setting_stands_in_the_table_with_its_default(heading: str, settings_class: type[BaseSettings]) -> None:
    rows = _rows(heading)
    variables = _variables(settings_class)
    assert sorted(name for names, _, _ in rows for name in names) == sorted(variables)
    for names, _, defaults in rows:
        for name, told in zip(names, defaults, strict=True):
            default = settings_class.model_fields[variables[name]].default
            if told not in ("where it listens", "auto"):  # words for a default that is decided elsewhere
                assert told == _told(default), name


def _told(default: Any) -> str:
    """Return a default as the page writes it."""
    match default:
        case None | () | "":
            return ""
        case bool():
            return str(default).lower()
        case int() if default >= 1 << 30:
            return f"{default >> 30} GiB"
        case int() | float():
            return f"{default:.0f}"
        case Path() | str():
            return str(default)
    raise AssertionError(default)


@pytest.mark.parametrize(
    ("heading", "parse_flags"), [("Of the backend", parse_backend_flags), ("Of a trainer", parse_trainer_flags)]
)
def test_every_flag_stands_in_the_table(
    heading: str, parse_flags: FlagsParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_flags(["--help"])
    flags = set(re.findall(r"^ +(?:-h, )?(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {"--help"}
    assert {flag for _, flags_told, _ in _rows(heading) for flag in flags_told} == flags


def test_shared_variables_of_the_page_are_those_that_a_trainer_takes() -> None:
    (paragraph,) = [text for text in PAGE.read_text().split("\n\n") if "variable without" in text]
    shared = {
        name.upper()
        for name, field in TrainerSettings.model_fields.items()
        if isinstance(field.validation_alias, AliasChoices)
        and f"KTRDR_{name.upper()}" in field.validation_alias.choices
    }
    assert set(re.findall(r"`([A-Z_]+[A-Z])`", paragraph)) == shared
