"""`ktrdr data`: the commands, their arguments and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ktrdr_client.cli.options import FLAG, Json, session_of

data_app = typer.Typer(help="The bars on this machine.", no_args_is_help=True)


BarsDir = Annotated[Path | None, typer.Option(help="Store of bars. Default: KTRDR_BARS_DIR, or data.")]


@data_app.command(name="import")
def data_import(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="CSV or Parquet files of one series.")],
    timeframe: Annotated[str, typer.Option(metavar="1h", help="Length of a bar.")],
    symbol: Annotated[
        str | None, typer.Option(help="Instrument. With a column of symbols: only this one; without it all.")
    ] = None,
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="Zone of times that have none.")] = "UTC",
    columns: Annotated[
        str | None, typer.Option(metavar="ROLE=COLUMN,...", help="Such as time=Date+Clock,open=O.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="COLUMN=FACTOR,...", help="Such as price=0.00001,volume=1000.")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Such as '%d.%m.%Y %H:%M', iso, s or ms.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", metavar=FLAG, help="Sort, and drop what breaks a rule; all is reported.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", metavar=FLAG, help="Put the bars in the place of the stored series.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", metavar=FLAG, help="Add the bars to the stored series.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar=FLAG, help="Import without asking.")] = False,
    bars_dir: BarsDir = None,
    as_json: Json = False,
) -> int:
    """Import bars: say what was understood, ask, store."""
    from ktrdr_client.cli.data_commands import ImportArguments
    from ktrdr_client.cli.data_commands import import_files as body

    arguments = ImportArguments(
        files=tuple(files),
        symbol=symbol,
        timeframe=timeframe,
        timezone=timezone,
        columns=columns,
        scale=scale,
        time_format=time_format,
        repair=repair,
        replace=replace,
        merge=merge,
        yes=yes,
        bars_dir=bars_dir,
    )
    return body(session_of(context, is_json=as_json), arguments)


@data_app.command(name="list")
def data_list(context: typer.Context, bars_dir: BarsDir = None, as_json: Json = False) -> int:
    """List the series on this machine."""
    from ktrdr_client.cli.data_commands import list_series as body

    return body(session_of(context, is_json=as_json), bars_dir=bars_dir)


@data_app.command(name="check")
def data_check(
    context: typer.Context,
    symbol: Annotated[str | None, typer.Argument(metavar="[SYMBOL]", help="Only this instrument.")] = None,
    timeframe: Annotated[str | None, typer.Argument(metavar="[TIMEFRAME]", help="Only this timeframe.")] = None,
    strict: Annotated[bool, typer.Option("--strict", metavar=FLAG, help="Let a warning fail, too.")] = False,
    bars_dir: BarsDir = None,
    as_json: Json = False,
) -> int:
    """Look for gaps, duplicates, impossible bars, clock jumps and constant runs."""
    from ktrdr_client.cli.data_commands import check as body

    return body(session_of(context, is_json=as_json), symbol, timeframe, strict=strict, bars_dir=bars_dir)
