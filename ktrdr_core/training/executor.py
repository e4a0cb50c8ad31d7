"""Runs the pipeline: twelve steps, progress, cancellation, a stored model and a result.

Knows nothing of where it runs. Synchronous: callers own threads and processes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ktrdr_core.clock import utc_now
from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.signatures import SIGNATURES
from ktrdr_core.config.strategy import DataSplitConfig, StrategyConfig
from ktrdr_core.data.bar_store import BarStore, DirectoryBarStore
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.datasets.rows import Rows
from ktrdr_core.datasets.split import overlap_warning
from ktrdr_core.domain.cancellation import CancellationToken, raise_if_cancelled
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE, STEP_TITLES, ProgressCallback, TrainingStep
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import DataMode
from ktrdr_core.errors import (
    CancellationError,
    CorruptDataError,
    InvalidInputError,
    KtrdrError,
    NotFoundError,
    StorageError,
)
from ktrdr_core.evaluation.report import fold_metrics
from ktrdr_core.labels.labels import Labels
from ktrdr_core.storage.artifact import ModelArtifact, result_of
from ktrdr_core.storage.stored_model import SaveTarget, StoredModel
from ktrdr_core.training.build_artifact import DataFacts, ResumedFrom, build_artifact, leakage_verdict, row_report
from ktrdr_core.training.checkpoint_keeper import CheckpointKeeper, CheckpointPlan, SavedCallback
from ktrdr_core.training.failures import training_error
from ktrdr_core.training.fold_lanes import FoldLane, build_fold_lanes, build_fold_splits
from ktrdr_core.training.hyperparameters import Hyperparameters
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.model_trainer import TrainedModel
from ktrdr_core.training.pipeline import IndicatorValues, PriceData, TrainingPipeline
from ktrdr_core.training.preflight import loop_facts, network_facts, resolve_data_split
from ktrdr_core.training.series_override import with_series

logger = logging.getLogger(__name__)

StepCallback = Callable[[TrainingStep], None]
WarningCallback = Callable[[str, str], None]
"""(reason, message)."""

CONFIG_SECTIONS = ("strategy_config", "training_config", "model_config")
DEFAULT_BARS_DIR = Path("data")


class TrainingExecutor:
    """Executes one training.

    Args:
        config: `strategy_config`, `training_config` and `model_config`.
        progress_callback: Handed to ModelTrainer unchanged.
        cancellation_token: Asked between steps, at each epoch and batch, before each callback and inside long steps.
            With `save_checkpoint` True on it, a cancel after training has begun leaves a checkpoint.
        model_storage: Where the model goes; None keeps it in the result alone.
        step_callback: Told each step as it begins; its exceptions are logged and training goes on.
        warning_callback: Told each warning as it is raised; likewise.
        bar_store: Where bars come from; None is the directory `data`.
        checkpoint_dir: Where checkpoints go.
        checkpoint_every_s: Keep a checkpoint at most about this old while training; None only when stopped.
        checkpoint_callback: Told of each such checkpoint and of the one of a stop; its exceptions are logged and
            training goes on.
        must_resume: False makes a checkpoint that cannot be gone on from a warning, and training begins at the
            beginning.
        tell_epochs_after: See CheckpointPlan.

    Raises:
        InvalidInputError: (a ValueError) `config` misses a key or has a wrong one.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        progress_callback: ProgressCallback | None = None,
        cancellation_token: CancellationToken | None = None,
        model_storage: SaveTarget | None = None,
        *,
        step_callback: StepCallback | None = None,
        warning_callback: WarningCallback | None = None,
        bar_store: BarStore | None = None,
        checkpoint_dir: Path | None = None,
        checkpoint_every_s: float | None = None,
        checkpoint_callback: SavedCallback | None = None,
        must_resume: bool = True,
        tell_epochs_after: int | None = None,
    ) -> None:
        for section in CONFIG_SECTIONS:
            if not isinstance(config.get(section), Mapping):
                raise InvalidInputError(f"config.{section} is missing; give a mapping", field=f"config.{section}")
        self._strategy: StrategyConfig = strategy_from_dict(dict(config["strategy_config"]))
        self._given = dict(config["training_config"]), dict(config["model_config"])
        self._configure(self._strategy)
        for key in ("type", "hidden_layers"):
            if self._model_config.get(key) is None:
                raise InvalidInputError(f"model_config.{key} is missing; give it", field=f"model_config.{key}")
        self._progress_callback = progress_callback
        self._token = cancellation_token
        self._model_storage = model_storage
        self._step_callback = step_callback
        self._warning_callback = warning_callback
        self._pipeline = TrainingPipeline(bar_store or DirectoryBarStore(DEFAULT_BARS_DIR))
        self._checkpoint_dir = checkpoint_dir
        self._checkpoint_plan = CheckpointPlan(
            every_s=checkpoint_every_s,
            on_saved=lambda path, position: _tell(checkpoint_callback, path, position),
            on_failed=lambda message: self._say("CHECKPOINT_FAILED", message),
            tell_epochs_after=tell_epochs_after,
        )
        self._must_resume = must_resume
        self._warnings: list[str] = []

    def execute(
        self,
        symbols: Sequence[str],
        timeframes: Sequence[str],
        start_date: date | str,
        end_date: date | str,
        validation_split: float = 0.2,
        data_mode: str = "local",
        **kwargs: Any,
    ) -> TrainingResult:
        """Train, evaluate and store a model.

        Args:
            symbols: Instruments.
            timeframes: Bar lengths.
            start_date: First day, inclusive, UTC; a date or YYYY-MM-DD.
            end_date: Last day, inclusive, UTC.
            validation_split: Share of the validation part, and of the test part, where the strategy declares no
                `data_split`; one that it declares is the truth.
            data_mode: "local", "csv" or "backend": where the bars of the bar store come from, for the record.
            **kwargs: `resume_from`: path of a checkpoint of the same job to go on from.

        Raises:
            CancellationError: The token was cancelled; `checkpoint_path` is set if a checkpoint was written.
            TrainingError: The training failed; OutOfMemoryError, DeviceFailedError and others say how.
            StorageError: The model could not be stored; nothing half-made is left.
            NotFoundError, CorruptDataError: `resume_from` cannot be gone on from.
            ValueError: An argument breaks a rule.
        """
        resume_from = kwargs.pop("resume_from", None)
        if kwargs:
            raise InvalidInputError(f"unknown argument {min(kwargs)!r}; execute also takes resume_from")
        self._warnings.clear()
        start, end = _parse_day(start_date, "start_date"), _parse_day(end_date, "end_date")
        if start > end:
            raise InvalidInputError(f"start_date {start} is after end_date {end}; swap them", field="start_date")
        if not symbols or not timeframes:
            raise InvalidInputError("a training needs at least one symbol and one timeframe; name them")
        strategy = with_series(self._strategy, symbols, timeframes)
        self._configure(strategy)
        try:
            return self._execute(
                strategy,
                start,
                end,
                strategy.training.data_split or resolve_data_split(None, validation_split),
                _parse_data_mode(data_mode),
                Path(resume_from) if resume_from is not None else None,
            )
        except KtrdrError:
            raise
        except (RuntimeError, MemoryError, OSError) as error:
            raise training_error(error) from error

    def _configure(self, strategy: StrategyConfig) -> None:
        """Complete what was given by what follows from the strategy, with the symbols that are trained on."""
        training_config, model_config = self._given
        self._training_config: dict[str, Any] = {**loop_facts(strategy), **training_config}
        self._model_config: dict[str, Any] = {**network_facts(strategy), **model_config}
        self._settings = Hyperparameters.from_training_config(self._training_config)

    def _execute(
        self,
        strategy: StrategyConfig,
        start: date,
        end: date,
        shares: DataSplitConfig,
        data_mode: str,
        resume_from: Path | None,
    ) -> TrainingResult:
        start_time = utc_now()
        pipeline, seed, symbols = self._pipeline, self._settings.seed, strategy.symbols
        timeframes = (strategy.base_timeframe, *strategy.higher_timeframes)

        self._begin(TrainingStep.LOADING_MARKET_DATA)
        price_data = pipeline.load_price_data(symbols, timeframes, start, end, data_mode)
        logger.debug("Loaded bars: %s", {symbol: len(bars) for symbol, bars in price_data.items()})

        self._warn_of_silent_volume(strategy, price_data)
        self._begin(TrainingStep.INDICATORS)
        values = pipeline.calculate_indicators(price_data, strategy)
        logger.debug("Indicator values: %s", {name: list(own) for name, own in values[symbols[0]].items()})

        self._begin(TrainingStep.FUZZY_MEMBERSHIPS)
        fitted, sentences = pipeline.fit_fuzzy_sets(values, price_data, strategy, shares)
        for message in sentences:
            self._warn("FUZZY_SETS", message)
        memberships = pipeline.generate_fuzzy_memberships(values, price_data, fitted)
        logger.debug("Memberships: %s", memberships[symbols[0]].names)

        self._begin(TrainingStep.FEATURES)
        features = pipeline.engineer_features(memberships, values, price_data)
        columns = features[symbols[0]].columns
        logger.debug("%d features", len(columns))

        self._begin(TrainingStep.LABELS)
        labels = pipeline.generate_labels(price_data, strategy)
        reports = pipeline.check_leakage(price_data, features, labels, fitted, seed, check=self._check)
        logger.debug("No look-ahead found: %s", reports)

        self._begin(TrainingStep.SPLIT)
        rows = pipeline.combine_multi_symbol_data(features, labels, price_data, strategy.model.window_bars)
        split = pipeline.split_data(rows, strategy, shares, columns=columns)
        if overlap := overlap_warning(split):
            self._warn("PARTS_OVERLAP", overlap)
        label_spans = pipeline.check_label_spans(split, labels)
        logger.debug("Rows: train %d, validation %d, test %d", len(split.train), len(split.validation), len(split.test))
        folds = self._build_folds(strategy, rows, split, labels, price_data, values, shares)
        label_spans += sum(pipeline.check_label_spans(fold, labels) for fold in dict.fromkeys(folds))
        del values, memberships, features

        self._begin(TrainingStep.TRAINING)
        self._warn_of_input_size(len(columns))
        validation = strategy.validation

        def build_lanes() -> tuple[Lane, tuple[FoldLane, ...]]:
            model = pipeline.create_model(self._model_config, len(columns), seed)
            lane = Lane(model, split.train, split.validation, self._settings)
            if validation is None:
                return lane, ()
            return lane, build_fold_lanes(
                pipeline, folds, model_config=self._model_config, settings=self._settings, validation=validation
            )

        (trained, *judged), fold_lanes, resumed_from = self._train(build_lanes, resume_from)
        self._warn_of_device(trained)
        try:
            self._begin(TrainingStep.EVALUATION)
            test_metrics, evaluation = pipeline.evaluate_model(
                trained, split, price_data, strategy, seed, check=self._check
            )
            fold_results = [
                fold_metrics(
                    pipeline.judge(model, fold.split, check=self._check),
                    fold=fold.number,
                    seed=fold.lane.hyperparameters.seed,
                    train_rows=len(fold.split.train),
                    best_epoch=model.best_epoch,
                    strategy=strategy,
                )
                for fold, model in zip(fold_lanes, judged, strict=True)
            ]
            self._begin(TrainingStep.FEATURE_IMPORTANCE)
            importance = pipeline.calculate_feature_importance(trained, split, strategy, seed, check=self._check)
            if importance.judged_rows < importance.part_rows:
                self._warn(
                    "IMPORTANCE_SAMPLED",
                    f"feature importance was measured on {importance.judged_rows} of {importance.part_rows} test rows",
                )
            self._begin(TrainingStep.SAVING)
        except CancellationError as error:
            self._keep_checkpoint(error, trained)
            raise
        artifact = build_artifact(
            strategy=strategy,
            fitted=fitted,
            training_config=self._training_config,
            model_config=self._model_config,
            data=DataFacts(
                price_data=price_data,
                start_date=start,
                end_date=end,
                data_mode=data_mode,
                shares=shares,
                rows=rows,
                split=split,
            ),
            trained=trained,
            test_metrics=test_metrics,
            evaluation={
                **evaluation,
                "importance": list(importance.features),
                "group_importance": list(importance.groups),
                "validation_method": validation.method if validation is not None else "",
                "folds": fold_results,
                "leakage": leakage_verdict(reports, label_spans, split),
                "rows": row_report(rows, split),
            },
            warnings=self._warnings,
            start_time=start_time,
            resumed_from=resumed_from,
        )
        stored = self._store(artifact, self._model_storage) if self._model_storage is not None else None

        # The model is stored: from here on a cancel comes too late.
        self._begin(TrainingStep.BUILDING_RESULT, is_cancellable=False)
        result = stored.result if stored is not None else result_of(artifact)
        self._begin(TrainingStep.COMPLETE, is_cancellable=False)
        return result

    def _train(
        self, build_lanes: Callable[[], tuple[Lane, tuple[FoldLane, ...]]], resume_from: Path | None
    ) -> tuple[tuple[TrainedModel, ...], tuple[FoldLane, ...], ResumedFrom | None]:
        """Train the lane and its folds; return what came of each, the folds, and what was gone on from."""
        while True:
            lane, fold_lanes = build_lanes()
            try:
                resumed_from = None if resume_from is None else ResumedFrom.read(resume_from)
                trained = self._pipeline.train_lanes(
                    [lane, *(fold.lane for fold in fold_lanes)],
                    self._progress_callback,
                    self._token,
                    checkpoint_dir=self._checkpoint_dir,
                    checkpoint_plan=self._checkpoint_plan,
                    resume_from=resume_from,
                )
            except (NotFoundError, CorruptDataError) as error:
                if resume_from is None or self._must_resume:
                    raise
                self._say(CHECKPOINT_UNUSABLE, f"training begins at the beginning: {error.message}")
                resume_from = None
                continue
            return trained, fold_lanes, resumed_from

    def _store(self, artifact: ModelArtifact, target: SaveTarget) -> StoredModel:
        try:
            return self._pipeline.save_model(artifact, target)
        except OSError as error:
            raise StorageError(
                f"the trained model could not be stored ({error}), and nothing of it was kept; free space there and "
                "train again"
            ) from error

    def _build_folds(
        self,
        strategy: StrategyConfig,
        rows: Rows,
        split: DataSplit,
        labels: Mapping[str, Labels],
        price_data: PriceData,
        values: IndicatorValues,
        shares: DataSplitConfig,
    ) -> tuple[DataSplit, ...]:
        if strategy.validation is None:
            return ()
        return build_fold_splits(
            self._pipeline,
            rows=rows,
            main=split,
            labels=labels,
            price_data=price_data,
            indicator_values=values,
            strategy=strategy,
            shares=shares,
            validation=strategy.validation,
            check=self._check,
        )

    def _warn_of_silent_volume(self, strategy: StrategyConfig, price_data: PriceData) -> None:
        names = [own.feature_id for own in strategy.indicators if SIGNATURES[own.name].needs_volume]
        silent = [symbol for symbol, own in price_data.items() if not own.base.volume.any()]
        if names and silent:
            self._warn(
                "NO_VOLUME", f"no bar of {', '.join(silent)} has a volume; there is nothing in {', '.join(names)} there"
            )

    def _warn_of_device(self, trained: TrainedModel) -> None:
        if self._settings.mixed_precision and not trained.device.supports_mixed_precision:
            self._warn(
                "MIXED_PRECISION_UNSUPPORTED",
                f"{trained.device.device} has no mixed precision; trained in full precision",
            )
        if self._settings.memory_fraction is not None and trained.device.device_type != "cuda":
            self._warn(
                "MEMORY_FRACTION_UNSUPPORTED",
                f"memory_fraction limits the memory of a CUDA device; {trained.device.device} is used without a limit",
            )

    def _begin(self, step: TrainingStep, *, is_cancellable: bool = True) -> None:
        if is_cancellable:
            self._check()
        logger.info("Step %d: %s", step, STEP_TITLES[step])
        _tell(self._step_callback, step)

    def _check(self) -> None:
        raise_if_cancelled(self._token)

    def _warn(self, reason: str, message: str) -> None:
        """Warn of what the user of the model must know: it is stored with it."""
        self._warnings.append(message)
        self._say(reason, message)

    def _say(self, reason: str, message: str) -> None:
        """Warn of what concerns this execution alone; the result is the same without it."""
        logger.warning("%s", message)
        _tell(self._warning_callback, reason, message)

    def _warn_of_input_size(self, actual: int) -> None:
        declared = self._model_config.get("input_size") or self._strategy.model.input_size
        if declared is not None and int(declared) != actual:
            self._warn(
                "INPUT_SIZE_DIFFERS",
                f"model.input_size is {declared}, but the strategy makes {actual} features; {actual} is used",
            )

    def _keep_checkpoint(self, error: CancellationError, trained: TrainedModel) -> None:
        if self._checkpoint_dir is not None and getattr(self._token, "save_checkpoint", False):
            keeper = CheckpointKeeper(
                self._checkpoint_dir, self._checkpoint_plan, every_epochs=None, clock=time.monotonic
            )
            error.checkpoint_path = keeper.save_stop(trained.checkpoint)


def _tell(callback: Callable[..., None] | None, *arguments: object) -> None:
    if callback is None:
        return
    try:
        callback(*arguments)
    except CancellationError:
        raise
    except Exception:  # a watcher's defect must not cost the training
        logger.exception("callback failed at %s; training goes on", arguments)


def _parse_data_mode(value: str) -> str:
    try:
        return str(DataMode(value))
    except ValueError:
        raise InvalidInputError(f"data_mode must be backend, local or csv, was {value!r}", field="data_mode") from None


def _parse_day(value: date | str, field: str) -> date:
    try:
        return value if isinstance(value, date) else date.fromisoformat(value)
    except ValueError:
        raise InvalidInputError(f"{field} must be a date such as 2017-01-31, was {value!r}", field=field) from None
