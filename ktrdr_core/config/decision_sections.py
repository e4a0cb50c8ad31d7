"""`decisions` of a strategy file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.section import Flag, NonNegativeNumber, Section


class TradingHours(Section):
    """Hours of the day, UTC, in which signals count: `start` <= hour < `end`; 22 to 4 goes over midnight."""

    start: Annotated[int, Field(strict=True, ge=0, le=23)]
    end: Annotated[int, Field(strict=True, ge=1, le=24)]

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.start == self.end:
            raise PydanticCustomError("at:end", "end must differ from start, was {hour}", {"hour": self.end})
        return self


class FiltersConfig(Section):
    """Conditions under which a signal becomes HOLD.

    Attributes:
        min_separation: The best probability must be this far above the second.
        volume_filter: Drop signals at bars whose volume is below the mean of the 20 bars up to them.
        min_range: Drop signals at bars whose (high - low) / close is below this.
        trading_hours: Drop signals at bars that close outside these hours.
    """

    min_separation: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    volume_filter: Flag = False
    min_range: NonNegativeNumber = 0.0
    trading_hours: TradingHours | None = None


class DecisionsConfig(Section):
    """How a trained model's answers become signals.

    Attributes:
        output_format: `classification`: the network answers BUY, HOLD, SELL; `regression`: the forward return, which
            the thresholds of the labels turn into a class.
        confidence_threshold: A signal whose probability is below it is HOLD.
        position_awareness: HOLD keeps the open position, and a signal that repeats it is HOLD; otherwise HOLD is flat.
        filters: Conditions under which a signal is dropped.
        cost_bps: Cost of opening or closing a position, in basis points of its value, for the evaluation of signals.
    """

    output_format: Literal["classification", "regression"] = "classification"
    confidence_threshold: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    position_awareness: Flag = False
    filters: FiltersConfig = FiltersConfig()
    cost_bps: Annotated[float, Field(strict=True, ge=0, le=1_000, allow_inf_nan=False)] = 1.0
