"""Refuses at the door what cannot be trained, and resolves every default. Needs no torch.

Rules decided here:
- The strategy's `data_split` is the truth. A `validation_split` of the request replaces the validation share and the
  training share gives or takes the difference. Without a `data_split`, validation and test each have
  `validation_split` (0.2 if the request has none).
- `start_date` and `end_date` are days of UTC, both included, and must lie within the bars of at least one symbol;
  every symbol needs enough bars between them. Warm-up is taken from
  inside the range: bars before `start_date` are not read, so that a range means the same whatever was stored before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from typing import Any, get_args

from ktrdr_core.config.loader import parse_strategy, strategy_from_dict
from ktrdr_core.config.model_sections import ModelConfig
from ktrdr_core.config.strategy import DataSplitConfig, StrategyConfig
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.data.symbol_series import load_symbol_bars
from ktrdr_core.datasets.folds import check_fold_sizes
from ktrdr_core.datasets.rows import expected_rows
from ktrdr_core.datasets.series_features import feature_warm_up_bars
from ktrdr_core.datasets.split import check_part_sizes
from ktrdr_core.domain.spec import DataMode, TrainingSpec
from ktrdr_core.errors import InvalidSpecError, TooFewBarsError, UnsupportedError
from ktrdr_core.labels.registry import label_horizon
from ktrdr_core.training.footprint import check_footprint, check_networks
from ktrdr_core.training.series_override import with_series

DEFAULT_VALIDATION_SPLIT = 0.2
MODEL_TYPES: tuple[str, ...] = get_args(ModelConfig.model_fields["type"].annotation)


@dataclass(frozen=True)
class TrainingPlan:
    """A training that passed every check, with nothing left to default.

    Attributes:
        strategy: The strategy with the request's overrides applied.
        symbols: Instruments.
        timeframes: Bar lengths.
        start_date: First day, inclusive, UTC.
        end_date: Last day, inclusive, UTC.
        config: What TrainingExecutor takes: strategy_config, training_config, model_config.
    """

    strategy: StrategyConfig
    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    start_date: date
    end_date: date
    config: dict[str, Any]


def preflight(spec: TrainingSpec, bar_store: BarStore) -> TrainingPlan:
    """Return the plan of a training, or say what is wrong with it. Reads the bars; changes nothing.

    Raises:
        InvalidStrategyError: The strategy breaks the grammar.
        InvalidSpecError: The request breaks a rule, its dates are outside the bars, or it is too large.
        UnsupportedError: A data mode that is not built.
        SeriesNotFoundError: There are no such bars; those that exist are named.
        InvalidBarsError: The bars break a rule of the data.
        TooFewBarsError: Too few rows are left for a part.
    """
    strategy, config = prepare_strategy(spec)
    whole = [bar_store.load(symbol, strategy.base_timeframe) for symbol in strategy.symbols]
    for bars in whole:
        _check_source(spec.data_mode, bar_store, bars)
    start, end = _check_dates(spec, whole)
    num_bars = 0
    for symbol in strategy.symbols:
        own = load_symbol_bars(bar_store, symbol, strategy.base_timeframe, strategy.higher_timeframes, start, end)
        _check_enough(strategy, own)
        num_bars += len(own)
    check_footprint(strategy, config["model_config"], num_bars)
    return TrainingPlan(
        strategy=strategy,
        symbols=strategy.symbols,
        timeframes=(strategy.base_timeframe, *strategy.higher_timeframes),
        start_date=start,
        end_date=end,
        config=config,
    )


def prepare_strategy(spec: TrainingSpec, *, source: str = "strategy") -> tuple[StrategyConfig, dict[str, Any]]:
    """Return the strategy with the request's overrides, and the executor's config: the part that needs no bars.

    Args:
        spec: What was asked for.
        source: Name of the strategy's file, for messages.

    Raises:
        InvalidStrategyError: The strategy breaks the grammar.
        InvalidSpecError: The request breaks a rule, or the network is too large.
        UnsupportedError: A data mode that is not built.
    """
    strategy = _apply_overrides(parse_strategy(spec.strategy_yaml, source=source), spec)
    config = _executor_config(strategy, spec)
    check_networks(strategy, config["model_config"])
    if spec.data_mode is DataMode.IB:
        raise UnsupportedError("data mode 'ib' is not built yet; use backend, local or csv", field="spec.data_mode")
    return strategy, config


def _apply_overrides(strategy: StrategyConfig, spec: TrainingSpec) -> StrategyConfig:
    raw = with_series(strategy, spec.symbols, spec.timeframes, multi_symbol=spec.multi_symbol).to_dict()
    raw["model"]["type"] = _model_type(spec.model_type) if spec.model_type else raw["model"]["type"]
    for key in ("epochs", "batch_size", "learning_rate"):
        value = getattr(spec, key)
        if value is not None:
            raw["model"]["training"][key] = value
    raw["training"]["data_split"] = resolve_data_split(strategy.training.data_split, spec.validation_split).model_dump()
    return strategy_from_dict(raw)


def _model_type(name: str) -> str:
    lowered = name.lower()
    if lowered not in MODEL_TYPES:
        near = get_close_matches(lowered, MODEL_TYPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(MODEL_TYPES)}"
        raise InvalidSpecError(f"unknown model type {name!r}; {hint}", field="spec.model_type")
    return lowered


def resolve_data_split(declared: DataSplitConfig | None, validation: float | None) -> DataSplitConfig:
    """Return the shares of the parts; the one place of the rule at the top of this module.

    Raises:
        InvalidSpecError: No training part is left.
    """
    if declared is not None and validation is None:
        return declared
    share = DEFAULT_VALIDATION_SPLIT if validation is None else validation
    test = share if declared is None else declared.test
    train = round(1 - share - test, 12)
    if share <= 0 or train <= 0:
        raise InvalidSpecError(
            f"validation_split {share:g} leaves no validation part or no training part beside a test part of {test:g}; "
            f"it must be above 0 and below {1 - test if declared else 0.5:g}",
            field="spec.validation_split",
        )
    return DataSplitConfig(
        train=train, validation=share, test=test, embargo_bars=declared.embargo_bars if declared else 0
    )


def _executor_config(strategy: StrategyConfig, spec: TrainingSpec) -> dict[str, Any]:
    split = strategy.training.data_split
    if split is None:  # _apply_overrides resolved it
        raise InvalidSpecError("the strategy has no data_split; give one", field="spec.validation_split")
    model = strategy.model
    optimisation = model.training.model_dump(mode="json")
    gpu_memory_fraction = optimisation.pop("gpu_memory_fraction")
    return {
        "strategy_config": strategy.to_dict(),
        "training_config": {
            **optimisation,
            "seed": spec.seed,
            "enable_gpu": spec.enable_gpu,
            "require_gpu": spec.require_gpu,
            "num_gpus": spec.num_gpus,
            "memory_fraction": spec.memory_fraction or gpu_memory_fraction,
            "mixed_precision": spec.mixed_precision or optimisation["mixed_precision"],
            **loop_facts(strategy),
            "validation_split": split.validation,
            "data_split": split.model_dump(),
        },
        "model_config": {
            "type": model.type,
            **model.architecture.model_dump(mode="json"),
            **network_facts(strategy),
            "input_size": model.input_size,
        },
    }


def loop_facts(strategy: StrategyConfig) -> dict[str, Any]:
    """Return the part of `training_config` that follows from the rest of the strategy."""
    labels = strategy.training.labels
    return {
        "sampling": strategy.training_data.symbols.sampling,
        "num_symbols": len(strategy.symbols),
        "output_format": strategy.decisions.output_format,
        "output_activation": _output_activation(strategy),
        "buy_threshold": labels.buy_threshold if strategy.is_regression else None,
        "sell_threshold": labels.sell_threshold if strategy.is_regression else None,
    }


def network_facts(strategy: StrategyConfig) -> dict[str, Any]:
    """Return the part of `model_config` that follows from the rest of the strategy."""
    model = strategy.model
    return {
        "output_activation": _output_activation(strategy),
        "output_format": strategy.decisions.output_format,
        "window_bars": model.window_bars,
        "num_symbols": len(strategy.symbols) if model.symbol_embedding_dim else 0,
        "symbol_embedding_dim": model.symbol_embedding_dim,
    }


def _output_activation(strategy: StrategyConfig) -> str:
    return strategy.model.architecture.output_activation or ("linear" if strategy.is_regression else "softmax")


def _check_source(data_mode: DataMode, bar_store: BarStore, bars: Bars) -> None:
    if data_mode is not DataMode.CSV:
        return
    formats = [
        info.file_format
        for info in bar_store.list_series()
        if (info.symbol, info.timeframe) == (bars.symbol, bars.timeframe)
    ]
    if "csv" not in formats:
        raise InvalidSpecError(
            f"data mode csv reads CSV files; {bars.symbol} {bars.timeframe} is stored as {', '.join(formats)}; "
            "use backend or local",
            field="spec.data_mode",
        )


def _check_dates(spec: TrainingSpec, whole: Sequence[Bars]) -> tuple[date, date]:
    """Return the days to train on: those of the request, which at least one symbol must have, or all there are."""
    first, last = min(bars.first_day for bars in whole), max(bars.last_day for bars in whole)
    subject = f"{', '.join(bars.symbol for bars in whole)} {whole[0].timeframe}"
    for name, day in (("start_date", spec.start_date), ("end_date", spec.end_date)):
        if day is not None and not first <= day <= last:
            verb = "has" if len(whole) == 1 else "have"
            raise InvalidSpecError(
                f"{name} {day} is outside the bars; {subject} {verb} bars from {first} to {last}",
                field=f"spec.{name}",
            )
    return spec.start_date or first, spec.end_date or last


def _check_enough(strategy: StrategyConfig, bars: SymbolBars) -> None:
    subject = f"{bars.symbol} {bars.base.timeframe}"
    required = strategy.training_data.history_required
    if len(bars) < required:
        raise TooFewBarsError(
            f"{subject} has {len(bars)} bars in this range; training_data.history_required asks for {required}; "
            "take a longer range or lower it",
            field="spec.start_date",
        )
    labels, split = strategy.training.labels, strategy.training.data_split
    if split is None:
        return
    num_rows = expected_rows(
        len(bars),
        warm_up_bars=feature_warm_up_bars(bars, strategy),
        window_bars=strategy.model.window_bars,
        labels=labels,
    )
    horizon_bars = label_horizon(labels)
    check_part_sizes(len(bars), num_rows, split, horizon_bars, subject=subject)
    if strategy.validation is not None:
        check_fold_sizes(len(bars), num_rows, split, strategy.validation, horizon_bars, subject=subject)
