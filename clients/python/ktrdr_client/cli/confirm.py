"""Asking before something is done that cannot be taken back."""

from __future__ import annotations

import sys

import typer

from ktrdr_client.cli.session import CliSession
from ktrdr_core.errors import InvalidInputError


def is_confirmed(session: CliSession, question: str, *, yes: bool, what: str) -> bool:
    """Return the answer of the person at the terminal; True at once with `yes`. Blocks.

    Args:
        session: With `--json` the question goes to stderr.
        question: For example "Delete it?".
        yes: What `--yes` says.
        what: What would be done, for the refusal: "3 models would be deleted".

    Raises:
        InvalidInputError: There is no terminal to ask on, and no `yes`.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InvalidInputError(
            f"{what}, and there is no terminal to confirm on; add --yes to do it, nothing was changed", field="--yes"
        )
    return typer.confirm(question, err=session.is_json)
