"""`ktrdr doctor`: is all as it should be, and if not, what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.text import Text

from ktrdr_client.cli import json_lines
from ktrdr_client.cli.checks import (
    Check,
    Status,
    check_backend,
    check_bars,
    check_client,
    check_local_disk,
    check_torch,
)
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tls_checks import check_tls
from ktrdr_client.embedded import find_running
from ktrdr_core.errors import KtrdrError

_STYLES = {Status.OK: "green", Status.NOTE: "dim", Status.WARNING: "yellow", Status.PROBLEM: "red"}


async def doctor(session: CliSession) -> int:
    """Run every check and tell what was found; starts nothing."""
    checks = [check_client()]
    settings = session.settings
    address = settings.backend
    is_reached = True
    if address is None:
        checks += [check_torch(), await asyncio.to_thread(check_local_disk, "disk of the state", settings.data_dir)]
        running = await find_running(settings.data_dir)
        if running is None:
            text = f"none runs for {settings.data_dir}; the next command that needs one starts it"
            checks.append(Check(name="embedded backend", status=Status.NOTE, message=text))
            checks.append(await asyncio.to_thread(check_bars, settings.bars_dir))
        else:
            address = running.backend
            text = f"process {running.pid}, backend {running.backend}, trainer {running.trainer}"
            checks.append(Check(name="embedded backend", status=Status.OK, message=text))
    if address is not None:
        if settings.backend is not None:  # an embedded one has neither TLS nor tokens
            checks += await asyncio.to_thread(check_tls, address, settings)
        try:
            security = session.security()
            if security is not None:
                security.check(address)
        except KtrdrError:
            is_reached = False  # the checks of TLS have told why
        else:
            found, is_reached = await check_backend(address, security)
            checks += found
    _tell(session, checks)
    if not is_reached:
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED if any(each.status is Status.PROBLEM for each in checks) else ExitCode.OK


def _tell(session: CliSession, checks: Sequence[Check]) -> None:
    if session.is_json:
        for check in checks:
            session.write_json(json_lines.line("check", check))
        return
    status_width = max(len(status) for status in Status) + 2
    name_width = max(len(check.name) for check in checks) + 2
    for check in checks:
        session.out.print(
            Text.assemble(
                (f"{check.status:<{status_width}}", _STYLES[check.status]),
                (f"{check.name:<{name_width}}", "dim"),
                check.message,
            )
        )
        if check.advice:
            session.say(f"{'':{status_width + name_width}}-> {check.advice}")
    counts = {status: sum(check.status is status for check in checks) for status in (Status.PROBLEM, Status.WARNING)}
    session.say("")
    session.say(", ".join(_counted(count, status) for status, count in counts.items()))


def _counted(count: int, status: Status) -> str:
    return f"{count or 'no'} {status}{'' if count == 1 else 's'}"
