"""What the sections of a strategy file share: the base class and the kinds of values.

Every section is frozen, refuses unknown keys, and checks its own rules.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from ktrdr_core.config.naming import NAME_RULE, is_name


def _named(value: str) -> str:
    if not is_name(value):
        raise PydanticCustomError("name", "must be {rule}", {"rule": NAME_RULE})
    return value


Name = Annotated[str, Field(strict=True), AfterValidator(_named)]
Identifier = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Text = Annotated[str, StringConstraints(strict=True, max_length=20_000)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]  # neither 1 nor "yes" is one
Rate = Annotated[float, Field(strict=True, gt=0, lt=10, allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Epochs = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class Section(BaseModel):
    """A mapping of the file: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
