"""`training` and `validation` of a strategy file: labels, splits, folds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.section import Flag, Section, Share

SPLIT_TOLERANCE = 1e-6


# Keys of each label source beside source, label_lookahead and allow_degenerate_labels: needed, then optional.
_LABEL_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "zigzag": (("zigzag_threshold",), ()),
    "zigzag_segments": (("zigzag_threshold",), ()),
    "triple_barrier": (("profit_barrier", "loss_barrier"), ("volatility_period",)),
    "forward_return": (("buy_threshold", "sell_threshold"), ()),
}


class LabelsConfig(Section):
    """What a row is labelled with.

    Attributes:
        source: The labeler: `zigzag` (the larger extreme within the horizon), `zigzag_segments` (direction of the leg
            between two confirmed extremes), `triple_barrier`, `forward_return`.
        label_lookahead: Bars ahead that a label may look at (its horizon).
        zigzag_threshold: Move that makes an extreme, as a fraction: 0.005 is half a per cent.
        profit_barrier: Rise of the close that makes a BUY: a fraction, or a multiple of the volatility.
        loss_barrier: Fall of the close that makes a SELL; likewise.
        volatility_period: Makes the barriers multiples of the standard deviation of that many one-bar returns.
        buy_threshold: Forward return from which on a row is a BUY, above 0.
        sell_threshold: Forward return, taken positive, from which on a row is a SELL: 0.001 means -0.1 %.
        allow_degenerate_labels: Train even if a class is missing or has over 95 % of the rows.
    """

    source: Literal["zigzag", "zigzag_segments", "triple_barrier", "forward_return"] = "zigzag"
    label_lookahead: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    zigzag_threshold: Share | None = None
    profit_barrier: Annotated[float, Field(strict=True, gt=0, le=1_000, allow_inf_nan=False)] | None = None
    loss_barrier: Annotated[float, Field(strict=True, gt=0, le=1_000, allow_inf_nan=False)] | None = None
    volatility_period: Annotated[int, Field(strict=True, ge=2, le=10_000)] | None = None
    buy_threshold: Share | None = None
    sell_threshold: Share | None = None
    allow_degenerate_labels: Flag = False

    @model_validator(mode="after")
    def _keys_of_source(self) -> Self:
        needed, optional = _LABEL_KEYS[self.source]
        for key in needed:
            if getattr(self, key) is None:
                shown = {"source": self.source, "needed": " and ".join(needed), "key": key}
                raise PydanticCustomError(f"at:{key}", "labels from {source} need {needed}; {key} is missing", shown)
        for key in (key for keys in _LABEL_KEYS.values() for group in keys for key in group):
            if key not in (*needed, *optional) and getattr(self, key) is not None:
                shown = {"source": self.source, "key": key}
                raise PydanticCustomError(f"at:{key}", "labels from {source} take no {key}; remove it", shown)
        if self.volatility_period is None and max(self.profit_barrier or 0, self.loss_barrier or 0) >= 1:
            raise PydanticCustomError(
                "at:profit_barrier", "barriers without volatility_period are fractions below 1", {"source": self.source}
            )
        return self


class DataSplitConfig(Section):
    """Chronological shares of train, validation and test; they sum to 1.

    Attributes:
        embargo_bars: Bars left out at the start of validation and test, beyond the purge.
    """

    train: Share
    validation: Share
    test: Share
    embargo_bars: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > SPLIT_TOLERANCE:
            raise PydanticCustomError(
                "split", "train + validation + test must be 1, was {total}", {"total": round(total, 6)}
            )
        return self


class ValidationConfig(Section):
    """How else the strategy is judged, fold by fold, on the rows before the test part.

    Attributes:
        method: `walk_forward` trains on the past and judges the next stretch, again and again; `purged_k_fold` judges
            each stretch by a model of all the others, purged and with an embargo (Lopez de Prado, 2018);
            `repeated_seeds` trains on the split itself with other seeds, to show the spread.
        folds: Stretches; seeds for `repeated_seeds`.
        window: Of `walk_forward`: `expanding` trains on all the past, `rolling` on as much as the first fold had.
        embargo_bars: Of `purged_k_fold`: bars after a judged stretch that its fold does not train on.
        seeds: Trainings of each fold with seeds of their own; their metrics are reported one by one.
    """

    method: Literal["walk_forward", "purged_k_fold", "repeated_seeds"]
    folds: Annotated[int, Field(strict=True, ge=2, le=64)] = 5
    window: Literal["expanding", "rolling"] | None = None
    embargo_bars: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0
    seeds: Annotated[int, Field(strict=True, ge=1, le=64)] = 1

    @model_validator(mode="after")
    def _keys_of_method(self) -> Self:
        if self.window is not None and self.method != "walk_forward":
            raise PydanticCustomError(
                "at:window", "window belongs to walk_forward, not to {method}", {"method": self.method}
            )
        if self.embargo_bars and self.method != "purged_k_fold":
            raise PydanticCustomError(
                "at:embargo_bars", "embargo_bars belongs to purged_k_fold, not to {method}", {"method": self.method}
            )
        if self.method == "repeated_seeds" and self.seeds != 1:
            raise PydanticCustomError("at:seeds", "repeated_seeds takes folds (how many seeds), not seeds", {})
        return self


class TrainingConfig(Section):
    method: Literal["supervised"] = "supervised"
    labels: LabelsConfig
    data_split: DataSplitConfig | None = None
