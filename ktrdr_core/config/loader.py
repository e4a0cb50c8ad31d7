"""Reads strategy files: safely, within bounds, and with errors that say where."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.config.violations import invalid_strategy
from ktrdr_core.errors import InvalidStrategyError, StrategyNotFoundError

try:  # libyaml parses ten times faster; wheels of PyYAML have it
    from yaml import CSafeLoader as _SafeLoader
except ImportError:
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

MAX_STRATEGY_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 20_000


def parse_strategy(text: str, *, source: str = "strategy") -> StrategyConfig:
    """Return the strategy that `text` (YAML) describes.

    Args:
        text: The file's text, at most 1 MiB.
        source: The file's name, for messages.

    Raises:
        InvalidStrategyError: It is no YAML mapping, too large, too deep, has an alias or a repeated key, or breaks
            a rule of the grammar; one violation for each broken rule.
    """
    return strategy_from_dict(_read_yaml(text, source), source=source)


def load_strategy(path: Path) -> StrategyConfig:
    """Return the strategy in the file at `path`.

    Raises:
        StrategyNotFoundError: There is no such file.
        InvalidStrategyError: See `parse_strategy`; or the file is no UTF-8 text.
    """
    return parse_strategy(read_strategy_text(path), source=path.name)


def read_strategy_text(path: Path) -> str:
    """Return the text of the strategy file at `path`; errors as for `load_strategy`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_STRATEGY_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise StrategyNotFoundError(f"no strategy file {path}; give the path of a YAML file") from error
    if len(raw) > MAX_STRATEGY_BYTES:
        raise _refuse(f"a strategy file may have {MAX_STRATEGY_BYTES} bytes, this one has more", path.name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refuse(f"a strategy file must be UTF-8 text; byte {error.start} is not", path.name) from error


def strategy_from_dict(raw: Any, *, source: str = "strategy") -> StrategyConfig:
    """Return the strategy of plain values, for example those of `StrategyConfig.to_dict`.

    Raises:
        InvalidStrategyError: See `parse_strategy`.
    """
    if not isinstance(raw, dict):
        kind = {type(None): "empty", list: "a list"}.get(type(raw), "one value")
        raise _refuse(f"a strategy must be a mapping that begins with name:, was {kind}", source)
    try:
        return StrategyConfig.model_validate(raw)
    except ValidationError as error:
        raise invalid_strategy(error, source=source, root=StrategyConfig) from error


def strategy_digest(text: str) -> str:
    """Return the SHA-256 of the text of a strategy file, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(message: str, source: str) -> InvalidStrategyError:
    return InvalidStrategyError(f"{message} ({source})", field="strategy")


class _StrictLoader(_SafeLoader):
    """The safe loader, refusing repeated keys and keys that are no text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is no text; put it in quotes", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} appears twice; remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, source: str) -> Any:
    if len(text) > MAX_STRATEGY_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_STRATEGY_BYTES:
        raise _refuse(f"a strategy may have {MAX_STRATEGY_BYTES} bytes, this one has more", source)
    try:
        _check_bounds(text, source)
        # S506: _StrictLoader is a SafeLoader.
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "cannot be read"
        raise _refuse(f"no valid YAML: {problem}{where}", source) from error
    except InvalidStrategyError:  # a ValueError too
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # unprintable characters, impossible dates and numbers
        raise _refuse(f"no valid YAML: {' '.join(str(error).split())[:200]}", source) from error


def _check_bounds(text: str, source: str) -> None:
    """Refuse what would make building the values expensive, before building any."""
    depth = num_nodes = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _refuse("a strategy may not use YAML aliases (*name); write the values out", source)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _refuse(f"a strategy may not use YAML tags ({event.tag}); write the plain value", source)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        num_nodes += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH:
            raise _refuse(f"a strategy may nest {MAX_DEPTH} levels deep, this one nests deeper", source)
        if num_nodes > MAX_NODES:
            raise _refuse(f"a strategy may have {MAX_NODES} values, this one has more", source)
