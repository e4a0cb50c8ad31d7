"""`ktrdr security`: makes files on this machine, talks to nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ktrdr_client.cli import json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_table
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.security import tokens
from ktrdr_core.security.deployment import TABLE, create_deployment, renew_certificates
from ktrdr_core.security.scopes import parse_scopes


def init(session: CliSession, directory: Path | None, *, hosts: Sequence[str], days: int, is_renewal: bool) -> int:
    """Make the files of a deployment, or its certificates anew."""
    where = (directory or _directory(session)).expanduser().absolute()
    if is_renewal:
        names = renew_certificates(where, hosts=hosts, days=days)
        session.say(f"renewed the certificates in {where}, valid for {days} days: {', '.join(names)}")
        session.say("next  copy them over the old ones on each machine; services take them up by themselves")
        return ExitCode.OK
    names = create_deployment(where, hosts=hosts, days=days)
    session.say(f"made a CA, certificates and tokens in {where}, valid for {days} days: {', '.join(names)}")
    session.say(f"next  a person's token: ktrdr security token add NAME --scopes train --table {where / TABLE}")
    session.say("      what goes where: docs/security.md; ca.key stays here")
    return ExitCode.OK


def add_token(
    session: CliSession, table: Path | None, name: str, *, scopes: str, out: Path | None, is_replacement: bool
) -> int:
    """Make a token and write it into a file."""
    where = _table(session, table)
    tokens.check_name(name)
    file = (out or where.with_name(f"{name}.token")).expanduser().absolute()
    tokens.add_token(where, name, parse_scopes(scopes), file, replace=is_replacement)
    session.say(f"the token of {name} is in {file}, and nowhere else; services that read {where} know it")
    return ExitCode.OK


def list_tokens(session: CliSession, table: Path | None) -> int:
    """Print the names and scopes of a table."""
    where = _table(session, table)
    try:
        entries = tokens.load_table(where).entries
    except OSError as error:
        raise InvalidInputError(f"{where} cannot be read: {error.strerror}; name another with --table") from error
    if session.is_json:
        for entry in entries:
            told = {"name": entry.name, "scopes": sorted(entry.scopes), "created": entry.created}
            session.write_json(json_lines.line("token", told))
        return ExitCode.OK
    rows = [(entry.name, ", ".join(sorted(entry.scopes)), f"{entry.created:%Y-%m-%d %H:%M}") for entry in entries]
    say_table(session, ("name", "scopes", "created"), rows, empty=f"{where} has no tokens")
    return ExitCode.OK


def revoke_token(session: CliSession, table: Path | None, name: str) -> int:
    """Take a token out of a table."""
    where = _table(session, table)
    tokens.revoke_token(where, name)
    session.say(f"the token of {name} is revoked; services that read {where} refuse it within a second")
    return ExitCode.OK


def _directory(session: CliSession) -> Path:
    return session.settings.data_dir / "security"


def _table(session: CliSession, table: Path | None) -> Path:
    return (table or _directory(session) / TABLE).expanduser().absolute()
