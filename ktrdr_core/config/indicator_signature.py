"""What a signature of an indicator is: parameters with their rules, outputs, and the check of what a file gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Literal

from ktrdr_core.errors import InvalidIndicatorError

ParameterValue = int | float
Parameters = Mapping[str, ParameterValue]
PriceSource = Literal["open", "high", "low", "close", "hl2", "hlc3", "ohlc4"]
DEFAULT_SOURCE: PriceSource = "close"
LEVEL_OUTPUT = "level"


@dataclass(frozen=True)
class ParameterRule:
    """A number with its default and range, both ends included.

    Attributes:
        name: Key in a strategy file.
        default: Value where the file gives none; a float makes the parameter a float.
        minimum: Smallest value.
        maximum: Largest value.
        aliases: Other keys people write.
    """

    name: str
    default: ParameterValue
    minimum: ParameterValue
    maximum: ParameterValue
    aliases: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return isinstance(self.default, int)

    def check(self, value: object, key: str) -> ParameterValue:
        """Return `value`, which the file gives under `key` (name or alias), as the parameter's type.

        Raises:
            InvalidIndicatorError: It is no such number or out of range; `field` is the key.
        """
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            kind = "whole number" if self.is_whole else "number"
            raise InvalidIndicatorError(f"{key} must be a {kind}, was {_shown(value)}", field=key)
        if not (self.minimum <= value <= self.maximum):  # also a NaN
            raise InvalidIndicatorError(
                f"{key} must be at least {number_text(self.minimum)} and at most {number_text(self.maximum)}, "
                f"was {_shown(value)}",
                field=key,
            )
        return value if self.is_whole else float(value)


@dataclass(frozen=True)
class OutputRule:
    """A series of values that an indicator gives.

    Attributes:
        name: After the dot in `feature_id.name`; of the primary output only for people.
        description: What it is, and its range or unit.
        is_overlay: It is a price drawn over the bars; fuzzy sets see close divided by it.
    """

    name: str
    description: str
    is_overlay: bool = False


@dataclass(frozen=True)
class IndicatorSignature:
    """Name, parameters and outputs of an indicator.

    Attributes:
        name: The name in a strategy file, lower case.
        title: Its name in words.
        description: What it says.
        reference: Where it was published.
        parameters: In the order in which they appear in a default feature_id.
        primary: What `feature_id` alone means.
        named: Other outputs; `feature_id.output` means them.
        warm_up: Leading values that are NaN, for checked parameters; the same for every output.
        flat: What bars without movement (or without volume) give.
        aliases: Other names for it.
        increasing: Parameters whose values must strictly increase in this order.
        not_above: Pairs of parameters of which the first must not exceed the second.
        takes_source: It is computed of one price, which `source` chooses.
        needs_volume: It says nothing on bars without volume.
    """

    name: str
    title: str
    description: str
    reference: str
    primary: OutputRule
    warm_up: Callable[[Parameters], int]
    flat: str
    parameters: tuple[ParameterRule, ...] = ()
    named: tuple[OutputRule, ...] = ()
    aliases: tuple[str, ...] = ()
    increasing: tuple[str, ...] = ()
    not_above: tuple[tuple[str, str], ...] = ()
    takes_source: bool = False
    needs_volume: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs beside the primary one."""
        return tuple(output.name for output in self.all_outputs[1:])

    @property
    def all_outputs(self) -> tuple[OutputRule, ...]:
        """The primary output, the named ones, and the primary one's price itself where that is an overlay."""
        level = OutputRule(LEVEL_OUTPUT, f"the {self.primary.name} as a price")
        return (self.primary, *self.named, *([level] if self.primary.is_overlay else []))

    def check(self, given: Mapping[str, object]) -> dict[str, ParameterValue]:
        """Return every parameter with its value, defaults filled in, in the signature's order.

        Raises:
            InvalidIndicatorError: A parameter is unknown, given twice, of another type, or out of range; `field` is
                its name.
        """
        keys = {key: rule.name for rule in self.parameters for key in (rule.name, *rule.aliases)}
        asked: dict[str, tuple[str, object]] = {}
        for key, value in given.items():
            if key not in keys:
                raise InvalidIndicatorError(self._unknown(key), field=str(key))
            if keys[key] in asked:
                other = asked[keys[key]][0]
                raise InvalidIndicatorError(
                    f"{other} and {key} are the same parameter of {self.name}; give one", field=key
                )
            asked[keys[key]] = (key, value)
        values = {
            rule.name: rule.check(asked[rule.name][1], asked[rule.name][0]) if rule.name in asked else rule.default
            for rule in self.parameters
        }
        for lower, upper in pairwise(self.increasing):
            self._check_order(values, lower, upper, is_strict=True)
        for lower, upper in self.not_above:
            self._check_order(values, lower, upper, is_strict=False)
        return values

    def check_source(self, source: object) -> None:
        """Refuse a `source` other than the default where the indicator is not computed of one price.

        Raises:
            InvalidIndicatorError: See above; `field` is "source".
        """
        if not self.takes_source and source != DEFAULT_SOURCE:
            raise InvalidIndicatorError(
                f"{self.name} is computed of whole bars and takes no source, was {_shown(source)}; remove it",
                field="source",
            )

    def default_feature_id(self, parameters: Parameters, source: object = DEFAULT_SOURCE) -> str:
        """Return the name of the values where the file gives none: `rsi_14`, `bbands_20_2p5`, `rsi_14_open`.

        Whole numbers always stand in it; the others all or none, none where they have their defaults.
        """
        fractions = [rule for rule in self.parameters if not rule.is_whole]
        is_usual = all(parameters[rule.name] == rule.default for rule in fractions)
        shown = [rule.name for rule in self.parameters if rule.is_whole or not is_usual]
        suffixes = [number_text(parameters[name]).replace(".", "p") for name in shown]
        return "_".join([self.name, *suffixes, *([] if source == DEFAULT_SOURCE else [str(source)])])

    def warm_up_bars(self, parameters: Parameters) -> int:
        """Return the leading values that are NaN in every output, for checked parameters."""
        return self.warm_up(parameters)

    def _unknown(self, key: object) -> str:
        if not self.parameters:
            return f"unknown parameter {_shown(key)} of {self.name}, which takes none; remove it"
        return f"unknown parameter {_shown(key)} of {self.name}{nearest(key, [r.name for r in self.parameters])}"

    def _check_order(self, values: Parameters, lower: str, upper: str, *, is_strict: bool) -> None:
        if values[lower] > values[upper] or (is_strict and values[lower] == values[upper]):
            rule = "be below" if is_strict else "not be above"
            raise InvalidIndicatorError(
                f"{lower} must {rule} {upper} ({number_text(values[upper])}), was {number_text(values[lower])}",
                field=lower,
            )


def number_text(value: ParameterValue) -> str:
    """Return `14`, `2`, `2.5`, `0.02`: never an exponent, no zeros at the end."""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:.10f}".rstrip("0").rstrip(".")


def nearest(word: object, known: list[str]) -> str:
    """Return a hint that names the known word nearest to `word`, else all that are known."""
    matches = get_close_matches(str(word).lower(), known, n=1, cutoff=0.6)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
