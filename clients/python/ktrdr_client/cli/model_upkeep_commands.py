"""`ktrdr models delete`, `alias` and `gc`."""

from __future__ import annotations

import asyncio
import re

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.confirm import is_confirmed
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_table
from ktrdr_client.model_types import Garbage
from ktrdr_core.errors import InvalidInputError

_VERSION = re.compile(r"v?([1-9][0-9]{0,8})")
_NONE = "none"


async def delete(session: CliSession, name: str, *, force: bool, yes: bool) -> int:
    """Delete a version, or what is kept aside."""
    if not await asyncio.to_thread(
        is_confirmed, session, f"Delete {name}? It cannot be brought back.", yes=yes, what=f"{name} would be deleted"
    ):
        session.note("nothing was deleted")
        return ExitCode.CANCELLED
    async with session.client() as client:
        await client.delete_model(name, force=force)
    if session.is_json:
        session.write_json(json_lines.line("model_delete", {"name": name}))
    else:
        session.say(f"deleted {name}")
    return ExitCode.OK


async def set_alias(
    session: CliSession, parent: str, alias: str, version: str | None, *, remove: bool, expect: str | None
) -> int:
    """Point an alias at a version, or remove it."""
    if remove == (version is not None):
        raise InvalidInputError("give a version such as 3, or --remove, and not both", field="version")
    wanted = 0 if version is None else _version(version, "VERSION")
    expected = None if expect is None else 0 if expect == _NONE else _version(expect, "--expect")
    async with session.client() as client:
        model = await client.set_model_alias(parent, alias, wanted, expected_version=expected)
    if session.is_json:
        values = {"parent": parent, "alias": alias, "version": wanted or None, "name": model.name if model else None}
        session.write_json(json_lines.line("model_alias", values))
    else:
        session.say(f"{parent}_{alias} is removed" if model is None else f"{parent}_{alias} is {model.name}")
    return ExitCode.OK


async def collect_garbage(
    session: CliSession, *, keep_versions: int | None, kept_aside_days: int | None, dry_run: bool, yes: bool
) -> int:
    """Remove what nothing refers to; says what, and asks."""
    async with session.client() as client:

        async def collect(*, is_trial: bool) -> list[Garbage]:
            return await client.collect_garbage(
                dry_run=is_trial, keep_versions=keep_versions, kept_aside_days=kept_aside_days
            )

        if dry_run or not yes:
            found = await collect(is_trial=True)
            if dry_run or not found:
                _tell_garbage(session, found, is_removed=False)
                return ExitCode.OK
            if not session.is_json:
                _tell_garbage(session, found, is_removed=False)
            what = f"{len(found)} things of {_size(found)} would be removed"
            if not await asyncio.to_thread(is_confirmed, session, "Remove them?", yes=False, what=what):
                session.note("nothing was removed")
                return ExitCode.CANCELLED
        removed = await collect(is_trial=False)
    if session.is_json or yes:
        _tell_garbage(session, removed, is_removed=True)
    else:
        session.say(f"removed {len(removed)} things of {_size(removed)}")
    return ExitCode.OK


def _tell_garbage(session: CliSession, found: list[Garbage], *, is_removed: bool) -> None:
    if session.is_json:
        for each in found:
            values = {
                "name": each.name,
                "size_bytes": each.size_bytes,
                "cause": each.cause,
                "is_removed": is_removed,
            }
            session.write_json(json_lines.line("garbage", values))
        return
    say_table(
        session,
        ("removed" if is_removed else "would be removed", "size", "cause"),
        [(each.name, formats.size(each.size_bytes), each.cause) for each in found],
        empty="there is nothing to remove",
    )
    if found:
        session.say("")
        session.say(f"{'removed' if is_removed else 'together'} {_size(found)}")


def _size(found: list[Garbage]) -> str:
    return formats.size(sum(each.size_bytes for each in found))


def _version(text: str, option: str) -> int:
    match = _VERSION.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"{option} must be the number of a version such as 3 or v3{_or_none(option)}, was {text!r}", field=option
        )
    return int(match[1])


def _or_none(option: str) -> str:
    return f", or {_NONE}" if option == "--expect" else ""
