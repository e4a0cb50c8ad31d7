"""Reads the fenced blocks of a document, so that a test can run what people are told to type."""

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
