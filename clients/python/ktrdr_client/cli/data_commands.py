"""`ktrdr data import`, `list` and `check`: the store of bars on this machine, without a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ktrdr_client.cli import json_lines
from ktrdr_client.cli.confirm import is_confirmed
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_fields, say_table
from ktrdr_core.errors import InvalidBarsError, InvalidInputError, SeriesNotFoundError

if TYPE_CHECKING:
    from ktrdr_core.data.bar_store import DirectoryBarStore, SeriesInfo
    from ktrdr_core.data.importer import IfExists, ImportRequest, StagedImport
    from ktrdr_core.data.quality import SeriesReport

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """What was typed after `ktrdr data import`; see its help."""

    files: tuple[Path, ...]
    symbol: str | None
    timeframe: str
    timezone: str
    columns: str | None
    scale: str | None
    time_format: str | None
    repair: bool
    replace: bool
    merge: bool
    yes: bool
    bars_dir: Path | None


def import_files(session: CliSession, arguments: ImportArguments) -> int:
    """Import files of bars: say what was understood, ask, publish."""
    from ktrdr_core.data.importer import IfExists, stage_import

    if_exists = chosen(arguments, refuse=IfExists.REFUSE, merge=IfExists.MERGE, replace=IfExists.REPLACE)
    request = build_request(arguments, store=_directory(session, arguments.bars_dir), if_exists=if_exists)
    with stage_import(request) as staged:
        if not is_agreed(session, staged, request, yes=arguments.yes, to=str(request.store)):
            return ExitCode.CANCELLED
        staged.publish()
    if session.is_json:
        write_import(session, staged, bars_dir=str(request.store), series=staged.series)
        return ExitCode.OK
    for series in staged.series:
        session.say(f"imported {series.symbol} {series.timeframe} into {request.store}: {series.num_bars:,} bars")
    session.note("look for gaps and worse with: ktrdr data check")
    return ExitCode.OK


def list_series(session: CliSession, *, bars_dir: Path | None) -> int:
    """List the series of the store; what a CSV file holds is read from it."""
    store = _store(session, bars_dir)
    found = [_with_facts(store, info) for info in store.list_series()]
    say_series(session, found, where=str(bars_dir or session.settings.bars_dir))
    return ExitCode.OK


def check(
    session: CliSession, symbol: str | None, timeframe: str | None, *, strict: bool, bars_dir: Path | None
) -> int:
    """Check series; an error, or with `strict` a warning, fails."""
    from ktrdr_core.data.quality import check_stored_series

    store = _store(session, bars_dir)
    if symbol is not None and timeframe is not None:
        wanted = [(symbol, timeframe)]
    else:
        found = [(info.symbol, info.timeframe) for info in store.list_series() if symbol in (None, info.symbol)]
        wanted = list(dict.fromkeys(found))
    if not wanted:
        raise SeriesNotFoundError(
            f"no bars {f'of {symbol} ' if symbol else ''}in {bars_dir or session.settings.bars_dir}; `ktrdr data list` "
            "names those there are"
        )
    has_failed = False
    for each in wanted:
        report = check_stored_series(store, *each)
        has_failed |= bool(report.num_errors or (strict and report.num_warnings))
        if session.is_json:
            values = {
                "symbol": report.symbol,
                "timeframe": report.timeframe,
                "file_format": report.file_format,
                "num_bars": report.num_bars,
                "first_time": report.first_time or None,
                "last_time": report.last_time or None,
                "num_usual_closures": report.num_usual_closures,
                "clock": report.clock or None,
                "num_errors": report.num_errors,
                "num_warnings": report.num_warnings,
                "findings": report.findings,
            }
            session.write_json(json_lines.line("data_check", values))
        else:
            _say_report(session, report)
    return ExitCode.FAILED if has_failed else ExitCode.OK


def chosen(arguments: ImportArguments, *, refuse: T, merge: T, replace: T) -> T:
    """Return what was asked for about a series that is stored already."""
    if arguments.replace and arguments.merge:
        raise InvalidInputError("--replace and --merge exclude each other; give one", field="--replace")
    return replace if arguments.replace else merge if arguments.merge else refuse


def build_request(arguments: ImportArguments, *, store: Path, if_exists: IfExists) -> ImportRequest:
    """Return the import of what was typed into `store`."""
    from ktrdr_core.data.column_roles import parse_columns, parse_scale
    from ktrdr_core.data.importer import ImportRequest
    from ktrdr_core.data.time_formats import parse_time_format

    return ImportRequest(
        files=tuple(path.expanduser() for path in arguments.files),
        store=store,
        symbol=arguments.symbol,
        timeframe=arguments.timeframe,
        timezone=arguments.timezone,
        columns=parse_columns(arguments.columns) if arguments.columns is not None else {},
        scale=parse_scale(arguments.scale) if arguments.scale is not None else {},
        time_format=parse_time_format(arguments.time_format) if arguments.time_format is not None else None,
        is_repair=arguments.repair,
        if_exists=if_exists,
    )


def is_agreed(
    session: CliSession,
    staged: StagedImport,
    request: ImportRequest,
    *,
    yes: bool,
    to: str,
    num_stored: Sequence[int | None] | None = None,
) -> bool:
    """Say what was understood, ask, and return the answer.

    Args:
        num_stored: Bars that each series has now where they are sent to, None where that cannot be read; None for a
            store of this machine.
    """
    if not session.is_json:
        _say_understood(session, staged, request, num_stored)
    is_yes = is_confirmed(session, f"Import into {to}?", yes=yes, what=f"{len(staged.series)} series would be imported")
    if not is_yes:
        session.note("nothing was imported")
    return is_yes


def write_import(session: CliSession, staged: StagedImport, *, bars_dir: str | None, series: object) -> None:
    """Print the JSON line of an import."""
    session.write_json(
        json_lines.line(
            "data_import",
            {
                "bars_dir": bars_dir,
                "files": staged.files,
                "timezone": staged.timezone,
                "repairs": dict(staged.repairs),
                "series": series,
            },
        )
    )


def say_series(session: CliSession, found: Sequence[tuple[SeriesInfo, str]], *, where: str) -> None:
    """Print series, each with what is wrong with it, as a table or as JSON lines."""
    rows = []
    for known, problem in found:
        if session.is_json:
            session.write_json(
                json_lines.line(
                    "series",
                    {
                        "symbol": known.symbol,
                        "timeframe": known.timeframe,
                        "file_format": known.file_format or None,
                        "num_bars": known.num_bars,
                        "first_day": known.first_day,
                        "last_day": known.last_day,
                        "error": problem,
                    },
                )
            )
        num_bars = "-" if known.num_bars is None else f"{known.num_bars:,}"
        days = ("-" if day is None else day.isoformat() for day in (known.first_day, known.last_day))
        rows.append((known.symbol, known.timeframe, known.file_format or "-", num_bars, *days, problem))
    if not session.is_json:
        say_table(
            session,
            ("symbol", "timeframe", "format", "bars", "first (UTC)", "last (UTC)", ""),
            rows,
            empty=f"no bars in {where}; import some with: ktrdr data import FILE --symbol SYMBOL --timeframe 1h",
        )


def _say_understood(
    session: CliSession, staged: StagedImport, request: ImportRequest, num_stored: Sequence[int | None] | None
) -> None:
    for file in staged.files:
        columns = ", ".join(f"{role} {name}" for role, name in file.columns.items() if name is not None)
        say_fields(
            session,
            {
                "file": file.path,
                "format": file.layout,
                "columns": columns,
                "rows": f"{file.num_rows:,}",
                "note": "; ".join(file.notes),
            },
        )
    if staged.timezone:
        session.say(f"times have no zone of their own and are taken as {staged.timezone} (--timezone)")
    if request.scale:
        session.say("scaled: " + ", ".join(f"{name} x {factor:g}" for name, factor in request.scale.items()))
    for repair, count in staged.repairs.items():
        session.say(f"repaired: {count:,} {repair}")
    for series in staged.series:
        for repair, count in series.repairs.items():
            session.say(f"repaired {series.symbol}: {count:,} {repair}")
    is_sent = num_stored is not None
    before = num_stored if num_stored is not None else [series.num_stored_before for series in staged.series]
    say_table(
        session,
        (
            *("series", "bars sent" if is_sent else "bars", "stored before"),
            *("first bar (UTC)", "last bar (UTC)", "usual step"),
        ),
        [
            (
                f"{series.symbol} {series.timeframe}",
                f"{series.num_bars:,}",
                "-" if count is None else f"{count:,}",
                series.first_time,
                series.last_time,
                series.usual_step,
            )
            for series, count in zip(staged.series, before, strict=True)
        ],
        empty="",
    )


def _with_facts(store: DirectoryBarStore, info: SeriesInfo) -> tuple[SeriesInfo, str]:
    """Return a series with its number of bars and days, or with what is wrong with it."""
    from ktrdr_core.data.bar_store import SeriesInfo

    if info.num_bars is not None:
        return info, ""
    try:
        bars = store.load(info.symbol, info.timeframe)
    except InvalidBarsError as error:
        return info, error.message
    bounds = int(bars.times[0]), int(bars.times[-1])
    return SeriesInfo(info.symbol, info.timeframe, info.file_format, len(bars), *bounds), ""


def _say_report(session: CliSession, report: SeriesReport) -> None:
    from rich.text import Text

    title = f"{report.symbol} {report.timeframe}"
    if report.num_bars:
        closures = f", {report.num_usual_closures:,} usual closures" if report.num_usual_closures else ""
        title += f": {report.num_bars:,} bars, {report.first_time} to {report.last_time}{closures}"
    session.out.print(Text(title, style="bold"))
    if not report.findings:
        session.say("  nothing found")
    for finding in report.findings:
        style = "red" if finding.severity == "error" else "yellow"
        session.out.print(
            Text.assemble(
                "  ", (finding.severity.value, style), f"  {finding.kind}: {finding.count:,}  ", (finding.rule, "dim")
            )
        )
        for example in finding.examples:
            session.say(f"    {example}")


def _store(session: CliSession, bars_dir: Path | None) -> DirectoryBarStore:
    from ktrdr_core.data.bar_store import DirectoryBarStore

    return DirectoryBarStore(_directory(session, bars_dir))


def _directory(session: CliSession, bars_dir: Path | None) -> Path:
    return bars_dir.expanduser().absolute() if bars_dir is not None else session.settings.bars_dir
