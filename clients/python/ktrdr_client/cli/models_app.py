"""`ktrdr models`: the commands, their arguments and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ktrdr_client.cli.options import EndDate, Json, StartDate, go, session_of

models_app = typer.Typer(help="The model store.", no_args_is_help=True)


@models_app.command(name="list")
def models_list(
    context: typer.Context,
    strategy: Annotated[str, typer.Option(help="Only this strategy.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> int:
    """List stored models, newest first."""
    from ktrdr_client.cli.model_commands import list_models as body

    return go(body(session_of(context, is_json=as_json), strategy, limit))


@models_app.command(name="show")
def models_show(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name in the store, a strategy (its newest) or a model id.")
    ],
    as_json: Json = False,
) -> int:
    """Show one stored model."""
    from ktrdr_client.cli.model_commands import show as body

    return go(body(session_of(context, is_json=as_json), model))


@models_app.command(name="predict")
def models_predict(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model directory, name in the store, or strategy (its newest).")
    ],
    symbol: Annotated[str | None, typer.Option(help="Instrument. Default: the one the model was trained on.")] = None,
    start: StartDate = None,
    end: EndDate = None,
    bars_dir: Annotated[
        Path | None, typer.Option(help="Bars. Default: KTRDR_BARS_DIR, or data, or the backend's.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Print a model's decision for each bar; without dates for the last 24 bars."""
    from ktrdr_client.cli.predict_command import predict as body

    return go(
        body(session_of(context, is_json=as_json), model, symbol=symbol, start=start, end=end, bars_dir=bars_dir),
    )
