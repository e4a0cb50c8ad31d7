"""What the grammar knows of each indicator: its name, parameters and outputs.

How an indicator is computed is in `indicators/registry.py`; a test proves that the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from ktrdr_core.errors import InvalidIndicatorError, UnsupportedError

ParameterValue = int | float
PriceSource = Literal["open", "high", "low", "close"]


@dataclass(frozen=True)
class ParameterRule:
    """A whole-number parameter with its default and range, both ends included."""

    name: str
    default: int
    minimum: int
    maximum: int = 10_000


@dataclass(frozen=True)
class IndicatorSignature:
    """Name, aliases, parameters and named secondary outputs of an indicator.

    Attributes:
        name: The name in a strategy file, lower case.
        aliases: Other names for it.
        parameters: In the order in which they appear in a default feature_id.
        outputs: Named outputs beside the primary one; `feature_id.output` names them.
        increasing: Parameters whose values must strictly increase in this order.
    """

    name: str
    parameters: tuple[ParameterRule, ...]
    outputs: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    increasing: tuple[str, ...] = ()

    def check(self, given: Mapping[str, object]) -> dict[str, ParameterValue]:
        """Return every parameter with its value, defaults filled in, in the signature's order.

        Raises:
            InvalidIndicatorError: A parameter is unknown, no whole number, or out of range; `field` is its name.
        """
        known = [rule.name for rule in self.parameters]
        for key in given:
            if key not in known:
                raise InvalidIndicatorError(
                    f"unknown parameter {key!r} of {self.name}{nearest(key, known)}", field=str(key)
                )
        values: dict[str, ParameterValue] = {}
        for rule in self.parameters:
            value = given.get(rule.name, rule.default)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidIndicatorError(f"{rule.name} must be a whole number, was {value!r}", field=rule.name)
            if not rule.minimum <= value <= rule.maximum:
                raise InvalidIndicatorError(
                    f"{rule.name} must be at least {rule.minimum} and at most {rule.maximum}, was {value}",
                    field=rule.name,
                )
            values[rule.name] = value
        for lower, upper in zip(self.increasing, self.increasing[1:], strict=False):
            if values[lower] >= values[upper]:
                raise InvalidIndicatorError(
                    f"{lower} must be below {upper} ({values[upper]}), was {values[lower]}", field=lower
                )
        return values


SIGNATURES: Mapping[str, IndicatorSignature] = {
    signature.name: signature
    for signature in (
        IndicatorSignature(
            name="rsi",
            aliases=("relative_strength_index",),
            parameters=(ParameterRule("period", default=14, minimum=2),),
        ),
        IndicatorSignature(
            name="macd",
            aliases=("moving_average_convergence_divergence",),
            parameters=(
                ParameterRule("fast_period", default=12, minimum=2),
                ParameterRule("slow_period", default=26, minimum=3),
                ParameterRule("signal_period", default=9, minimum=2),
            ),
            outputs=("signal", "hist"),
            increasing=("fast_period", "slow_period"),
        ),
    )
}

# Names the grammar allows that this version does not compute; preflight refuses them by name.
NOT_BUILT_INDICATORS: frozenset[str] = frozenset(
    {
        "ad",
        "adx",
        "aroon",
        "atr",
        "bbands",
        "bollinger_bands",
        "cci",
        "cmf",
        "dema",
        "donchian_channels",
        "ema",
        "ichimoku",
        "keltner_channels",
        "mfi",
        "momentum",
        "obv",
        "parabolic_sar",
        "roc",
        "sma",
        "stochastic",
        "supertrend",
        "tema",
        "volume_ratio",
        "vwap",
        "williams_r",
        "wma",
        "zigzag",
    }
)

_BY_NAME: Mapping[str, IndicatorSignature] = {
    name: signature for signature in SIGNATURES.values() for name in (signature.name, *signature.aliases)
}


def nearest(word: object, known: list[str]) -> str:
    """Return a hint that names the known word nearest to `word`, else all that are known."""
    matches = get_close_matches(str(word).lower(), known, n=1, cutoff=0.6)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def canonical_indicator_name(name: str) -> str:
    """Return the grammar's spelling of an indicator's name or alias.

    Raises:
        InvalidIndicatorError: The grammar has no such indicator; the nearest one is named.
    """
    lowered = name.lower()
    if lowered in _BY_NAME:
        return _BY_NAME[lowered].name
    if lowered in NOT_BUILT_INDICATORS:
        return lowered
    known = [*SIGNATURES, *sorted(NOT_BUILT_INDICATORS)]
    raise InvalidIndicatorError(f"unknown indicator {name!r}{nearest(name, known)}", field="name")


def indicator_signature(name: str) -> IndicatorSignature:
    """Return the signature of an indicator this version computes.

    Raises:
        InvalidIndicatorError: The grammar has no such indicator.
        UnsupportedError: The grammar has it; this version does not compute it.
    """
    canonical = canonical_indicator_name(name)
    if canonical in NOT_BUILT_INDICATORS:
        raise UnsupportedError(
            f"indicator {canonical!r} is not built yet; this version computes {', '.join(SIGNATURES)}", field="name"
        )
    return SIGNATURES[canonical]
