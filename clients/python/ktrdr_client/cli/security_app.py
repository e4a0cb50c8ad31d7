"""`ktrdr security`: arguments and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ktrdr_client.cli.options import FLAG, Json, session_of

security_app = typer.Typer(help="Certificates and tokens of the services.", no_args_is_help=True)
token_app = typer.Typer(help="The table of tokens that services know.", no_args_is_help=True)
security_app.add_typer(token_app, name="token")

Directory = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="Where the files are. Default: security in --data-dir.")
]
Table = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Table of the services. Default: security/tokens.json in --data-dir."),
]


@security_app.command()
def init(
    context: typer.Context,
    directory: Directory = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME_OR_IP", help="A name or address the services are called by; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long the certificates are valid, 1 to 825.")] = 365,
    renew: Annotated[
        bool, typer.Option("--renew", metavar=FLAG, help="New certificates of the same CA; tokens stay.")
    ] = False,
) -> int:
    """Make a CA, certificates and tokens for a backend and its trainers."""
    from ktrdr_client.cli.security_commands import init as body

    return body(session_of(context), directory, hosts=hosts or (), days=days, is_renewal=renew)


@token_app.command(name="add")
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; their trainings are this user's.")],
    scopes: Annotated[str, typer.Option(metavar="A,B", help="Some of read, train, trainer, admin.")],
    table: Table = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where its text goes. Default: NAME.token beside the table.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", metavar=FLAG, help="A token of this name is replaced and ends.")
    ] = False,
) -> int:
    """Make a token; running services know it within a second."""
    from ktrdr_client.cli.security_commands import add_token as body

    return body(session_of(context), table, name, scopes=scopes, out=out, is_replacement=replace)


@token_app.command(name="list")
def list_tokens(context: typer.Context, table: Table = None, as_json: Json = False) -> int:
    """List the tokens of a table: names and scopes, never a token."""
    from ktrdr_client.cli.security_commands import list_tokens as body

    return body(session_of(context, is_json=as_json), table)


@token_app.command()
def revoke(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")], table: Table = None) -> int:
    """End a token; running services refuse it within a second."""
    from ktrdr_client.cli.security_commands import revoke_token as body

    return body(session_of(context), table, name)
