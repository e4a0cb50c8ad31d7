"""docs/strategies.md against the grammar: every key with type and default, nothing else, and examples that parse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.strategy import StrategyConfig
from tests.kit.builders import strategy_text
from tests.kit.cli import ROOT
from tests.kit.documents import fenced_blocks, tables

PAGE = ROOT / "docs" / "strategies.md"
EXAMPLES = [block for blocks in fenced_blocks(PAGE, "yaml").values() for block in blocks]
COLUMNS = ["key", "type", "default", "meaning"]

SCHEMA = StrategyConfig.model_json_schema()
# The loader turns what a file says into these; the page tells what the file says.
AS_WRITTEN = {("indicators", "feature_id"): "see below"}
NOT_WRITTEN = {("indicators", "parameters")}


def _variants(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a property may be, but for null."""
    return [variant for variant in schema.get("anyOf", [schema]) if variant.get("type") != "null"]


def _model_below(schema: dict[str, Any]) -> tuple[str, str] | None:
    """Return the suffix of the path at which the keys of a property are, and the name of their model."""
    for variant in _variants(schema):
        for suffix, place in (("", variant), ("", variant.get("items", {}))):
            if "$ref" in place:
                return suffix, place["$ref"].rpartition("/")[2]
        sets = variant.get("additionalProperties", {})
        for place in sets.get("patternProperties", {}).values() if isinstance(sets, dict) else ():
            return ".VALUES.SET", place["$ref"].rpartition("/")[2]
    return None


def _sections(path: str, schema: dict[str, Any], seen: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each section's path and schema; one that stands at two places, at the first."""
    yield path, schema
    for key, own in schema["properties"].items():
        below = _model_below(own)
        if below is not None and below[1] not in seen:
            seen.add(below[1])
            yield from _sections(f"{path}.{key}{below[0]}".lstrip("."), SCHEMA["$defs"][below[1]], seen)


SECTIONS = dict(_sections("", SCHEMA, set()))


def _range(schema: dict[str, Any]) -> str:
    lower = f"[{schema['minimum']:g}" if "minimum" in schema else f"({schema['exclusiveMinimum']:g}"
    if "maximum" in schema:
        return f"{lower}, {schema['maximum']:.12g}]"
    return f"{lower}, {schema['exclusiveMaximum']:g})" if "exclusiveMaximum" in schema else f"{lower}, inf)"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema or schema.get("type") == "object":
        return "section"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{choice}`" for choice in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "boolean":
            return "true, false"
        case "string":
            return "text"
        case "array":
            inner = _type(schema["items"])
            word, _, rest = inner.partition(" ")
            return f"list of {word if word == 'text' else word + 's'} {rest}".strip()
        case number:
            return f"{number} {_range(schema)}" if len(schema.keys() - {"type", "default", "title"}) else str(number)


def _default(key: str, section: dict[str, Any]) -> str:
    schema = section["properties"][key]
    if key in section.get("required", ()):
        return "needed"
    value = schema.get("default")
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "its defaults"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return str(value).lower() if isinstance(value, bool | list) else f"{value:g}"


def _expected_rows(path: str) -> dict[str, list[str]]:
    section = SECTIONS[path]
    return {
        f"`{key}`": [
            " or ".join(_type(variant) for variant in _variants(schema)),
            AS_WRITTEN.get((path, key), _default(key, section)),
        ]
        for key, schema in section["properties"].items()
        if (path, key) not in NOT_WRITTEN
    }


def _told_rows(path: str) -> dict[str, list[str]]:
    found = tables(PAGE)[f"`{path}`" if path else "The whole file"]
    (rows,) = [table for table in found if table[0] == COLUMNS]
    assert all(row[3] for row in rows[1:])
    return {row[0]: row[1:3] for row in rows[1:]}


@pytest.mark.parametrize("path", SECTIONS, ids=lambda path: path or "strategy")
def test_every_key_stands_on_the_page_with_its_type_and_default(path: str) -> None:
    assert _told_rows(path) == _expected_rows(path)


def test_the_page_has_no_section_that_the_grammar_has_not() -> None:
    told = {heading for heading, found in tables(PAGE).items() if any(table[0] == COLUMNS for table in found)}
    assert told == {f"`{path}`" if path else "The whole file" for path in SECTIONS}


def test_every_path_named_in_the_text_exists() -> None:
    keys = {f"{path}.{key}".lstrip(".") for path, section in SECTIONS.items() for key in section["properties"]}
    tops = "|".join(SCHEMA["properties"])
    named = set(re.findall(rf"`(?:--set )?((?:{tops})\.[a-z_.]+)", PAGE.read_text()))
    assert "model.training.epochs" in named
    assert named - {"fuzzy_sets."} <= keys


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[0])
def test_every_example_is_part_of_a_valid_strategy(example: str) -> None:
    fragment = yaml.safe_load(example)
    whole = yaml.safe_load(strategy_text())
    assert fragment.keys() <= SCHEMA["properties"].keys()
    if "label" not in example and "output_format" not in example:
        whole["decisions"] = {}
    strategy_from_dict({**whole, **fragment})


def test_examples_show_every_membership_function_label_source_and_validation_method() -> None:
    text = "\n".join(EXAMPLES)
    shown = set(re.findall(r"(?:type|source|method): (\w+)", text))
    defs = SCHEMA["$defs"]
    for name, key in (("FuzzySetConfig", "type"), ("LabelsConfig", "source")):
        assert set(defs[name]["properties"][key]["enum"]) - shown <= {"zigzag"}
    assert {"walk_forward", "purged_k_fold"} <= shown
