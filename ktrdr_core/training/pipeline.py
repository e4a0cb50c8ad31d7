"""The steps of a training: data in, data out.

No step but the training itself knows of callbacks or cancellation, and none knows where it runs. `check` is a plain
function that long steps call between their parts; whoever passes one may raise from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ktrdr_core.config.strategy import DataSplitConfig, StrategyConfig
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.data.bars import IntArray
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.data.symbol_series import load_symbol_bars
from ktrdr_core.datasets.dataset import DatasetPart, DataSplit
from ktrdr_core.datasets.label_spans import check_label_spans
from ktrdr_core.datasets.leakage import LeakageReport, check_leakage
from ktrdr_core.datasets.rows import Rows, build_rows
from ktrdr_core.datasets.series_features import (
    compute_symbol_indicators,
    compute_symbol_memberships,
    feature_warm_up_bars,
    fit_quantile_sets,
    has_quantile_sets,
    measure_set_coverage,
)
from ktrdr_core.datasets.split import split_rows, training_stop_bar, whole_test_stretch
from ktrdr_core.domain.cancellation import CancellationToken
from ktrdr_core.domain.labels import NUM_CLASSES
from ktrdr_core.domain.progress import ProgressCallback
from ktrdr_core.domain.result import TestMetrics
from ktrdr_core.domain.spec import DataMode
from ktrdr_core.errors import InvalidInputError, UnsupportedError
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.forward import split_outputs
from ktrdr_core.evaluation.importance import ImportanceReport, permutation_importance
from ktrdr_core.evaluation.report import JudgedRows, PartEvaluation, evaluate
from ktrdr_core.features.engineer import FeatureColumn, FeatureMatrix, Memberships, SymbolValues, build_features
from ktrdr_core.features.scaler import ScalerKind
from ktrdr_core.labels.labels import Labels
from ktrdr_core.labels.registry import check_degenerate, check_degenerate_targets, generate_labels
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.storage.artifact import ModelArtifact
from ktrdr_core.storage.stored_model import SaveTarget, StoredModel
from ktrdr_core.training.checkpoint_keeper import CheckpointPlan
from ktrdr_core.training.device import DeviceManager
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.model_trainer import ModelTrainer, TrainedModel

PriceData = dict[str, SymbolBars]
IndicatorValues = dict[str, SymbolValues]


def _no_check() -> None:
    pass


class TrainingPipeline:
    """The steps. What is per symbol is a dict by symbol, in the order of the symbols asked for.

    Args:
        bar_store: Where bars come from.
    """

    def __init__(self, bar_store: BarStore) -> None:
        self._bar_store = bar_store

    def load_price_data(
        self,
        symbols: Sequence[str],
        timeframes: Sequence[str],
        start_date: date | None = None,
        end_date: date | None = None,
        data_mode: str = DataMode.LOCAL,
    ) -> PriceData:
        """Return the bars of each symbol from `start_date` to `end_date`, both inclusive, UTC.

        Args:
            symbols: Instruments.
            timeframes: The base timeframe, then longer ones, shortest first.
            start_date: First day.
            end_date: Last day.
            data_mode: Where the bar store's bars come from; only what is not built is refused.

        Raises:
            InvalidInputError: (a ValueError) No symbol or timeframe is named.
            UnsupportedError: (a ValueError) A data mode that is not built.
            SeriesNotFoundError: There are no such bars.
            TooFewBarsError: (a ValueError) None are left between the dates.
        """
        if not symbols or not timeframes:
            raise InvalidInputError("a training needs at least one symbol and one timeframe; name them")
        if data_mode not in (DataMode.LOCAL, DataMode.CSV, DataMode.BACKEND):
            raise UnsupportedError(f"data mode {data_mode!r} is not built yet; use backend, local or csv")
        base, *higher = timeframes
        return {
            symbol: load_symbol_bars(self._bar_store, symbol, base, higher, start_date, end_date) for symbol in symbols
        }

    def calculate_indicators(self, price_data: PriceData, strategy: StrategyConfig) -> IndicatorValues:
        """Return indicator values by symbol, timeframe and name; warm-up is NaN."""
        return {symbol: compute_symbol_indicators(bars, strategy) for symbol, bars in price_data.items()}

    def fit_fuzzy_sets(
        self,
        indicator_values: IndicatorValues,
        price_data: PriceData,
        strategy: StrategyConfig,
        shares: DataSplitConfig,
    ) -> tuple[StrategyConfig, tuple[str, ...]]:
        """Return the strategy with its quantile sets fitted on the training part, and what people should know of how
        its sets lie on that part.

        Raises:
            InvalidStrategyError: (a ValueError) The quantiles of a set do not differ.
        """
        fit_rows = {}
        for symbol, bars in price_data.items():
            warm_up_bars = feature_warm_up_bars(bars, strategy)
            stop = training_stop_bar(
                generate_labels(bars.base, strategy.training.labels),
                warm_up_bars=warm_up_bars,
                window_bars=strategy.model.window_bars,
                shares=shares,
            )
            fit_rows[symbol] = np.arange(min(warm_up_bars, stop), stop, dtype=np.int64)
        fitted = self.refit_fuzzy_sets(indicator_values, price_data, strategy, fit_rows)
        coverage = measure_set_coverage(indicator_values, price_data, fit_rows, fitted)
        return fitted, tuple(sentence for own in coverage for sentence in own.warnings())

    def refit_fuzzy_sets(
        self,
        indicator_values: IndicatorValues,
        price_data: PriceData,
        strategy: StrategyConfig,
        fit_rows: Mapping[str, IntArray],
    ) -> StrategyConfig:
        """Return the strategy with its quantile sets fitted on the base bars `fit_rows` of each symbol."""
        if not has_quantile_sets(strategy):
            return strategy
        return fit_quantile_sets(indicator_values, price_data, fit_rows, strategy)

    def generate_fuzzy_memberships(
        self, indicator_values: IndicatorValues, price_data: PriceData, strategy: StrategyConfig
    ) -> dict[str, Memberships]:
        """Return memberships by symbol, aligned to the base bars; quantile sets must be fitted."""
        return {
            symbol: compute_symbol_memberships(indicator_values[symbol], bars, strategy)
            for symbol, bars in price_data.items()
        }

    def engineer_features(
        self, memberships: Mapping[str, Memberships], indicator_values: IndicatorValues, price_data: PriceData
    ) -> dict[str, FeatureMatrix]:
        """Return the unscaled feature matrix of each symbol; the memberships' arrays become theirs."""
        return {
            symbol: build_features(memberships[symbol], indicator_values[symbol], bars)
            for symbol, bars in price_data.items()
        }

    def generate_labels(self, price_data: PriceData, strategy: StrategyConfig) -> dict[str, Labels]:
        """Return the labels of each symbol.

        Raises:
            DegenerateLabelsError: Nothing can be learned from them, and the strategy does not allow that.
        """
        config = strategy.training.labels
        labels = {symbol: generate_labels(bars.base, config) for symbol, bars in price_data.items()}
        if strategy.is_regression:
            targets = [own.targets for own in labels.values() if own.targets is not None]
            check_degenerate_targets(np.concatenate(targets), config)
        else:
            check_degenerate(np.concatenate([own.y for own in labels.values()]), config)
        return labels

    def check_leakage(
        self,
        price_data: PriceData,
        features: Mapping[str, FeatureMatrix],
        labels: Mapping[str, Labels],
        strategy: StrategyConfig,
        seed: int,
        *,
        check: Callable[[], None] = _no_check,
    ) -> dict[str, LeakageReport]:
        """Recompute features and labels with the future cut off or changed.

        Raises:
            LeakageError: One of them saw the future.
        """
        return {
            symbol: check_leakage(bars, features[symbol], labels[symbol], strategy, seed, check=check)
            for symbol, bars in price_data.items()
        }

    def combine_multi_symbol_data(
        self,
        features: Mapping[str, FeatureMatrix],
        labels: Mapping[str, Labels],
        price_data: PriceData,
        window_bars: int = 1,
    ) -> Rows:
        """Return the complete rows of all symbols, each carrying its symbol; the others are dropped and counted."""
        symbols = tuple(price_data)
        return build_rows(
            [features[symbol] for symbol in symbols],
            [labels[symbol] for symbol in symbols],
            [price_data[symbol].base for symbol in symbols],
            symbols=symbols,
            window_bars=window_bars,
        )

    def split_data(
        self, rows: Rows, strategy: StrategyConfig, shares: DataSplitConfig, *, columns: Sequence[FeatureColumn]
    ) -> DataSplit:
        """Return chronological parts per symbol with a purge at each boundary, scaled by the training part.

        Args:
            rows: Rows of every symbol.
            strategy: Its scaling.
            shares: Of the parts, and the embargo.
            columns: Of the matrix.

        Raises:
            TooFewBarsError: (a ValueError) A part has too few rows.
        """
        return split_rows(rows, columns=columns, shares=shares, scaling=scaling_of(strategy))

    def check_label_spans(self, split: DataSplit, labels: Mapping[str, Labels]) -> int:
        """Return how many labels' spans were found clear of the other parts.

        Raises:
            LeakageError: One was not.
        """
        return check_label_spans(split, list(labels.values()))

    def create_model(self, model_config: Mapping[str, Any], input_size: int, seed: int) -> Network:
        """Return a freshly initialised network for rows of `input_size` features."""
        return build_network(NetworkSpec.from_model_config(model_config, input_size), seed=seed)

    def train_model(
        self,
        model: Network,
        train_data: DatasetPart,
        val_data: DatasetPart,
        training_config: Mapping[str, Any],
        progress_callback: ProgressCallback | None = None,
        cancellation_token: CancellationToken | None = None,
        *,
        checkpoint_dir: Path | None = None,
        resume_from: Path | None = None,
    ) -> TrainedModel:
        """Train `model` on the best device the configuration allows; see `ModelTrainer.train`.

        Raises:
            ExecutionModeError: A GPU is required and there is none.
            CancellationError: `cancellation_token` was cancelled.
            NonFiniteLossError: The loss became NaN or infinite.
        """
        lane = Lane(model, train_data, val_data, Hyperparameters.from_training_config(training_config))
        (trained,) = self.train_lanes(
            [lane], progress_callback, cancellation_token, checkpoint_dir=checkpoint_dir, resume_from=resume_from
        )
        return trained

    def train_lanes(
        self,
        lanes: Sequence[Lane],
        progress_callback: ProgressCallback | None = None,
        cancellation_token: CancellationToken | None = None,
        *,
        checkpoint_dir: Path | None = None,
        checkpoint_plan: CheckpointPlan | None = None,
        resume_from: Path | None = None,
    ) -> tuple[TrainedModel, ...]:
        """Train the networks of a stack together; errors as for `train_model`."""
        settings = lanes[0].hyperparameters
        device = DeviceManager.select(enable_gpu=settings.enable_gpu, require_gpu=settings.require_gpu)
        trainer = ModelTrainer(settings, device, progress_callback, cancellation_token)
        return trainer.train_lanes(
            lanes, checkpoint_dir=checkpoint_dir, checkpoint_plan=checkpoint_plan, resume_from=resume_from
        )

    def judge(
        self,
        trained: TrainedModel,
        split: DataSplit,
        *,
        part: DatasetPart | None = None,
        check: Callable[[], None] = _no_check,
    ) -> JudgedRows:
        """Return what the network answers to the rows of `part`, by default `split.test`, with what was true.

        Answered on the CPU, wherever it was trained: a prediction over the same bars gives the same bits.
        """
        model = trained.model.to("cpu")
        judged = split.test if part is None else part
        return JudgedRows.from_part(split_outputs(model, split, judged, check=check), judged, split.series)

    def evaluate_model(
        self,
        trained: TrainedModel,
        split: DataSplit,
        price_data: PriceData,
        strategy: StrategyConfig,
        seed: int,
        *,
        check: Callable[[], None] = _no_check,
    ) -> tuple[TestMetrics, PartEvaluation]:
        """Return the metrics of the test part, and what else its answers tell."""
        bars = [price_data[symbol].base for symbol in split.symbols]
        stretch = whole_test_stretch(split, bars)
        return evaluate(
            self.judge(trained, split, check=check),
            every_row=None if stretch is split.test else self.judge(trained, split, part=stretch, check=check),
            bars=bars,
            train_class_counts=np.bincount(split.train.y, minlength=NUM_CLASSES),
            seed=seed,
            strategy=strategy,
        )

    def calculate_feature_importance(
        self,
        trained: TrainedModel,
        split: DataSplit,
        strategy: StrategyConfig,
        seed: int,
        *,
        check: Callable[[], None] = _no_check,
    ) -> ImportanceReport:
        """Return the mean drop of test accuracy when a feature, an indicator or a timeframe is permuted."""
        with deterministic_torch("cpu"):
            return permutation_importance(
                trained.model.to("cpu"),
                split.test,
                split.columns,
                seed=seed,
                labels=strategy.training.labels if strategy.is_regression else None,
                trained_rows=len(trained.history) * len(split.train),
                check=check,
            )

    def save_model(self, artifact: ModelArtifact, model_storage: SaveTarget) -> StoredModel:
        """Store `artifact` and return where it is."""
        return model_storage.save(artifact)


def scaling_of(strategy: StrategyConfig) -> ScalerKind:
    """Return the kind of scaler that the strategy asks for."""
    features = strategy.model.features
    return features.scaling if features.scale_features else "none"
