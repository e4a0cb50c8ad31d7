"""`ktrdr data`: the commands, their arguments and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ktrdr_client.cli.options import FLAG, EndDate, Json, StartDate, go, session_of

data_app = typer.Typer(help="Bars, on this machine and in the backend.", no_args_is_help=True)


BarsDir = Annotated[Path | None, typer.Option(help="Store of bars. Default: KTRDR_BARS_DIR, or data.")]
Remote = Annotated[bool, typer.Option("--remote", metavar=FLAG, help="The backend's store, not one of this machine.")]


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
    remote: Remote = False,
    bars_dir: BarsDir = None,
    as_json: Json = False,
) -> int:
    """Import bars: say what was understood, ask, store."""
    from ktrdr_client.cli.data_commands import ImportArguments

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
    session = session_of(context, is_json=as_json)
    if remote:
        from ktrdr_client.cli.remote_data_commands import send_files

        return go(send_files(session, arguments))
    from ktrdr_client.cli.data_commands import import_files

    return import_files(session, arguments)


@data_app.command(name="list")
def data_list(context: typer.Context, remote: Remote = False, bars_dir: BarsDir = None, as_json: Json = False) -> int:
    """List the series of a store."""
    session = session_of(context, is_json=as_json)
    if remote:
        from ktrdr_client.cli.remote_data_commands import list_remote_series

        return go(list_remote_series(session, bars_dir=bars_dir))
    from ktrdr_client.cli.data_commands import list_series

    return list_series(session, bars_dir=bars_dir)


@data_app.command(name="pull")
def data_pull(
    context: typer.Context,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Instrument.")],
    timeframe: Annotated[str, typer.Argument(metavar="TIMEFRAME", help="Length of a bar.")],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet file. Default: SYMBOL_TIMEFRAME.parquet, here.")
    ] = None,
    start: StartDate = None,
    end: EndDate = None,
    as_json: Json = False,
) -> int:
    """Fetch bars of the backend into a Parquet file."""
    from ktrdr_client.cli.remote_data_commands import pull as body

    return go(body(session_of(context, is_json=as_json), symbol, timeframe, to=to, start=start, end=end))


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
