"""`ktrdr data list --remote`, `import --remote` and `pull`: the backend's store of bars."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.data_commands import ImportArguments, build_request, chosen, is_agreed, say_series, write_import
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.train_command import parse_day
from ktrdr_core.errors import InvalidBarsError, InvalidInputError, SeriesNotFoundError

if TYPE_CHECKING:
    from ktrdr_client.async_client import AsyncClient
    from ktrdr_client.bars_types import Series
    from ktrdr_core.data.bar_store import SeriesInfo


async def list_remote_series(session: CliSession, *, bars_dir: Path | None) -> int:
    """List the series of the backend; what it does not know without reading the bars is asked for, one by one."""
    _refuse_directory(bars_dir)
    async with session.client() as client:
        found = [await _with_facts(client, series) for series in await client.list_series()]
        say_series(session, found, where=f"the backend at {client.address}")
    return ExitCode.OK


async def send_files(session: CliSession, arguments: ImportArguments) -> int:
    """Read, check and repair files here as for a store of this machine, then send what they are to the backend."""
    from ktrdr_client.bars_types import ImportMode
    from ktrdr_core.data.importer import IfExists, stage_import

    _refuse_directory(arguments.bars_dir)
    mode = chosen(arguments, refuse=ImportMode.CREATE, merge=ImportMode.APPEND, replace=ImportMode.REPLACE)
    with tempfile.TemporaryDirectory(prefix="ktrdr-import-") as directory:
        request = build_request(arguments, store=Path(directory), if_exists=IfExists.REFUSE)
        with stage_import(request) as staged:
            staged.publish()
        async with session.client() as client:
            before = [await _num_stored(client, series.symbol, series.timeframe) for series in staged.series]
            if not is_agreed(session, staged, request, yes=arguments.yes, to="the backend", num_stored=before):
                return ExitCode.CANCELLED
            stored: list[Series] = []
            for series in staged.series:
                path = Path(directory) / f"{series.symbol}_{series.timeframe}"
                stored.append(await client.import_bars(path, mode=mode))
                if not session.is_json:
                    told = f"imported {series.symbol} {series.timeframe} into the backend at {client.address}"
                    session.say(f"{told}: {stored[-1].num_bars:,} bars")
    if session.is_json:
        lines = [
            asdict(series)
            | {
                "num_bars": now.num_bars,
                "num_stored_before": count,
                "first_time": _text(now.start_time),
                "last_time": _text(now.end_time),
            }
            for series, now, count in zip(staged.series, stored, before, strict=True)
        ]
        write_import(session, staged, bars_dir=None, series=lines)
    return ExitCode.OK


async def pull(
    session: CliSession, symbol: str, timeframe: str, *, to: Path | None, start: str | None, end: str | None
) -> int:
    """Fetch bars of the backend into a Parquet file, verified."""
    first, last = parse_day(start, "--start"), parse_day(end, "--end")
    path = to if to is not None else Path(f"{symbol}_{timeframe}.parquet")
    async with session.client() as client:
        series = await client.get_bars(symbol, timeframe, path, start=first, end=last)
    if session.is_json:
        values = {"path": str(path.resolve()), **asdict(series)}
        values.pop("parts")
        session.write_json(json_lines.line("data_pull", values))
        return ExitCode.OK
    size_bytes = (await asyncio.to_thread(path.stat)).st_size
    session.say(
        f"{series.symbol} {series.timeframe} is in {path}: {series.num_bars:,} bars, "
        f"{formats.moment(series.start_time)} to {formats.moment(series.end_time)} UTC, {formats.size(size_bytes)}, "
        "verified"
    )
    return ExitCode.OK


async def _with_facts(client: AsyncClient, series: Series) -> tuple[SeriesInfo, str]:
    from ktrdr_core.data.bar_store import SeriesInfo

    problem = ""
    if not series.num_bars:
        try:
            series = await client.get_series(series.symbol, series.timeframe)
        except InvalidBarsError as error:
            problem = error.message
    times = [None if time is None else int(time.timestamp()) * 10**9 for time in (series.start_time, series.end_time)]
    return SeriesInfo(series.symbol, series.timeframe, "", series.num_bars or None, *times), problem


async def _num_stored(client: AsyncClient, symbol: str, timeframe: str) -> int | None:
    """Return the number of bars the backend has of a series; None if they cannot be read."""
    try:
        return (await client.get_series(symbol, timeframe)).num_bars
    except SeriesNotFoundError:
        return 0
    except InvalidBarsError:
        return None


def _text(time: datetime | None) -> str | None:
    return None if time is None else time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _refuse_directory(bars_dir: Path | None) -> None:
    if bars_dir is not None:
        raise InvalidInputError(
            "--bars-dir is a store of this machine and --remote means the backend's; give one", field="--bars-dir"
        )
