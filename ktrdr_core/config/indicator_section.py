"""`indicators` of a strategy file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.section import Identifier, Name, Section
from ktrdr_core.config.signatures import SIGNATURES, ParameterValue, PriceSource, indicator_signature
from ktrdr_core.errors import InvalidIndicatorError


class IndicatorConfig(Section):
    """One indicator with every parameter resolved.

    In the file its parameters stand beside `name`: `{name: rsi, period: 14, source: close}`.

    Attributes:
        name: Canonical name.
        feature_id: Name of its values; defaults to the name, its parameters and, unless close, its source.
        source: Price it is computed from.
        timeframes: Bar lengths it is computed on; None means all of the strategy.
        parameters: In the signature's order, defaults filled in.
    """

    name: str
    feature_id: Identifier
    source: PriceSource = "close"
    timeframes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=20)] | None = None
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_parameters(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise PydanticCustomError("mapping", "must be a mapping with a name")
        fields = dict(raw)
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise PydanticCustomError("at:name", "name must be an indicator's name")
        feature_id, source = fields.pop("feature_id", None), fields.pop("source", "close")
        timeframes = fields.pop("timeframes", None)
        try:
            signature = indicator_signature(name)
            parameters = signature.check(fields)
            signature.check_source(source)
        except InvalidIndicatorError as error:
            field = error.violations[0].field
            raise PydanticCustomError(f"at:{field}", "{text}", {"text": error.message}) from error
        if feature_id is None:
            feature_id = signature.default_feature_id(parameters, source)
        resolved = {"name": signature.name, "feature_id": feature_id, "source": source, "parameters": parameters}
        return resolved if timeframes is None else {**resolved, "timeframes": timeframes}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        flat = {"name": self.name, "feature_id": self.feature_id, "source": self.source, **self.parameters}
        return flat if self.timeframes is None else {**flat, "timeframes": list(self.timeframes)}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its values: `feature_id`, then `feature_id.output` of each named output."""
        return (self.feature_id, *(f"{self.feature_id}.{output}" for output in SIGNATURES[self.name].outputs))
