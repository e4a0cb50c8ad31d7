"""What may be asked of a model store, and what it answers about its files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from ktrdr_core.config.naming import check_name
from ktrdr_core.errors import InvalidInputError

if TYPE_CHECKING:
    from ktrdr_core.storage.stored_model import ModelSummary

MAX_PAGE_MODELS = 1000


class ModelOrder(StrEnum):
    """Order of a list of models; equal ones are newest first."""

    NEWEST = "newest"
    NAME = "name"
    TEST_ACCURACY = "accuracy"
    TEST_F1 = "f1"
    VALIDATION_LOSS = "val-loss"
    SIZE = "size"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelQuery:
    """Which models, and in which order; a filter that is empty or None lets all pass.

    Attributes:
        strategy_name, training_id: Of the model.
        symbol, timeframe: One of those it was trained on.
        alias: One that points at it.
        series_digest: `SeriesDigest.digest` of bars it was trained on.
        start_time: Published then or later; aware.
        end_time: Published before; aware.
        order: Best or newest first; by name ascending.
        kept_aside: Ask for the artifacts that are kept aside, instead of the versions.
    """

    strategy_name: str = ""
    symbol: str = ""
    timeframe: str = ""
    training_id: str = ""
    alias: str = ""
    series_digest: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    order: ModelOrder = ModelOrder.NEWEST
    kept_aside: bool = False

    def check(self) -> None:
        """Raise unless the filters are something a model can have.

        Raises:
            InvalidInputError: A filter is no name, or a time has no time zone.
        """
        for field in ("strategy_name", "symbol", "timeframe", "training_id", "alias", "series_digest"):
            if value := getattr(self, field):
                check_name(value, field=field, what=field.replace("_", " "), error_class=InvalidInputError)
        for field in ("start_time", "end_time"):
            time: datetime | None = getattr(self, field)
            if time is not None and time.tzinfo is None:
                raise InvalidInputError(f"{field} must have a time zone, was {time.isoformat()}", field=field)


@dataclass(frozen=True, slots=True)
class ModelPage:
    """Some models, and the token of those that follow; "" at the end."""

    models: list[ModelSummary]
    next: str


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What was found of one file of a version; a `problem` of "" means that it is what was published."""

    name: str
    problem: str
