"""A strategy file of grammar v2 as one immutable value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.data_sections import (
    DeploymentConfig,
    DeploymentTarget,
    Header,
    SymbolsConfig,
    TimeframesConfig,
    TrainingDataConfig,
)
from ktrdr_core.config.decision_sections import DecisionsConfig
from ktrdr_core.config.fuzzy_section import FuzzySetConfig, FuzzySets
from ktrdr_core.config.indicator_section import IndicatorConfig
from ktrdr_core.config.model_sections import ArchitectureConfig, FeaturesConfig, ModelConfig, OptimisationConfig
from ktrdr_core.config.signatures import SIGNATURES, canonical_indicator_name, nearest
from ktrdr_core.config.training_sections import DataSplitConfig, LabelsConfig, TrainingConfig, ValidationConfig
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidIndicatorError

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
    "ValidationConfig",
]


class StrategyConfig(Header):
    """The whole file, every default resolved.

    `fuzzy_sets` is keyed by the values the sets apply to (`rsi_14`, `macd_12_26_9.signal`), whichever of the
    permitted spellings the file uses (`rsi`, `macd.signal`, a feature_id). `rsi_14@4h` is for one timeframe alone and
    goes before `rsi_14` there.
    """

    training_data: TrainingDataConfig
    deployment: DeploymentConfig = DeploymentConfig()
    indicators: list[IndicatorConfig] = Field(min_length=1, max_length=500)
    fuzzy_sets: dict[str, Annotated[FuzzySets, Field(min_length=1, max_length=100)]] = Field(min_length=1)
    model: ModelConfig
    decisions: DecisionsConfig = DecisionsConfig()
    training: TrainingConfig
    validation: ValidationConfig | None = None

    @property
    def is_regression(self) -> bool:
        return self.decisions.output_format == "regression"

    @property
    def base_timeframe(self) -> str:
        """Bar length of a row: the one named, else the shortest."""
        named = self.training_data.timeframes.base_timeframe
        return named or min(self.timeframes, key=lambda text: Timeframe.parse(text).duration_ns)

    @property
    def higher_timeframes(self) -> tuple[str, ...]:
        """The other bar lengths, shortest first."""
        others = [name for name in self.timeframes if name != self.base_timeframe]
        return tuple(sorted(others, key=lambda text: Timeframe.parse(text).duration_ns))

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
        data: TrainingDataConfig | None = info.data.get("training_data")
        if indicators is None or data is None:  # they have violations of their own
            return fuzzy_sets
        keyed: dict[str, FuzzySets] = {}
        for key, sets in fuzzy_sets.items():
            target = _resolve(key, indicators, data.timeframes.names)
            if target in keyed:
                raise PydanticCustomError(
                    f"at:{key}", "{key} and another key both name the values {target}", {"key": key, "target": target}
                )
            keyed[target] = sets
        used = {key.partition("@")[0] for key in keyed}
        for indicator in indicators:
            if used.isdisjoint(indicator.outputs):
                raise PydanticCustomError(
                    "unused",
                    "indicator {id} has no fuzzy sets and would have no effect; add fuzzy_sets.{id} or remove it",
                    {"id": indicator.feature_id},
                )
        return keyed

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        timeframes = self.timeframes
        for index, indicator in enumerate(self.indicators):
            for name in indicator.timeframes or ():
                if name not in timeframes:
                    raise PydanticCustomError(
                        f"at:indicators[{index}].timeframes",
                        "timeframes of an indicator must be among those of training_data ({known}), was {name}",
                        {"known": ", ".join(timeframes), "name": name},
                    )
        output, labels = self.decisions.output_format, self.training.labels
        loss, activation = self.model.training.loss, self.model.architecture.output_activation
        allowed = _OF_OUTPUT[output]
        for path, value, choices in (
            ("model.training.loss", loss, allowed.losses),
            ("model.architecture.output_activation", activation, allowed.activations),
            ("training.labels.source", labels.source, allowed.label_sources),
        ):
            if value is not None and choices is not None and value not in choices:
                raise PydanticCustomError(
                    f"at:{path}",
                    "{path} must be one of {choices} with decisions.output_format {output}, was {value}",
                    {"path": path, "output": output, "choices": ", ".join(choices), "value": value},
                )
        if self.is_regression and self.decisions.filters.min_separation:
            raise PydanticCustomError(
                "at:decisions.filters.min_separation", "a regression has no probabilities to separate; remove it", {}
            )
        if self.is_regression and self.decisions.confidence_threshold:
            raise PydanticCustomError(
                "at:decisions.confidence_threshold", "a regression has no probabilities; remove it", {}
            )
        if loss == "focal" and activation == "sigmoid":
            raise PydanticCustomError("at:model.training.loss", "focal loss needs output_activation softmax", {})
        if self.is_regression and self.model.training.class_weights != "none":
            raise PydanticCustomError("at:model.training.class_weights", "a regression has no classes; remove it", {})
        return self


@dataclass(frozen=True)
class _Allowed:
    losses: tuple[str, ...]
    activations: tuple[str, ...]
    label_sources: tuple[str, ...] | None


_OF_OUTPUT = {
    "classification": _Allowed(("cross_entropy", "focal"), ("softmax", "sigmoid"), None),
    "regression": _Allowed(("mse", "huber"), ("linear",), ("forward_return",)),
}


def _resolve(key: str, indicators: list[IndicatorConfig], timeframes: tuple[str, ...]) -> str:
    """Return the name of the values that a key of `fuzzy_sets` means: `values` or `values@timeframe`."""
    wanted, at, timeframe = key.partition("@")
    indicator, values = _find_values(key, wanted, indicators)
    if not at:
        return values
    known = indicator.timeframes or timeframes
    if timeframe not in known:
        raise PydanticCustomError(
            f"at:{key}",
            "{key} names the timeframe '{timeframe}'; {id} is computed on {known}",
            {"key": key, "timeframe": timeframe, "id": indicator.feature_id, "known": ", ".join(known)},
        )
    return f"{values}@{timeframe}"


def _find_values(key: str, wanted: str, indicators: list[IndicatorConfig]) -> tuple[IndicatorConfig, str]:
    """Return the indicator and the name of its values that `wanted` means."""
    name, _, output = wanted.partition(".")
    for indicator in indicators:
        if name != indicator.feature_id:  # which has no dot, and begins the name of each of its outputs
            continue
        if wanted in indicator.outputs:
            return indicator, wanted
        if output == SIGNATURES[indicator.name].primary.name:
            return indicator, name
    canonical = _canonical(name)
    candidates = [
        (indicator, values)
        for indicator in indicators
        if indicator.name == canonical
        for is_primary in [output in ("", SIGNATURES[indicator.name].primary.name)]
        for values in [indicator.feature_id if is_primary else f"{indicator.feature_id}.{output}"]
        if values in indicator.outputs
    ]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise PydanticCustomError(
            f"at:{key}",
            "{key} names several indicators; name one of {candidates}",
            {"key": key, "candidates": ", ".join(values for _, values in candidates)},
        )
    outputs = [output for indicator in indicators for output in indicator.outputs]
    raise PydanticCustomError(
        f"at:{key}",
        "{key} names no indicator{hint}",
        {"key": repr(key), "hint": nearest(wanted, outputs)},
    )


def _canonical(name: str) -> str:
    try:
        return canonical_indicator_name(name)
    except InvalidIndicatorError:
        return name.lower()
