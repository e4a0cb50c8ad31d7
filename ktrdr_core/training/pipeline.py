"""The steps of a training: data in, data out.

No step but `train_model` knows of callbacks or cancellation, and none knows where it runs. `check` is a plain
function that long steps call between their parts; whoever passes one may raise from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ktrdr_core.config.strategy import (
    DataSplitConfig,
    FeaturesConfig,
    FuzzySetConfig,
    IndicatorConfig,
    LabelsConfig,
    StrategyConfig,
)
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.data.bars import Bars, FloatArray
from ktrdr_core.datasets.dataset import DatasetPart, DataSplit
from ktrdr_core.datasets.leakage import LeakageReport, check_truncation
from ktrdr_core.datasets.rows import Rows, build_rows, combine_rows
from ktrdr_core.datasets.split import split_rows
from ktrdr_core.domain.cancellation import CancellationToken
from ktrdr_core.domain.progress import ProgressCallback
from ktrdr_core.domain.result import TestMetrics
from ktrdr_core.domain.spec import DataMode
from ktrdr_core.errors import InvalidInputError, TooFewBarsError, UnsupportedError
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.forward import PaddedRows, compute_logits
from ktrdr_core.evaluation.importance import DEFAULT_REPEATS, permutation_importance
from ktrdr_core.evaluation.metrics import compute_test_metrics
from ktrdr_core.features.engineer import FeatureMatrix, build_features
from ktrdr_core.fuzzy.memberships import compute_memberships
from ktrdr_core.indicators.compute import compute_indicators
from ktrdr_core.labels.registry import Labels, check_degenerate, generate_labels
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.storage.artifact import ModelArtifact
from ktrdr_core.storage.stored_model import SaveTarget, StoredModel
from ktrdr_core.training.device import DeviceManager
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.model_trainer import ModelTrainer, TrainedModel

PriceData = dict[str, Bars]
NamedValues = dict[str, dict[str, FloatArray]]


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

        Raises:
            InvalidInputError: (a ValueError) No symbol or timeframe is named.
            UnsupportedError: (a ValueError) Several timeframes, or a data mode that is not built.
            SeriesNotFoundError: There are no such bars.
            TooFewBarsError: (a ValueError) None are left between the dates.
        """
        if not symbols or not timeframes:
            raise InvalidInputError("a training needs at least one symbol and one timeframe; name them")
        if len(timeframes) > 1:
            raise UnsupportedError(f"several timeframes ({', '.join(timeframes)}) are not built yet; name one")
        if data_mode not in (DataMode.LOCAL, DataMode.CSV):
            raise UnsupportedError(f"data mode {data_mode!r} is not built yet; use local or csv")
        price_data = {
            symbol: self._bar_store.load(symbol, timeframes[0]).between(start_date, end_date) for symbol in symbols
        }
        for symbol, bars in price_data.items():
            if len(bars) == 0:
                raise TooFewBarsError(
                    f"{symbol} {timeframes[0]} has no bars from {start_date} to {end_date}; take other dates"
                )
        return price_data

    def calculate_indicators(self, price_data: PriceData, indicators: Sequence[IndicatorConfig]) -> NamedValues:
        """Return indicator values by symbol and feature id; warm-up is NaN."""
        return {symbol: compute_indicators(bars, indicators) for symbol, bars in price_data.items()}

    def generate_fuzzy_memberships(
        self, indicator_values: NamedValues, fuzzy_sets: Mapping[str, Mapping[str, FuzzySetConfig]]
    ) -> NamedValues:
        """Return memberships by symbol and `value.set`."""
        return {symbol: compute_memberships(values, fuzzy_sets) for symbol, values in indicator_values.items()}

    def engineer_features(
        self, memberships: NamedValues, price_data: PriceData, config: FeaturesConfig
    ) -> dict[str, FeatureMatrix]:
        """Return the unscaled feature matrix of each symbol."""
        return {symbol: build_features(memberships[symbol], bars, config) for symbol, bars in price_data.items()}

    def check_leakage(
        self, price_data: PriceData, strategy: StrategyConfig, seed: int, *, check: Callable[[], None] = _no_check
    ) -> dict[str, LeakageReport]:
        """Recompute features and labels with the future cut off or changed.

        Raises:
            LeakageError: One of them saw the future.
        """
        reports = {}
        for symbol, bars in price_data.items():
            check()
            reports[symbol] = check_truncation(bars, strategy, seed)
        return reports

    def generate_labels(self, price_data: PriceData, config: LabelsConfig) -> dict[str, Labels]:
        """Return the labels of each symbol.

        Raises:
            DegenerateLabelsError: Nothing can be learned from them, and the strategy does not allow that.
        """
        labels = {symbol: generate_labels(bars, config) for symbol, bars in price_data.items()}
        check_degenerate(np.concatenate([own.y for own in labels.values()]), config.allow_degenerate_labels)
        return labels

    def combine_multi_symbol_data(
        self, features: Mapping[str, FeatureMatrix], labels: Mapping[str, Labels], price_data: PriceData
    ) -> Rows:
        """Return the complete rows of all symbols, each carrying its symbol; the others are dropped and counted."""
        return combine_rows(
            [
                build_rows(features[symbol], labels[symbol], bars, symbol_id)
                for symbol_id, (symbol, bars) in enumerate(price_data.items())
            ]
        )

    def split_data(
        self,
        rows: Rows,
        *,
        symbols: Sequence[str],
        feature_names: Sequence[str],
        shares: DataSplitConfig,
        horizon_bars: int,
        scale_features: bool = True,
    ) -> DataSplit:
        """Return chronological parts per symbol with a purge at each boundary, scaled by the training part.

        Raises:
            TooFewBarsError: (a ValueError) A part has too few rows.
        """
        return split_rows(
            rows,
            symbols=symbols,
            feature_names=feature_names,
            shares=shares,
            horizon_bars=horizon_bars,
            scaler_kind="standard" if scale_features else "none",
        )

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
        settings = Hyperparameters.from_training_config(training_config)
        device = DeviceManager.select(enable_gpu=settings.enable_gpu, require_gpu=settings.require_gpu)
        trainer = ModelTrainer(settings, device, progress_callback, cancellation_token)
        return trainer.train(model, train_data, val_data, checkpoint_dir=checkpoint_dir, resume_from=resume_from)

    def evaluate_model(
        self,
        trained: TrainedModel,
        test_data: DatasetPart,
        *,
        check: Callable[[], None] = _no_check,
    ) -> TestMetrics:
        """Return the metrics of the test part."""
        with deterministic_torch(trained.device.device):
            logits_NC = compute_logits(trained.model, PaddedRows(test_data.X, trained.device.device), check=check)
        return compute_test_metrics(logits_NC, test_data.y)

    def calculate_feature_importance(
        self,
        trained: TrainedModel,
        test_data: DatasetPart,
        feature_names: Sequence[str],
        seed: int,
        *,
        repeats: int = DEFAULT_REPEATS,
        check: Callable[[], None] = _no_check,
    ) -> dict[str, float]:
        """Return the mean drop of test accuracy when a feature is permuted, by feature."""
        with deterministic_torch(trained.device.device):
            return permutation_importance(
                trained.model,
                test_data.X,
                test_data.y,
                feature_names,
                seed=seed,
                device=trained.device.device,
                repeats=repeats,
                check=check,
            )

    def save_model(self, artifact: ModelArtifact, model_storage: SaveTarget) -> StoredModel:
        """Store `artifact` and return where it is."""
        return model_storage.save(artifact)
