"""What the grammar knows of indicators: their signatures by name and alias.

How an indicator is computed is in `indicators/registry.py`; a test proves that the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from ktrdr_core.config.indicator_signature import (
    DEFAULT_SOURCE,
    LEVEL_OUTPUT,
    IndicatorSignature,
    OutputRule,
    ParameterRule,
    Parameters,
    ParameterValue,
    PriceSource,
    nearest,
    number_text,
)
from ktrdr_core.config.indicator_table import INDICATOR_TABLE
from ktrdr_core.errors import InvalidIndicatorError

__all__ = [
    "DEFAULT_SOURCE",
    "LEVEL_OUTPUT",
    "REPAINTING",
    "SIGNATURES",
    "IndicatorSignature",
    "OutputRule",
    "ParameterRule",
    "ParameterValue",
    "Parameters",
    "PriceSource",
    "canonical_indicator_name",
    "indicator_signature",
    "nearest",
    "number_text",
]

SIGNATURES: Mapping[str, IndicatorSignature] = {signature.name: signature for signature in INDICATOR_TABLE}

# Known by name, and no indicators: later bars change what they said of earlier ones.
REPAINTING: Mapping[str, str] = {
    "zigzag": "zigzag repaints: later bars move its last extreme, so a model would see the future; "
    "it is a source of labels (training.labels.source: zigzag), not an indicator",
}


def _squashed(name: str) -> str:
    """Return letters and digits in lower case, so that BollingerBands, bollinger-bands and bollinger_bands agree."""
    return "".join(filter(str.isalnum, name.casefold()))


_BY_SPELLING: Mapping[str, str] = {
    _squashed(spelling): signature.name
    for signature in SIGNATURES.values()
    for spelling in (signature.name, *signature.aliases)
}


def canonical_indicator_name(name: str) -> str:
    """Return the grammar's spelling of an indicator's name or alias; case, hyphens and underscores do not matter.

    Raises:
        InvalidIndicatorError: The grammar has no such indicator (the nearest one is named), or it repaints.
    """
    squashed = _squashed(name)
    if squashed in REPAINTING:
        raise InvalidIndicatorError(REPAINTING[squashed], field="name")
    if squashed in _BY_SPELLING:
        return _BY_SPELLING[squashed]
    spellings = [spelling for signature in SIGNATURES.values() for spelling in (signature.name, *signature.aliases)]
    hint = nearest(name, spellings)
    if hint.startswith("; known"):
        hint = nearest(name, list(SIGNATURES))
    shown = repr(name) if len(name) <= 60 else repr(name[:60]) + "..."
    raise InvalidIndicatorError(f"unknown indicator {shown}{hint}", field="name")


def indicator_signature(name: str) -> IndicatorSignature:
    """Return the signature of an indicator; errors as for `canonical_indicator_name`."""
    return SIGNATURES[canonical_indicator_name(name)]
