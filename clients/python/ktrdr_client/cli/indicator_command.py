"""`ktrdr indicators`: what a strategy's `indicators:` may name. Needs no backend."""

from __future__ import annotations

from typing import Any

from ktrdr_client.cli import json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_core.config.indicator_page import output_text, parameter_text
from ktrdr_core.config.signatures import REPAINTING, SIGNATURES, IndicatorSignature, indicator_signature


def list_indicators(session: CliSession) -> int:
    """List every indicator with its outputs, parameters and other names."""
    if session.is_json:
        for signature in SIGNATURES.values():
            session.write_json(json_lines.line("indicator", _fields(signature)))
        return ExitCode.OK
    from ktrdr_client.cli.tables import say_table

    rows = [
        (
            signature.name,
            ", ".join(map(output_text, signature.all_outputs)),
            ", ".join(map(parameter_text, signature.parameters)),
            ", ".join(signature.aliases),
        )
        for signature in SIGNATURES.values()
    ]
    say_table(session, ("name", "outputs", "parameters, default [range]", "also"), rows, empty="none")
    session.note("the first output is what a feature_id alone means; fuzzy sets see close divided by one marked /")
    for sentence in REPAINTING.values():
        session.note(sentence)
    return ExitCode.OK


def show_indicator(session: CliSession, name: str) -> int:
    """Show one indicator, by its name or an alias."""
    signature = indicator_signature(name)
    fields = _fields(signature)
    if session.is_json:
        session.write_json(json_lines.line("indicator", fields))
        return ExitCode.OK
    from ktrdr_client.cli.tables import say_fields

    session.say(f"{signature.name}: {signature.title}. {signature.description}")
    shown = {
        "also": ", ".join(signature.aliases),
        "default feature_id": str(fields["feature_id"]),
        "source": "close, or open, high, low, hl2, hlc3, ohlc4" if signature.takes_source else "none: uses whole bars",
        "volume": "needed" if signature.needs_volume else "",
        "warm-up": f"{fields['warm_up_bars']} bars with the defaults",
        "flat bars give": signature.flat,
        "published in": signature.reference,
    }
    for rule in signature.parameters:
        kind = "whole number" if rule.is_whole else "number"
        also = f", also {', '.join(rule.aliases)}" if rule.aliases else ""
        shown[f"parameter {rule.name}"] = f"{parameter_text(rule).removeprefix(rule.name).strip()}, {kind}{also}"
    for number, output in enumerate(signature.all_outputs):
        key = f"output {output.name}" if number else f"primary output {output.name}"
        shown[key] = output.description + ("; fuzzy sets see close divided by it" if output.is_overlay else "")
    say_fields(session, shown)
    return ExitCode.OK


def _fields(signature: IndicatorSignature) -> dict[str, Any]:
    defaults = signature.check({})
    return {
        "name": signature.name,
        "title": signature.title,
        "description": signature.description,
        "aliases": signature.aliases,
        "parameters": [
            {
                "name": rule.name,
                "default": rule.default,
                "minimum": rule.minimum,
                "maximum": rule.maximum,
                "is_whole": rule.is_whole,
                "aliases": rule.aliases,
            }
            for rule in signature.parameters
        ],
        "outputs": [
            {"name": output.name, "description": output.description, "is_overlay": output.is_overlay}
            for output in signature.all_outputs
        ],
        "takes_source": signature.takes_source,
        "needs_volume": signature.needs_volume,
        "feature_id": signature.default_feature_id(defaults),
        "warm_up_bars": signature.warm_up_bars(defaults),
        "flat": signature.flat,
        "reference": signature.reference,
    }
