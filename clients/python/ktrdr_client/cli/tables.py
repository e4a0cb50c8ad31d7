"""Tables and key-value lists, in one style. Nothing is ever cut or wrapped: a cut id is of no use."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from ktrdr_client.cli.session import CliSession

_GAP = "   "


def say_table(session: CliSession, columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print rows under dim headings, or `empty` if there are none."""
    if not rows:
        session.say(empty)
        return
    widths = [max(cell_len(line[index]) for line in (columns, *rows)) for index in range(len(columns))]
    for number, line in enumerate((columns, *rows)):
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        session.out.print(Text(_GAP.join(cells).rstrip(), style="dim" if number == 0 else ""))


def say_fields(session: CliSession, fields: dict[str, str], *, indent: int = 0) -> None:
    """Print one line for each field that has a value."""
    width = max(len(key) for key in fields) + 2
    for key, value in fields.items():
        if value:
            session.out.print(Text.assemble((f"{' ' * indent}{key:<{width}}", "dim"), value))
