"""Refuses at the door what cannot be trained, and resolves every default. Needs no torch.

Rules decided here:
- The strategy's `data_split` is the truth. A `validation_split` of the request replaces the validation share and the
  training share gives or takes the difference. Without a `data_split`, validation and test each have
  `validation_split` (0.2 if the request has none).
- `start_date` and `end_date` are days of UTC, both included, and must lie within the bars. Warm-up is taken from
  inside the range: bars before `start_date` are not read, so that a range means the same whatever was stored before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from typing import Any, get_args

from ktrdr_core.config.loader import parse_strategy, strategy_from_dict
from ktrdr_core.config.naming import check_name
from ktrdr_core.config.sections import ModelConfig
from ktrdr_core.config.signatures import indicator_signature
from ktrdr_core.config.strategy import DataSplitConfig, StrategyConfig
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.timeframe import Timeframe
from ktrdr_core.datasets.series_features import feature_warm_up_bars
from ktrdr_core.datasets.split import check_part_sizes
from ktrdr_core.domain.spec import DataMode, TrainingSpec
from ktrdr_core.errors import InvalidInputError, InvalidSpecError, TooFewBarsError, UnsupportedError
from ktrdr_core.fuzzy.memberships import find_membership_function
from ktrdr_core.labels.registry import find_labeler
from ktrdr_core.models.network_spec import BUILT_ACTIVATIONS, BUILT_OUTPUT_ACTIVATIONS, check_model_type
from ktrdr_core.training.hyperparameters import BUILT_OPTIMIZERS

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
        InvalidSpecError: The request breaks a rule, or its dates are outside the bars.
        UnsupportedError: The grammar allows it, this version does not build it; it is named.
        SeriesNotFoundError: There are no such bars; those that exist are named.
        InvalidBarsError: The bars break a rule of the data.
        TooFewBarsError: Too few rows are left for a part.
    """
    strategy, config = prepare_strategy(spec)
    ranges: list[tuple[date, date]] = []
    for symbol in strategy.symbols:
        for timeframe in strategy.timeframes:
            bars = bar_store.load(symbol, timeframe)
            _check_source(spec.data_mode, bar_store, bars)
            start, end = _check_dates(spec, bars)
            _check_enough(strategy, bars.between(start, end))
            ranges.append((start, end))
    return TrainingPlan(
        strategy=strategy,
        symbols=strategy.symbols,
        timeframes=strategy.timeframes,
        start_date=min(start for start, _ in ranges),
        end_date=max(end for _, end in ranges),
        config=config,
    )


def prepare_strategy(spec: TrainingSpec, *, source: str = "strategy") -> tuple[StrategyConfig, dict[str, Any]]:
    """Return the strategy with the request's overrides, and the executor's config: the part that needs no bars.

    Args:
        spec: What was asked for.
        source: Name of the strategy's file, for messages.

    Raises:
        InvalidStrategyError: The strategy breaks the grammar.
        InvalidSpecError: The request breaks a rule.
        UnsupportedError: The grammar allows it, this version does not build it; it is named.
    """
    strategy = _apply_overrides(parse_strategy(spec.strategy_yaml, source=source), spec)
    check_built(strategy)
    if spec.data_mode is DataMode.IB:
        raise UnsupportedError("data mode 'ib' is not built yet; use local or csv", field="spec.data_mode")
    return strategy, _executor_config(strategy, spec)


def check_built(strategy: StrategyConfig) -> None:
    """Refuse, by name, what the grammar allows and this version does not build.

    Raises:
        UnsupportedError: The first such thing, with its path in the file.
    """
    model, decisions, training = strategy.model, strategy.decisions, strategy.training
    _refuse_several(strategy)
    for index, indicator in enumerate(strategy.indicators):
        _at(f"indicators[{index}].name", indicator_signature, indicator.name)
    for name, sets in strategy.fuzzy_sets.items():
        for set_name, fuzzy_set in sets.items():
            _at(f"fuzzy_sets.{name}.{set_name}.type", find_membership_function, fuzzy_set.type)
    _at("model.type", check_model_type, model.type)
    _one_of("model.architecture.activation", model.architecture.activation, BUILT_ACTIVATIONS)
    _one_of("model.architecture.output_activation", model.architecture.output_activation, BUILT_OUTPUT_ACTIVATIONS)
    _one_of("model.training.optimizer", model.training.optimizer, BUILT_OPTIMIZERS)
    if model.symbol_embedding_dim:
        raise _not_built("model.symbol_embedding_dim", model.symbol_embedding_dim, "remove it or set it to 0")
    _one_of("decisions.output_format", decisions.output_format, ("classification",))
    if decisions.position_awareness:
        raise _not_built("decisions.position_awareness", "true", "remove it or set it to false")
    if decisions.filters:
        raise _not_built("decisions.filters", ", ".join(decisions.filters), "remove it")
    _one_of("training.method", training.method, ("supervised",))
    _at("training.labels.source", find_labeler, training.labels.source)


