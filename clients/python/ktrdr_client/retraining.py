"""A model made again: the request that made it, and why the second one differs where it does. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from ktrdr_client.model_comparison import (
    ModelComparison,
    ReadModel,
    SeriesDifference,
    SeriesVerdict,
    ValueDifference,
    data_mode_of,
)
from ktrdr_client.model_types import Model
from ktrdr_core.domain.spec import DataMode, ExecutionMode, TrainingSpec
from ktrdr_core.errors import CorruptDataError

_MAX_TOLD = 10


def retraining_spec(model: ReadModel, execution_mode: ExecutionMode | None) -> TrainingSpec:
    """Return the request that makes the model again.

    The strategy is the one that was trained: overrides of symbols, dates, epochs, shares and `--set` are in it already.

    Args:
        model: What its files say.
        execution_mode: Where to train; None means as the backend is configured. It changes no bit on equal hardware.

    Raises:
        CorruptDataError: The configuration does not tell how the model was trained.
    """
    import yaml

    try:
        training: Mapping[str, Any] = model.config["training_config"]
        data: Mapping[str, Any] = model.config["data_config"]
        return TrainingSpec(
            # YAML, not JSON: its reader takes 1e-05 for a text, and 1.0e-05 for a number.
            strategy_yaml=yaml.safe_dump(dict(model.config["strategy_config"]), sort_keys=False, allow_unicode=True),
            start_date=date.fromisoformat(data["start_date"]),
            end_date=date.fromisoformat(data["end_date"]),
            data_mode=DataMode(data_mode_of(model) or DataMode.LOCAL),
            enable_gpu=bool(training.get("enable_gpu", True)),
            require_gpu=bool(training.get("require_gpu", False)),
            num_gpus=int(training.get("num_gpus", 0)),
            memory_fraction=training.get("memory_fraction"),
            mixed_precision=bool(training.get("mixed_precision", False)),
            execution_mode=execution_mode,
            seed=int(training["seed"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            f"{model.name} does not tell how it was trained ({error!r} in config.json); it cannot be trained again"
        ) from error


def is_deletable(original: ReadModel, made: Model, training_id: str) -> bool:
    """Return whether `made` is nothing but the copy that the retraining `training_id` published."""
    return (
        made.training_id == training_id
        and made.version > 0
        and made.name != original.name
        and made.model_id != original.result["model_id"]
    )


def causes(comparison: ModelComparison) -> list[str]:
    """Return why a model that was trained again is not the same, what explains most first: one sentence each."""
    found = [sentence_of_series(own) for own in comparison.series if own.verdict is not SeriesVerdict.SAME]
    found += _told("configuration", comparison.config)
    if not comparison.series or comparison.has_same_bars:
        found += _told("data", comparison.data)
    found += _told("lineage", comparison.lineage)
    if comparison.has_same_weights:
        found.append("the weights are the same, bit for bit; only what is written beside them differs")
    elif not found:
        found.append(
            "bars, configuration, device and versions are the same, and the weights differ all the same: train it "
            "again twice, and report it if those two differ from each other"
        )
    return found


def sentence_of_series(series: SeriesDifference) -> str:
    """Return how the bars of one series compare."""
    subject = f"{series.symbol} {series.timeframe}"
    counts = f"{_count(series.first_num_bars)} in the first, {_count(series.second_num_bars)} in the second"
    return f"{subject}: {series.verdict} ({counts})"


def _count(num_bars: int | None) -> str:
    return "none" if num_bars is None else f"{num_bars:,} bars"


def _told(what: str, differences: tuple[ValueDifference, ...]) -> Iterator[str]:
    for own in differences[:_MAX_TOLD]:
        yield f"{what}: {own.path} was {own.first!r}, is {own.second!r}"
    if len(differences) > _MAX_TOLD:
        yield f"{what}: and {len(differences) - _MAX_TOLD} more (ktrdr models compare tells all)"
