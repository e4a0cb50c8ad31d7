"""Turns pydantic's errors into one sentence and a list of field violations."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ktrdr_core.config.signatures import nearest
from ktrdr_core.errors import FieldViolation, InvalidStrategyError

# Errors travel in the trailers of an RPC, which hold 16 kB.
MAX_VIOLATIONS = 20
MAX_FIELD = 120
MAX_DESCRIPTION = 400
MAX_SHOWN_VALUE = 60
_AT = "at:"  # a custom error type "at:<path>" points below the place pydantic reports


def invalid_strategy(error: ValidationError, *, source: str, root: type[BaseModel]) -> InvalidStrategyError:
    """Return the error that names file, path in the file, value and rule of everything that is wrong."""
    entries = error.errors(include_url=False)
    # A list whose entry is wrong is also reported as too short: the entry says it better.
    entries = [entry for entry in entries if entry["type"] != "too_short" or not _has_below(entry, entries)]
    violations = [_bounded(_violation(entry, root)) for entry in entries[:MAX_VIOLATIONS]]
    first = violations[0]
    message = f"{first.description} ({source}, {first.field})"
    if len(entries) > 1:
        message += f"; {len(entries) - 1} more: " + ", ".join(v.field for v in violations[1:6])
    return InvalidStrategyError(message, violations=violations)


def _bounded(violation: FieldViolation) -> FieldViolation:
    return FieldViolation(_cut(violation.field, MAX_FIELD), _cut(violation.description, MAX_DESCRIPTION))


def _has_below(entry: Any, entries: Sequence[Any]) -> bool:
    location = entry["loc"]
    return any(len(other["loc"]) > len(location) and other["loc"][: len(location)] == location for other in entries)


def path_text(location: Sequence[int | str]) -> str:
    """Return `indicators[0].period` for `("indicators", 0, "period")`."""
    text = ""
    for part in location:
        key = repr(part) if isinstance(part, str) and not part.isprintable() else part
        text += f"[{part}]" if isinstance(part, int) else f".{key}" if text else str(key)
    return text or "strategy"


def _violation(entry: Any, root: type[BaseModel]) -> FieldViolation:
    kind, value = entry["type"], entry["input"]
    location = _file_location(entry["loc"], kind)
    if kind == "extra_forbidden":
        known = _known_keys(root, location[:-1])
        return FieldViolation(path_text(location), f"unknown key {_shown(location[-1])}{nearest(location[-1], known)}")
    if kind == "missing":
        return FieldViolation(path_text(location), f"{location[-1]} is missing")
    if kind.startswith(_AT):
        below = kind.removeprefix(_AT)
        index, _, rest = below.partition(".")
        location += [int(index), rest] if index.isdigit() else [below]
        return FieldViolation(path_text(location), entry["msg"])
    subject = location[-1] if location and isinstance(location[-1], str) else "value"
    if kind in _OWN_SENTENCES:
        return FieldViolation(path_text(location), entry["msg"])
    template = _RULES.get(kind)
    rule = template.format(**entry.get("ctx", {})) if template else entry["msg"].replace("Input should", "must", 1)
    return FieldViolation(path_text(location), f"{subject} {rule}, was {_shown(value)}")


# Custom errors of the sections that are whole sentences.
_OWN_SENTENCES = frozenset({"choice", "split", "unused", "base_timeframe"})

# pydantic's rules in the words of this project; what is not here is said in pydantic's.
_RULES = {
    "greater_than_equal": "must be at least {ge:.15g}",
    "greater_than": "must be above {gt:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
    "less_than": "must be below {lt:.15g}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must be a letter followed by at most 63 letters, digits or underscores",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
}


def _shown(value: object) -> str:
    return _cut(repr(value), MAX_SHOWN_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "..."


# Keys that take a mapping or a list: pydantic puts the name of the type it tried after them.
_UNION_KEYS = frozenset({"target_symbols", "target_timeframes"})
_TYPE_NAMES = ("DeploymentTarget", "tuple[")


def _file_location(location: Sequence[int | str], kind: str) -> list[int | str]:
    """Return the place in the file, without pydantic's names of types and its mark of a key."""
    parts = [
        part
        for before, part in zip(("", *location), location, strict=False)
        if not (before in _UNION_KEYS and isinstance(part, str) and part.startswith(_TYPE_NAMES))
    ]
    if parts and parts[-1] == "[key]" and kind != "extra_forbidden":
        parts.pop()
    return parts


def _known_keys(root: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys of the section at `location`."""
    annotation: Any = root
    for part in location:
        model = _model_of(annotation)
        if model is not None and part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
        else:
            arguments = [argument for argument in get_args(_bare(annotation)) if argument is not type(None)]
            annotation = arguments[-1] if arguments else None
    model = _model_of(annotation)
    return list(model.model_fields) if model else []


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _model_of(annotation: Any) -> type[BaseModel] | None:
    bare = _bare(annotation)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return bare
    if get_origin(bare) in (Union, types.UnionType):
        return next((model for model in map(_model_of, get_args(bare)) if model), None)
    return None
