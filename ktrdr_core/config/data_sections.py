"""`training_data` and `deployment` of a strategy file, and the words about it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.section import Name, Section, Text


class SymbolsConfig(Section):
    """Instruments: `single` with one, `multi_symbol` with a list.

    Attributes:
        sampling: `balanced` shows each symbol equally often in an epoch, `proportional` as often as it has rows.
    """

    mode: Literal["single", "multi_symbol"] = "single"
    list: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=1_000)
    symbol: Name | None = None
    sampling: Literal["balanced", "proportional"] = "balanced"

    @property
    def names(self) -> tuple[str, ...]:
        return self.list if self.list is not None else (self.symbol or "",)

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        _check_choice(self.mode, "single", self.list, "list", self.symbol, "symbol")
        return self


class TimeframesConfig(Section):
    """Bar lengths: `single` with one, `multi_timeframe` with a list and the base one among them.

    A row is a bar of the base timeframe (by default the shortest); the longer ones contribute their last closed bar.
    """

    mode: Literal["single", "multi_timeframe"] = "single"
    list: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=20)
    timeframe: Name | None = None
    base_timeframe: Name | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.list if self.list is not None else (self.timeframe or "",)

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        _check_choice(self.mode, "single", self.list, "list", self.timeframe, "timeframe")
        if self.base_timeframe is not None and self.base_timeframe not in self.names:
            raise PydanticCustomError(
                "base_timeframe",
                "base_timeframe must be one of {names}, was {base}",
                {"names": ", ".join(self.names), "base": self.base_timeframe},
            )
        return self


def _check_choice(
    mode: str,
    single: str,
    several: tuple[str, ...] | None,
    several_key: str,
    one: str | None,
    one_key: str,
) -> None:
    context = {"several": several_key, "one": one_key, "single": single, "mode": mode}
    if several is not None and one is not None:
        raise PydanticCustomError("choice", "give either {several} or {one}, not both", context)
    if several is None and one is None:
        key = one_key if mode == single else several_key
        raise PydanticCustomError("choice", "{key} is missing (mode is {mode})", {**context, "key": key})
    if several is None and mode != single:
        raise PydanticCustomError("choice", "mode {mode} needs {several}, not {one}", context)
    if several is not None and mode == single and len(several) > 1:
        raise PydanticCustomError("choice", "mode {single} takes one name; {several} has several", context)
    if several is not None and len(set(several)) != len(several):
        raise PydanticCustomError("choice", "{several} names the same one twice", context)


class TrainingDataConfig(Section):
    """What to train on; `history_required` bars must exist in the range that is trained on."""

    symbols: SymbolsConfig
    timeframes: TimeframesConfig
    history_required: Annotated[int, Field(strict=True, ge=0, le=100_000_000)] = 0


class DeploymentTarget(Section):
    """Where a trained model is meant to be used; kept with the model, no rule of the training reads it."""

    mode: Name | None = None
    list: tuple[Name, ...] | None = None
    supported: tuple[Name, ...] | None = None


class DeploymentConfig(Section):
    target_symbols: DeploymentTarget | tuple[Name, ...] | None = None
    target_timeframes: DeploymentTarget | tuple[Name, ...] | None = None


class Header(Section):
    """The words about a strategy."""

    name: Name
    description: Text = ""
    version: Text = "1.0"
    hypothesis: Text = ""
    scope: Text = ""

    @field_validator("version", mode="before")
    @classmethod
    def _version_text(cls, value: Any) -> Any:
        """YAML reads `version: 2.0` as a number."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else value
