"""`--set a.b=c`: change the YAML of a strategy before it is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from ktrdr_core.errors import InvalidInputError

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_PATH = re.compile(r"[^.\[\]=]+(\.[^.\[\]=]+|\[\d+\])*")


def apply_assignments(text: str, assignments: Sequence[str]) -> str:
    """Return the YAML text with each `path=value` applied, in order.

    Args:
        text: A strategy that is valid YAML.
        assignments: Such as `model.training.epochs=20` or `indicators[0].period=21`; values are YAML.

    Raises:
        InvalidInputError: An assignment is malformed, or its path goes through something that is not there. Whether
            the path exists in the grammar is decided by the grammar, when the result is parsed.
    """
    if not assignments:
        return text
    tree: Any = yaml.safe_load(text)
    for assignment in assignments:
        path, separator, raw = assignment.partition("=")
        path = path.strip()
        if not separator or not _PATH.fullmatch(path):
            raise InvalidInputError(
                f"--set {assignment!r} must be PATH=VALUE, such as model.training.epochs=20 or indicators[0].period=21",
                field="set",
            )
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise InvalidInputError(f"--set {assignment!r}: the value is no YAML; quote it", field="set") from error
        _assign(tree, path, value)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _assign(tree: Any, path: str, value: Any) -> None:
    parts: list[str | int] = [int(index) if index else key for key, index in _PART.findall(path)]
    here = tree
    for position, part in enumerate(parts[:-1]):
        here = _step(here, part, path, parts[:position], make=isinstance(parts[position + 1], str))
    last = parts[-1]
    if isinstance(last, str) and isinstance(here, dict):
        here[last] = value
        return
    _step(here, last, path, parts[:-1], make=False)
    here[last] = value


def _step(here: Any, part: str | int, path: str, before: Sequence[str | int], *, make: bool) -> Any:
    """Return the child `part`; a missing section is made where a name follows, so that the grammar can judge it."""
    where = _join(before) or "the strategy"
    if isinstance(part, int):
        if not isinstance(here, list):
            raise InvalidInputError(f"--set {path}: {where} is not a list; leave [{part}] out", field="set")
        if part >= len(here):
            raise InvalidInputError(
                f"--set {path}: {where} has {len(here)} entries, numbered from 0; [{part}] is past the end",
                field="set",
            )
        return here[part]
    if not isinstance(here, dict):
        kind = "a list; give a number in brackets" if isinstance(here, list) else "a value, not a section"
        raise InvalidInputError(f"--set {path}: {where} is {kind}", field="set")
    if here.get(part) is None and make:
        here[part] = {}
    if part not in here:
        raise InvalidInputError(
            f"--set {path}: {where} has no {part}; it has {', '.join(map(str, here)) or 'nothing'}", field="set"
        )
    return here[part]


def _join(parts: Sequence[str | int]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
