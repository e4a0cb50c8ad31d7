"""`fuzzy_sets` of a strategy file."""

from __future__ import annotations

import itertools
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.section import Identifier, Number, Section

# Points of a membership function in non-decreasing order: how many each type takes.
_ORDERED_POINTS = {"triangular": 3, "trapezoidal": 4, "left_shoulder": 2, "right_shoulder": 2}
# Other parameters: their names.
_NAMED_PARAMETERS = {
    "gaussian": ("mean", "sigma"),
    "generalised_bell": ("width", "slope", "centre"),
    "sigmoid": ("slope", "centre"),
}
_SET_TYPE_ALIASES = {
    "bell": "generalised_bell",
    "gbell": "generalised_bell",
    "generalized_bell": "generalised_bell",
    "triangle": "triangular",
    "trapezoid": "trapezoidal",
    "gauss": "gaussian",
}


class FuzzySetConfig(Section):
    """One fuzzy set: a membership function and its parameters.

    triangular [a, b, c] and trapezoidal [a, b, c, d] take points in non-decreasing order, the first below the last;
    left_shoulder [a, b] is 1 up to a and 0 from b on, right_shoulder its mirror image; gaussian [mean, sigma];
    generalised_bell [width, slope, centre]: 1 / (1 + |(x - centre) / width| ** (2 slope)); sigmoid [slope, centre]:
    1 / (1 + exp(-slope (x - centre))), falling where the slope is negative.

    quantile takes two to four levels in [0, 1] instead of values: they become the values that have these shares of the
    training part below them, and the set a shoulder, a triangle or a trapezoid.

    Attributes:
        type: The membership function.
        parameters: See above.
        shoulder: For quantile with two levels, which side stays at 1.
    """

    type: Literal[
        "triangular",
        "trapezoidal",
        "left_shoulder",
        "right_shoulder",
        "gaussian",
        "generalised_bell",
        "sigmoid",
        "quantile",
    ]
    parameters: tuple[Number, ...] = Field(min_length=1, max_length=8)
    shoulder: Literal["left", "right"] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _canonical_type(cls, value: Any) -> Any:
        return _SET_TYPE_ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        shown = {"type": self.type, "values": str(list(self.parameters))}
        if self.type == "quantile":
            self._check_quantile(shown)
        elif self.shoulder is not None:
            raise PydanticCustomError("at:shoulder", "shoulder belongs to quantile, not to {type}", shown)
        elif self.type in _ORDERED_POINTS:
            self._check_points(_ORDERED_POINTS[self.type], shown)
        else:
            self._check_named(_NAMED_PARAMETERS[self.type], shown)
        return self

    def _check_quantile(self, shown: dict[str, Any]) -> None:
        if not 2 <= len(self.parameters) <= 4:
            raise PydanticCustomError("at:parameters", "{type} takes 2 to 4 levels, was {values}", shown)
        if min(self.parameters) < 0 or max(self.parameters) > 1:
            raise PydanticCustomError("at:parameters", "{type} levels must be in [0, 1], was {values}", shown)
        if (len(self.parameters) == 2) != (self.shoulder is not None):
            raise PydanticCustomError(
                "at:shoulder", "{type} with two levels needs shoulder: left or right, and no other does", shown
            )
        self._check_points(len(self.parameters), shown)

    def _check_points(self, count: int, shown: dict[str, Any]) -> None:
        if len(self.parameters) != count:
            raise PydanticCustomError(
                "at:parameters", "{type} takes {count} parameters, was {values}", {**shown, "count": count}
            )
        if any(left > right for left, right in itertools.pairwise(self.parameters)):
            raise PydanticCustomError("at:parameters", "{type} parameters must not decrease, was {values}", shown)
        if self.parameters[0] == self.parameters[-1]:
            raise PydanticCustomError(
                "at:parameters", "the first of {type} parameters must be below the last, was {values}", shown
            )

    def _check_named(self, names: tuple[str, ...], shown: dict[str, Any]) -> None:
        shown["names"] = ", ".join(names)
        if len(self.parameters) != len(names):
            raise PydanticCustomError("at:parameters", "{type} takes [{names}], was {values}", shown)
        values = dict(zip(names, self.parameters, strict=True))
        for name in ("sigma", "width"):
            if values.get(name, 1.0) <= 0:
                raise PydanticCustomError(
                    "at:parameters",
                    "{name} of {type} must be above 0, was {value}",
                    {**shown, "name": name, "value": values[name]},
                )
        if self.type == "generalised_bell" and values["slope"] <= 0:
            raise PydanticCustomError("at:parameters", "slope of {type} must be above 0, was {values}", shown)
        if values.get("slope") == 0:
            raise PydanticCustomError("at:parameters", "slope of {type} must not be 0, was {values}", shown)


FuzzySets = dict[Identifier, FuzzySetConfig]
