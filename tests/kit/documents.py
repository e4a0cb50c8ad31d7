"""Reads the fenced blocks and the tables of a document, so that a test can hold them against the program."""

from __future__ import annotations

import re
from pathlib import Path

_HEADING = re.compile(r"^#+\s+(.*)$")


def fenced_blocks(path: Path, language: str = "sh") -> dict[str, list[str]]:
    """Return the blocks of one language under the heading they stand below."""
    found: dict[str, list[str]] = {}
    heading = ""
    block: list[str] | None = None
    for line in path.read_text().splitlines():
        if block is not None:
            if line.startswith("```"):
                found.setdefault(heading, []).append("\n".join(block))
                block = None
            else:
                block.append(line)
        elif line == f"```{language}":
            block = []
        elif match := _HEADING.match(line):
            heading = match.group(1)
    return found


def last_names(path: Path, first: str) -> list[str]:
    """Return the names in the last column of the one table row that begins with a word."""
    (row,) = re.findall(rf"^\| `{first}`[ ,].*$", path.read_text(), re.MULTILINE)
    return str(re.findall(r"`([^`]*)`", row)[-1]).split(", ")


def tables(path: Path) -> dict[str, list[list[list[str]]]]:
    """Return the cells of the tables under the heading they stand below, the title row first."""
    found: dict[str, list[list[list[str]]]] = {}
    heading, is_inside = "", False
    for line in path.read_text().splitlines():
        if match := _HEADING.match(line):
            heading = match.group(1)
        if not line.startswith("|"):
            is_inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not is_inside:
            found.setdefault(heading, []).append([])
        is_inside = True
        if set("".join(cells)) != {"-"}:
            found[heading][-1].append(cells)
    return found
