"""Arguments that several commands take, and how a command reaches its session."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from ktrdr_client.cli.session import CliSession

FLAG = ""  # else help shows <bool>, as if the option took a value

TrainingId = Annotated[str, typer.Argument(metavar="ID", help="Id of the training, or its first characters.")]
Json = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print one JSON object a line.")]
StartDate = Annotated[str | None, typer.Option("--start", metavar="DATE", help="First day, YYYY-MM-DD, UTC.")]
EndDate = Annotated[str | None, typer.Option("--end", metavar="DATE", help="Last day, YYYY-MM-DD, UTC.")]


def go(work: Coroutine[Any, Any, int | None]) -> int:
    import asyncio

    return int(asyncio.run(work) or 0)


def session_of(context: typer.Context, *, is_json: bool = False) -> CliSession:
    session: CliSession = context.obj
    session.is_json = is_json
    return session
