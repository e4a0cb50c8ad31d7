"""Usage errors of the parser in this project's words: the option, its rule, and the value that broke it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_INVALID = re.compile(r"Invalid value for '([^']+)': (.*)", re.DOTALL)
_RULES = (
    (re.compile(r"Input should be a valid integer.*"), "must be a whole number"),
    (re.compile(r"Input should be a valid number.*"), "must be a number"),
    (re.compile(r"Input should be greater than or equal to (\S+)"), r"must be at least \1"),
    (re.compile(r"Input should be less than or equal to (\S+)"), r"must be at most \1"),
    (re.compile(r"Value error, .* is not one of (.*)"), r"must be one of \1"),
)


def usage_sentence(message: str, arguments: Sequence[str]) -> str:
    """Return the parser's message as a sentence without its full stop.

    Args:
        message: What the parser says.
        arguments: What was typed; the parser's message does not always name the value.
    """
    text = " ".join(message.split()).rstrip(".")
    match = _INVALID.fullmatch(text)
    if match is None:
        return text
    option, problem = match[1], match[2]
    for pattern, rule in _RULES:
        if pattern.fullmatch(problem):
            value = _value_of(option, arguments)
            return f"{option} {pattern.sub(rule, problem)}" + ("" if value is None else f", was {value!r}")
    return text


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return the last value given to `option`, None if it is no option or has none."""
    value = None
    for index, word in enumerate(arguments):
        if word == option and index + 1 < len(arguments):
            value = arguments[index + 1]
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
    return value
