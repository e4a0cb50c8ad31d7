"""`ktrdr trainers`: the commands, their arguments and help."""

from __future__ import annotations

from typing import Annotated

import typer

from ktrdr_client.cli.options import Json, go, session_of

trainers_app = typer.Typer(invoke_without_command=True)

Trainer = Annotated[
    str, typer.Argument(metavar="TRAINER", help="Address of the trainer, or its id or the first characters of it.")
]


@trainers_app.callback()
def trainers(context: typer.Context, as_json: Json = False) -> int:
    """List the trainers the backend knows, with their health; drain and undrain one."""
    if context.invoked_subcommand is not None:
        return 0
    from ktrdr_client.cli.trainer_commands import trainers as body

    return go(body(session_of(context, is_json=as_json)))


@trainers_app.command(name="drain")
def drain(context: typer.Context, trainer: Trainer, as_json: Json = False) -> int:
    """Let a trainer get no new sessions; those it has go on. Kept across restarts of the backend."""
    from ktrdr_client.cli.trainer_commands import set_draining as body

    return go(body(session_of(context, is_json=as_json), trainer, is_draining=True))


@trainers_app.command(name="undrain")
def undrain(context: typer.Context, trainer: Trainer, as_json: Json = False) -> int:
    """Let a trainer get sessions again."""
    from ktrdr_client.cli.trainer_commands import set_draining as body

    return go(body(session_of(context, is_json=as_json), trainer, is_draining=False))
