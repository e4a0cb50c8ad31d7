"""Writes docs/indicators.md: `python -m ktrdr_core.config.indicator_page > docs/indicators.md`."""

from __future__ import annotations

import sys

from ktrdr_core.config.signatures import (
    REPAINTING,
    SIGNATURES,
    IndicatorSignature,
    OutputRule,
    ParameterRule,
    number_text,
)

_HEAD = """# Indicators

What `indicators:` of a strategy may name. This page is written from the signatures that check a strategy
(`python -m ktrdr_core.config.indicator_page > docs/indicators.md`); `ktrdr indicators` prints the same.

- **Names** do not depend on case, hyphens and underscores: `BollingerBands`, `bollinger-bands` and `bbands` are one.
- **Parameters** stand beside `name`. A parameter that does not exist, has another type or is out of its range is
  refused with its path. Other spellings of a parameter stand in brackets after it.
- **`source`** is `close` where it is not given, or `open`, `high`, `low`, `hl2` ((high + low) / 2), `hlc3`
  ((high + low + close) / 3), `ohlc4`. Only indicators of one price take it.
- **`feature_id`** is the name with its whole-number parameters, then the others unless all have their defaults, then
  the source unless it is close: `rsi_14`, `bbands_20`, `bbands_20_2p5`, `sma_20_high`. Give one of your own where two
  would be equal.
- **Outputs**: a fuzzy set keyed by the `feature_id` sees the first output; `macd_12_26_9.hist` names another.
- **Price overlays** (marked `/`) enter fuzzy sets, and raw features, as close divided by the value, at most 1,000: sets
  such as [0.98, 1.0, 1.02] fit every price. `level` is the price itself.
- **Warm-up**: the first bars of every output have no value and are dropped and counted, never filled. No other bar is
  without one: the column *flat* says what bars without movement or volume give.
- Every value depends on its bar and those before it. An exponential average remembers all of them: values from
  another first bar agree to 1e-8 after about 20 periods. `obv` and `ad_line` never do.

{repainting}

| name | outputs | parameters | warm-up | flat |
|---|---|---|---|---|
"""


def indicator_page() -> str:
    """Return the page as Markdown."""
    head = _HEAD.format(repainting="\n".join(f"{text}." for text in REPAINTING.values()))
    rows = "\n".join(_row(signature) for signature in SIGNATURES.values())
    sections = "\n".join(_section(signature) for signature in SIGNATURES.values())
    return f"{head}{rows}\n\n{sections}"


def parameter_text(rule: ParameterRule) -> str:
    """Return `period 14 [2, 10000]`: default and range."""
    return f"{rule.name} {number_text(rule.default)} [{number_text(rule.minimum)}, {number_text(rule.maximum)}]"


def output_text(output: OutputRule) -> str:
    """Return the output's name, with `/` where fuzzy sets see close divided by it."""
    return f"/{output.name}" if output.is_overlay else output.name


def _row(signature: IndicatorSignature) -> str:
    cells = (
        f"[`{signature.name}`](#{signature.name})",
        ", ".join(f"`{output_text(output)}`" for output in signature.all_outputs),
        ", ".join(parameter_text(rule) for rule in signature.parameters),
        str(signature.warm_up_bars(signature.check({}))),
        signature.flat,
    )
    return f"| {' | '.join(cells)} |"


def _section(signature: IndicatorSignature) -> str:
    defaults = signature.check({})
    feature_id, warm_up = signature.default_feature_id(defaults), signature.warm_up_bars(defaults)
    lines = [
        f"## {signature.name}",
        "",
        f"{signature.title[0].upper()}{signature.title[1:]}. {signature.description}",
        "",
        f"- Default feature_id: `{feature_id}`; warm-up with the defaults: {warm_up} bars.",
    ]
    if signature.aliases:
        lines.append(f"- Also: {', '.join(f'`{alias}`' for alias in signature.aliases)}.")
    for rule in signature.parameters:
        kind = "whole number" if rule.is_whole else "number"
        also = f" (also {', '.join(f'`{alias}`' for alias in rule.aliases)})" if rule.aliases else ""
        lines.append(f"- Parameter {parameter_text(rule)}, {kind}{also}.")
    if signature.increasing:
        lines.append(f"- {' must be below '.join(f'`{name}`' for name in signature.increasing)}.")
    lines += [f"- `{lower}` must not be above `{upper}`." for lower, upper in signature.not_above]
    if signature.takes_source:
        lines.append("- Takes `source`.")
    if signature.needs_volume:
        lines.append("- Needs bars with a volume.")
    for number, output in enumerate(signature.all_outputs):
        which = "Primary output" if number == 0 else "Output"
        overlay = "; fuzzy sets see close divided by it" if output.is_overlay else ""
        lines.append(f"- {which} `{output.name}`: {output.description}{overlay}.")
    lines += [f"- Flat: {signature.flat}.", f"- Source: {signature.reference}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(indicator_page())
