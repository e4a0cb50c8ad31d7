"""A strategy file of grammar v2 as one immutable value."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.sections import (
    ArchitectureConfig,
    DataSplitConfig,
    DecisionsConfig,
    DeploymentConfig,
    DeploymentTarget,
    FeaturesConfig,
    FuzzySetConfig,
    FuzzySets,
    Header,
    IndicatorConfig,
    LabelsConfig,
    ModelConfig,
    OptimisationConfig,
    SymbolsConfig,
    TimeframesConfig,
    TrainingConfig,
    TrainingDataConfig,
)
from ktrdr_core.config.signatures import SIGNATURES, nearest

__all__ = [
    "ArchitectureConfig",
    "DataSplitConfig",
    "DecisionsConfig",
    "DeploymentConfig",
    "DeploymentTarget",
    "FeaturesConfig",
    "FuzzySetConfig",
    "IndicatorConfig",
    "LabelsConfig",
    "ModelConfig",
    "OptimisationConfig",
    "StrategyConfig",
    "SymbolsConfig",
    "TimeframesConfig",
    "TrainingConfig",
    "TrainingDataConfig",
]


class StrategyConfig(Header):
    """The whole file, every default resolved.

    `fuzzy_sets` is keyed by the values the sets apply to (`rsi_14`, `macd_12_26_9.signal`), whichever of the
    permitted spellings the file uses (`rsi`, `macd.signal`, a feature_id).
    """

    training_data: TrainingDataConfig
    deployment: DeploymentConfig = DeploymentConfig()
    indicators: list[IndicatorConfig] = Field(min_length=1, max_length=500)
    fuzzy_sets: dict[str, Annotated[FuzzySets, Field(min_length=1, max_length=100)]] = Field(min_length=1)
    model: ModelConfig
    decisions: DecisionsConfig = DecisionsConfig()
    training: TrainingConfig

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.training_data.symbols.names

    @property
    def timeframes(self) -> tuple[str, ...]:
        return self.training_data.timeframes.names

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `strategy_from_dict` reads them back equal."""
        return self.model_dump(mode="json", exclude_none=True)

    @field_validator("indicators", mode="after")
    @classmethod
    def _told_apart(cls, indicators: list[IndicatorConfig]) -> list[IndicatorConfig]:
        seen: dict[str, int] = {}
        for index, indicator in enumerate(indicators):
            if indicator.feature_id in seen:
                raise PydanticCustomError(
                    f"at:{index}.feature_id",
                    "feature_id {id} is already that of indicators[{first}]; give one of them another feature_id",
                    {"id": indicator.feature_id, "first": seen[indicator.feature_id]},
                )
            seen[indicator.feature_id] = index
        return indicators

    @field_validator("fuzzy_sets", mode="after")
    @classmethod
    def _keyed_by_values(cls, fuzzy_sets: dict[str, FuzzySets], info: ValidationInfo) -> dict[str, FuzzySets]:
        indicators: list[IndicatorConfig] | None = info.data.get("indicators")
        if indicators is None:  # they have violations of their own
            return fuzzy_sets
        keyed: dict[str, FuzzySets] = {}
        for key, sets in fuzzy_sets.items():
            target = _resolve(key, indicators)
            if target in keyed:
                raise PydanticCustomError(
                    f"at:{key}", "{key} and another key both name the values {target}", {"key": key, "target": target}
                )
            keyed[target] = sets
        for indicator in indicators:
            if not any(_belongs(key, indicator) for key in keyed):
                raise PydanticCustomError(
                    "unused",
                    "indicator {id} has no fuzzy sets and would have no effect; add fuzzy_sets.{id} or remove it",
                    {"id": indicator.feature_id},
                )
        return keyed


def _belongs(key: str, indicator: IndicatorConfig) -> bool:
    """Return whether `key` names values of `indicator`; the outputs of one that is not built are not known."""
    if indicator.name in SIGNATURES:
        return key in indicator.outputs
    return key.partition(".")[0] == indicator.feature_id


def _resolve(key: str, indicators: list[IndicatorConfig]) -> str:
    """Return the name of the values that a key of `fuzzy_sets` means."""
    outputs = [output for indicator in indicators for output in indicator.outputs]
    if any(_belongs(key, indicator) for indicator in indicators):
        return key
    name, _, output = key.partition(".")
    candidates = [
        wanted
        for indicator in indicators
        if indicator.name == name.lower()
        for wanted in [f"{indicator.feature_id}.{output}" if output else indicator.feature_id]
        if _belongs(wanted, indicator)
    ]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise PydanticCustomError(
            f"at:{key}",
            "{key} names several indicators; name one of {candidates}",
            {"key": key, "candidates": ", ".join(candidates)},
        )
    raise PydanticCustomError(
        f"at:{key}",
        "{key} names no indicator{hint}",
        {"key": repr(key), "hint": nearest(key, outputs)},
    )
