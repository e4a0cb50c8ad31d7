"""The further trainings of a strategy's `validation` section: lanes beside the training itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ktrdr_core.config.strategy import DataSplitConfig, StrategyConfig, ValidationConfig
from ktrdr_core.data.bars import IntArray
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.datasets.folds import build_fold, build_folds
from ktrdr_core.datasets.rows import Rows
from ktrdr_core.datasets.series_features import has_quantile_sets
from ktrdr_core.labels.labels import Labels
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.pipeline import IndicatorValues, PriceData, TrainingPipeline, scaling_of

MAX_SEED = 2**63


@dataclass(frozen=True, eq=False)
class FoldLane:
    """One fold with one seed.

    Attributes:
        number: Of the fold, from 1.
        split: Its rows; `split.test` is the judged stretch.
        lane: Its training.
    """

    number: int
    split: DataSplit
    lane: Lane


def build_fold_splits(
    pipeline: TrainingPipeline,
    *,
    rows: Rows,
    main: DataSplit,
    labels: Mapping[str, Labels],
    price_data: PriceData,
    indicator_values: IndicatorValues,
    strategy: StrategyConfig,
    shares: DataSplitConfig,
    validation: ValidationConfig,
    check: Callable[[], None],
) -> tuple[DataSplit, ...]:
    """Return the splits of the folds; what is fitted is fitted on each fold's own training part.

    Args:
        pipeline: The steps.
        rows: Rows of every symbol.
        main: The main split.
        labels: By symbol.
        price_data: By symbol.
        indicator_values: By symbol.
        strategy: As written, its quantile sets not fitted.
        shares: Of the main split.
        validation: Method and number of folds.
        check: Called between folds; may raise to end early.

    Raises:
        TooFewBarsError: A part of a fold has too few rows.
    """

    scaling = scaling_of(strategy)
    folds = build_folds(rows, columns=main.columns, shares=shares, validation=validation, scaling=scaling, main=main)
    if not has_quantile_sets(strategy) or validation.method == "repeated_seeds":
        return folds
    refitted = []
    for index, fold in enumerate(folds):
        check()
        fitted = pipeline.refit_fuzzy_sets(indicator_values, price_data, strategy, training_bars(fold))
        memberships = pipeline.generate_fuzzy_memberships(indicator_values, price_data, fitted)
        features = pipeline.engineer_features(memberships, indicator_values, price_data)
        own_rows = pipeline.combine_multi_symbol_data(features, labels, price_data, rows.window_bars)
        refitted.append(
            build_fold(own_rows, index, columns=main.columns, shares=shares, validation=validation, scaling=scaling)
        )
    return tuple(refitted)


def training_bars(split: DataSplit) -> dict[str, IntArray]:
    """Return the base bars of the training rows of each symbol."""
    return {
        series.symbol: split.train.rows[split.train.symbol_ids == symbol_id] - series.start + series.first_bar
        for symbol_id, series in enumerate(split.series)
    }


def build_fold_lanes(
    pipeline: TrainingPipeline,
    folds: tuple[DataSplit, ...],
    *,
    model_config: Mapping[str, Any],
    settings: Hyperparameters,
    validation: ValidationConfig,
) -> tuple[FoldLane, ...]:
    """Return a lane for each fold and seed.

    The seeds of a fold are the training's own and the numbers after it; `repeated_seeds` leaves out the first of them.
    """
    lanes = []
    for number, split in enumerate(folds, start=1):
        first = number if validation.method == "repeated_seeds" else 0
        for offset in range(first, first + validation.seeds):
            seed = (settings.seed + offset) % MAX_SEED
            model = pipeline.create_model(model_config, len(split.columns), seed)
            lane = Lane(model, split.train, split.validation, replace(settings, seed=seed))
            lanes.append(FoldLane(number, split, lane))
    return tuple(lanes)