def _refuse_several(strategy: StrategyConfig) -> None:
    for kind, mode, names in (
        ("symbols", strategy.training_data.symbols.mode, strategy.symbols),
        ("timeframes", strategy.training_data.timeframes.mode, strategy.timeframes),
    ):
        if mode != "single" or len(names) > 1:
            raise _not_built(
                f"training_data.{kind}.mode",
                f"{mode} ({', '.join(names)})",
                f"this version trains on one of the {kind}",
            )


def _not_built(path: str, value: object, way_out: str) -> UnsupportedError:
    return UnsupportedError(f"{path} {value} is not built yet; {way_out}", field=path)


def _one_of(path: str, value: str, built: tuple[str, ...]) -> None:
    if value not in built:
        raise _not_built(path, value, f"this version has {', '.join(built)}")


def _at(path: str, find: Callable[[str], object], name: str) -> None:
    """Look `name` up in a registry, naming its path in the file where that refuses it."""
    try:
        find(name)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error.message} ({path})", field=path) from error


def _apply_overrides(strategy: StrategyConfig, spec: TrainingSpec) -> StrategyConfig:
    raw = strategy.to_dict()
    for kind, names, multi in (("symbols", spec.symbols, spec.multi_symbol), ("timeframes", spec.timeframes, None)):
        what = kind.removesuffix("s")
        for index, name in enumerate(names):
            check_name(name, field=f"spec.{kind}[{index}]", what=what, error_class=InvalidSpecError)
        section = raw["training_data"][kind]
        chosen = list(dict.fromkeys(names)) or section.get("list") or [section[what]]
        several = f"multi_{what}"
        wants_several = multi if multi is not None else (len(chosen) > 1 if names else section["mode"] == several)
        if len(chosen) > 1 and not wants_several:
            raise InvalidSpecError(
                f"multi_symbol is false but {len(chosen)} {kind} are asked for ({', '.join(chosen)}); name one",
                field=f"spec.{kind}",
            )
        if names or multi is not None:
            raw["training_data"][kind] = {"mode": several if wants_several else "single", "list": chosen}
    for timeframe in spec.timeframes or strategy.timeframes:
        _check_timeframe(timeframe, "spec.timeframes" if spec.timeframes else "training_data.timeframes")
    raw["model"]["type"] = _model_type(spec.model_type) if spec.model_type else raw["model"]["type"]
    for key in ("epochs", "batch_size", "learning_rate"):
        value = getattr(spec, key)
        if value is not None:
            raw["model"]["training"][key] = value
    raw["training"]["data_split"] = resolve_data_split(strategy.training.data_split, spec.validation_split).model_dump()
    return strategy_from_dict(raw)


def _check_timeframe(text: str, field: str) -> None:
    try:
        Timeframe.parse(text)
    except InvalidInputError as error:
        raise InvalidSpecError(f"{error.message} ({field})", field=field) from error


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
    return DataSplitConfig(train=train, validation=share, test=test)


def _executor_config(strategy: StrategyConfig, spec: TrainingSpec) -> dict[str, Any]:
    split = strategy.training.data_split
    if split is None:  # _apply_overrides resolved it
        raise InvalidSpecError("the strategy has no data_split; give one", field="spec.validation_split")
    model = strategy.model
    return {
        "strategy_config": strategy.to_dict(),
        "training_config": {
            **model.training.model_dump(),
            "seed": spec.seed,
            "enable_gpu": spec.enable_gpu,
            "require_gpu": spec.require_gpu,
            "num_gpus": spec.num_gpus,
            "memory_fraction": spec.memory_fraction,
            "mixed_precision": spec.mixed_precision,
            "validation_split": split.validation,
            "data_split": split.model_dump(),
            "data_mode": str(spec.data_mode),
        },
        "model_config": {
            "type": model.type,
            **model.architecture.model_dump(mode="json"),
            "input_size": model.input_size,
        },
    }


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
            "use local",
            field="spec.data_mode",
        )


def _check_dates(spec: TrainingSpec, bars: Bars) -> tuple[date, date]:
    """Return the days to train on."""
    first, last = bars.first_day, bars.last_day
    for name, day in (("start_date", spec.start_date), ("end_date", spec.end_date)):
        if day is not None and not first <= day <= last:
            raise InvalidSpecError(
                f"{name} {day} is outside the bars; {bars.symbol} {bars.timeframe} has bars from {first} to {last}",
                field=f"spec.{name}",
            )
    return spec.start_date or first, spec.end_date or last


def _check_enough(strategy: StrategyConfig, bars: Bars) -> None:
    subject = f"{bars.symbol} {bars.timeframe}"
    required = strategy.training_data.history_required
    if len(bars) < required:
        raise TooFewBarsError(
            f"{subject} has {len(bars)} bars in this range; training_data.history_required asks for {required}; "
            "take a longer range or lower it",
            field="spec.start_date",
        )
    labels, split = strategy.training.labels, strategy.training.data_split
    if split is not None:
        num_rows = len(bars) - feature_warm_up_bars(strategy) - labels.label_lookahead
        check_part_sizes(len(bars), num_rows, split, labels.label_lookahead, subject=subject)
