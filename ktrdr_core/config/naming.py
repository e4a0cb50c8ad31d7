"""The one rule for names that become part of a path, a key or a URL."""

from __future__ import annotations

import re

from ktrdr_core.errors import InvalidInputError, InvalidStrategyError

MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
NAME_RULE = "1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit, without '..' (it is no path)"


def is_name(value: object) -> bool:
    """Return whether `value` is a string that keeps the rule."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None and ".." not in value


def check_name(
    value: object,
    *,
    field: str,
    what: str,
    error_class: type[InvalidInputError] = InvalidStrategyError,
) -> str:
    """Return `value` if it is a safe name.

    Args:
        value: A strategy name, symbol, timeframe or id from outside.
        field: Path of the field, for the violation.
        what: What it names, for the message: "symbol".
        error_class: What to raise.

    Raises:
        InvalidInputError: (or `error_class`) It is not a string, or breaks the rule.
    """
    if isinstance(value, str) and is_name(value):
        return value
    shown = value if not isinstance(value, str) or len(value) <= MAX_NAME_LENGTH else value[:40] + "..."
    raise error_class(f"{what} must be {NAME_RULE}, was {shown!r}", field=field)
