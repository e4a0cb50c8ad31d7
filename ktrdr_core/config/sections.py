"""The sections of a strategy file, grammar v2. `strategy.py` puts them together.

Every section is frozen, refuses unknown keys, and checks its own rules. What this version allows but does not
build is refused by `training/preflight.py`, not here: a file may be right before it can be trained.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ktrdr_core.config.naming import NAME_RULE, is_name
from ktrdr_core.config.signatures import (
    SIGNATURES,
    ParameterValue,
    PriceSource,
    indicator_signature,
)
from ktrdr_core.errors import InvalidIndicatorError

SPLIT_TOLERANCE = 1e-6


def _named(value: str) -> str:
    if not is_name(value):
        raise PydanticCustomError("name", "must be {rule}", {"rule": NAME_RULE})
    return value


Name = Annotated[str, Field(strict=True), AfterValidator(_named)]
Identifier = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Text = Annotated[str, StringConstraints(strict=True, max_length=20_000)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]  # neither 1 nor "yes" is one


class Section(BaseModel):
    """A mapping of the file: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SymbolsConfig(Section):
    """Instruments: `single` with one, `multi_symbol` with a list.

    Attributes:
        sampling: `balanced` shows each symbol equally often in an epoch, `proportional` as often as it has rows.
    """

    mode: Literal["single", "multi_symbol"] = "single"
    list: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=1_000)
    symbol: Name | None = None
    sampling: Literal["balanced", "proportional"] = "balanced"

    @property
    def names(self) -> tuple[str, ...]:
        return self.list if self.list is not None else (self.symbol or "",)

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        _check_choice(self.mode, "single", self.list, "list", self.symbol, "symbol")
        return self


class TimeframesConfig(Section):
    """Bar lengths: `single` with one, `multi_timeframe` with a list and the base one among them.

    A row is a bar of the base timeframe (by default the shortest); the longer ones contribute their last closed bar.
    """

    mode: Literal["single", "multi_timeframe"] = "single"
    list: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=20)
    timeframe: Name | None = None
    base_timeframe: Name | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.list if self.list is not None else (self.timeframe or "",)

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        _check_choice(self.mode, "single", self.list, "list", self.timeframe, "timeframe")
        if self.base_timeframe is not None and self.base_timeframe not in self.names:
            raise PydanticCustomError(
                "base_timeframe",
                "base_timeframe must be one of {names}, was {base}",
                {"names": ", ".join(self.names), "base": self.base_timeframe},
            )
        return self


def _check_choice(
    mode: str,
    single: str,
    several: tuple[str, ...] | None,
    several_key: str,
    one: str | None,
    one_key: str,
) -> None:
    context = {"several": several_key, "one": one_key, "single": single, "mode": mode}
    if several is not None and one is not None:
        raise PydanticCustomError("choice", "give either {several} or {one}, not both", context)
    if several is None and one is None:
        key = one_key if mode == single else several_key
        raise PydanticCustomError("choice", "{key} is missing (mode is {mode})", {**context, "key": key})
    if several is None and mode != single:
        raise PydanticCustomError("choice", "mode {mode} needs {several}, not {one}", context)
    if several is not None and mode == single and len(several) > 1:
        raise PydanticCustomError("choice", "mode {single} takes one name; {several} has several", context)
    if several is not None and len(set(several)) != len(several):
        raise PydanticCustomError("choice", "{several} names the same one twice", context)


class TrainingDataConfig(Section):
    """What to train on; `history_required` bars must exist in the range that is trained on."""

    symbols: SymbolsConfig
    timeframes: TimeframesConfig
    history_required: Annotated[int, Field(strict=True, ge=0, le=100_000_000)] = 0


class DeploymentTarget(Section):
    """Where a trained model is meant to be used; kept with the model, no rule of the training reads it."""

    mode: Name | None = None
    list: tuple[Name, ...] | None = None
    supported: tuple[Name, ...] | None = None


class DeploymentConfig(Section):
    target_symbols: DeploymentTarget | tuple[Name, ...] | None = None
    target_timeframes: DeploymentTarget | tuple[Name, ...] | None = None


class IndicatorConfig(Section):
    """One indicator with every parameter resolved.

    In the file its parameters stand beside `name`: `{name: rsi, period: 14, source: close}`.

    Attributes:
        name: Canonical name.
        feature_id: Name of its values; defaults to the name, its parameters and, unless close, its source.
        source: Price it is computed from.
        timeframes: Bar lengths it is computed on; None means all of the strategy.
        parameters: In the signature's order, defaults filled in.
    """

    name: str
    feature_id: Identifier
    source: PriceSource = "close"
    timeframes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=20)] | None = None
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_parameters(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise PydanticCustomError("mapping", "must be a mapping with a name")
        fields = dict(raw)
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise PydanticCustomError("at:name", "name must be an indicator's name")
        feature_id, source = fields.pop("feature_id", None), fields.pop("source", "close")
        timeframes = fields.pop("timeframes", None)
        try:
            signature = indicator_signature(name)
            parameters = signature.check(fields)
            signature.check_source(source)
        except InvalidIndicatorError as error:
            field = error.violations[0].field
            raise PydanticCustomError(f"at:{field}", "{text}", {"text": error.message}) from error
        if feature_id is None:
            feature_id = signature.default_feature_id(parameters, source)
        resolved = {"name": signature.name, "feature_id": feature_id, "source": source, "parameters": parameters}
        return resolved if timeframes is None else {**resolved, "timeframes": timeframes}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        flat = {"name": self.name, "feature_id": self.feature_id, "source": self.source, **self.parameters}
        return flat if self.timeframes is None else {**flat, "timeframes": list(self.timeframes)}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its values: `feature_id`, then `feature_id.output` of each named output."""
        return (self.feature_id, *(f"{self.feature_id}.{output}" for output in SIGNATURES[self.name].outputs))


# Points of a membership function in non-decreasing order: how many each type takes.
_ORDERED_POINTS = {"triangular": 3, "trapezoidal": 4, "left_shoulder": 2, "right_shoulder": 2}
# Other parameters: their names.
_NAMED_PARAMETERS = {
    "gaussian": ("mean", "sigma"),
    "generalised_bell": ("width", "slope", "centre"),
    "sigmoid": ("slope", "centre"),
}
_SET_TYPE_ALIASES = {
    "bell": "generalised_bell",
    "gbell": "generalised_bell",
    "generalized_bell": "generalised_bell",
    "triangle": "triangular",
    "trapezoid": "trapezoidal",
    "gauss": "gaussian",
}


class FuzzySetConfig(Section):
    """One fuzzy set: a membership function and its parameters.

    triangular [a, b, c] and trapezoidal [a, b, c, d] take points in non-decreasing order, the first below the last;
    left_shoulder [a, b] is 1 up to a and 0 from b on, right_shoulder its mirror image; gaussian [mean, sigma];
    generalised_bell [width, slope, centre]: 1 / (1 + |(x - centre) / width| ** (2 slope)); sigmoid [slope, centre]:
    1 / (1 + exp(-slope (x - centre))), falling where the slope is negative.

    quantile takes two to four levels in [0, 1] instead of values: they become the values that have these shares of the
    training part below them, and the set a shoulder, a triangle or a trapezoid.

    Attributes:
        type: The membership function.
        parameters: See above.
        shoulder: For quantile with two levels, which side stays at 1.
    """

    type: Literal[
        "triangular",
        "trapezoidal",
        "left_shoulder",
        "right_shoulder",
        "gaussian",
        "generalised_bell",
        "sigmoid",
        "quantile",
    ]
    parameters: tuple[Number, ...] = Field(min_length=1, max_length=8)
    shoulder: Literal["left", "right"] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _canonical_type(cls, value: Any) -> Any:
        return _SET_TYPE_ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        shown = {"type": self.type, "values": str(list(self.parameters))}
        if self.type == "quantile":
            self._check_quantile(shown)
        elif self.shoulder is not None:
            raise PydanticCustomError("at:shoulder", "shoulder belongs to quantile, not to {type}", shown)
        elif self.type in _ORDERED_POINTS:
            self._check_points(_ORDERED_POINTS[self.type], shown)
        else:
            self._check_named(_NAMED_PARAMETERS[self.type], shown)
        return self

    def _check_quantile(self, shown: dict[str, Any]) -> None:
        if not 2 <= len(self.parameters) <= 4:
            raise PydanticCustomError("at:parameters", "{type} takes 2 to 4 levels, was {values}", shown)
        if min(self.parameters) < 0 or max(self.parameters) > 1:
            raise PydanticCustomError("at:parameters", "{type} levels must be in [0, 1], was {values}", shown)
        if (len(self.parameters) == 2) != (self.shoulder is not None):
            raise PydanticCustomError(
                "at:shoulder", "{type} with two levels needs shoulder: left or right, and no other does", shown
            )
        self._check_points(len(self.parameters), shown)

    def _check_points(self, count: int, shown: dict[str, Any]) -> None:
        if len(self.parameters) != count:
            raise PydanticCustomError(
                "at:parameters", "{type} takes {count} parameters, was {values}", {**shown, "count": count}
            )
        if any(left > right for left, right in itertools.pairwise(self.parameters)):
            raise PydanticCustomError("at:parameters", "{type} parameters must not decrease, was {values}", shown)
        if self.parameters[0] == self.parameters[-1]:
            raise PydanticCustomError(
                "at:parameters", "the first of {type} parameters must be below the last, was {values}", shown
            )

    def _check_named(self, names: tuple[str, ...], shown: dict[str, Any]) -> None:
        shown["names"] = ", ".join(names)
        if len(self.parameters) != len(names):
            raise PydanticCustomError("at:parameters", "{type} takes [{names}], was {values}", shown)
        values = dict(zip(names, self.parameters, strict=True))
        for name in ("sigma", "width"):
            if values.get(name, 1.0) <= 0:
                raise PydanticCustomError(
                    "at:parameters",
                    "{name} of {type} must be above 0, was {value}",
                    {**shown, "name": name, "value": values[name]},
                )
        if self.type == "generalised_bell" and values["slope"] <= 0:
            raise PydanticCustomError("at:parameters", "slope of {type} must be above 0, was {values}", shown)
        if values.get("slope") == 0:
            raise PydanticCustomError("at:parameters", "slope of {type} must not be 0, was {values}", shown)


FuzzySets = dict[Identifier, FuzzySetConfig]

ModelType = Literal["mlp", "lstm", "gru", "transformer"]
RECURRENT_TYPES: tuple[str, ...] = ("lstm", "gru", "transformer")
"""Models that see a window of bars, oldest first, instead of one row."""


class ArchitectureConfig(Section):
    """The network.

    Attributes:
        hidden_layers: Units of each layer; for a transformer, the feed-forward width of each encoder layer.
        activation: Between layers; an lstm or gru has its own inside.
        output_activation: `softmax`; `sigmoid` judges each class alone (one against the rest); `linear` for regression.
        dropout: Share of hidden units silenced while training.
        d_model: Width of a transformer's tokens; a multiple of `num_heads`.
        num_heads: Attention heads of a transformer.
    """

    hidden_layers: tuple[Annotated[int, Field(strict=True, ge=1, le=65_536)], ...] = Field(
        default=(32, 16), min_length=1, max_length=64
    )
    activation: Literal["relu", "tanh", "sigmoid", "gelu", "leaky_relu", "elu", "silu"] = "relu"
    output_activation: Literal["softmax", "sigmoid", "linear"] | None = None
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    d_model: Annotated[int, Field(strict=True, ge=2, le=4_096)] | None = None
    num_heads: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None


class FeaturesConfig(Section):
    """How memberships become a row.

    Attributes:
        include_price_context: Add the causal price columns of `features/engineer.py`.
        include_raw_indicators: Add the indicators' own values, as the fuzzy sets see them.
        lookback_periods: Bars before the current one that a row sees: lagged memberships for an mlp, and for a
            recurrent model a window of `lookback_periods` + 1 bars of every column.
        scale_features: Scale each column by what the training part shows.
        scaling: `standard` (zero mean, unit variance), `robust` (median, interquartile range) or `min_max` ([0, 1]).
    """

    include_price_context: Flag = False
    include_raw_indicators: Flag = False
    lookback_periods: Annotated[int, Field(strict=True, ge=0, le=1_000)] = 0
    scale_features: Flag = True
    scaling: Literal["standard", "robust", "min_max"] = "standard"


Rate = Annotated[float, Field(strict=True, gt=0, lt=10, allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Epochs = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class ScheduleConfig(Section):
    """How the learning rate changes from epoch to epoch; all are functions of the epoch alone but `plateau`.

    Attributes:
        type: `constant`; `step` (times `factor` every `every_epochs`); `exponential` (times `factor` each epoch);
            `cosine` (down to `factor` of the rate at the last epoch); `plateau` (times `factor` after `every_epochs`
            epochs without a lower validation loss).
        factor: See above.
        every_epochs: See above.
        warm_up_epochs: Epochs over which the rate first rises linearly to its value.
    """

    type: Literal["constant", "step", "exponential", "cosine", "plateau"] = "constant"
    factor: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] | None = None
    every_epochs: Epochs | None = None
    warm_up_epochs: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0

    @model_validator(mode="after")
    def _keys_of_type(self) -> Self:
        needed = {
            "constant": (),
            "step": ("factor", "every_epochs"),
            "exponential": ("factor",),
            "cosine": (),
            "plateau": ("factor", "every_epochs"),
        }[self.type]
        allowed = (*needed, "factor") if self.type == "cosine" else needed
        for key in ("factor", "every_epochs"):
            is_given = getattr(self, key) is not None
            shown = {"key": key, "type": self.type}
            if key in needed and not is_given:
                raise PydanticCustomError("choice", "a {type} schedule needs {key}", shown)
            if is_given and key not in allowed:
                raise PydanticCustomError(f"at:{key}", "a {type} schedule takes no {key}", shown)
        if self.type in ("step", "exponential", "plateau") and self.factor == 0:
            raise PydanticCustomError("at:factor", "factor of a {type} schedule must be above 0", {"type": self.type})
        return self


StoppingMetric = Literal["val_loss", "val_accuracy", "val_balanced_accuracy", "val_mcc"]


class EarlyStoppingConfig(Section):
    """Ends a training whose validation part no longer gains; the best weights are kept either way.

    Attributes:
        metric: What must improve; the loss falls, the others rise. It also chooses the best epoch.
        patience: Epochs without an improvement that are borne.
        min_delta: Change that counts as one.
    """

    metric: StoppingMetric = "val_loss"
    patience: Epochs = 10
    min_delta: NonNegativeNumber = 0.0


class OptimisationConfig(Section):
    """`model.training` of the file.

    Attributes:
        learning_rate: Step size at the start of the schedule.
        batch_size: Rows of an optimiser update.
        epochs: Passes over the training part, at most.
        optimizer: adam, adamw, sgd or rmsprop, each with torch's defaults.
        weight_decay: L2 penalty (adamw: decoupled decay); None is torch's default: 0.01 for adamw, else 0.
        momentum: Of sgd.
        schedule: Of the learning rate.
        gradient_clip_norm: Largest norm of the whole gradient; None clips nothing.
        early_stopping: None runs every epoch.
        loss: `cross_entropy`, or `focal` (Lin et al., 2017) which looks at what is still wrong. A regression uses
            `mse` or `huber`.
        focal_gamma: Of the focal loss.
        class_weights: `balanced` weighs each class by N / (3 n_class) of the training part.
        mixed_precision: bfloat16 where the device has it.
        gpu_memory_fraction: Share of a GPU's memory that may be used.
        checkpoint_every_epochs: Keep a checkpoint this often; None only when stopped.
    """

    learning_rate: Rate = 0.001
    batch_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 32
    epochs: Epochs = 50
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    weight_decay: NonNegativeNumber | None = None
    momentum: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    schedule: ScheduleConfig = ScheduleConfig()
    gradient_clip_norm: PositiveNumber | None = None
    early_stopping: EarlyStoppingConfig | None = None
    loss: Literal["cross_entropy", "focal", "mse", "huber"] | None = None
    focal_gamma: PositiveNumber = 2.0
    class_weights: Literal["none", "balanced"] = "none"
    mixed_precision: Flag = False
    gpu_memory_fraction: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    checkpoint_every_epochs: Epochs | None = None

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise PydanticCustomError("at:momentum", "momentum belongs to sgd, not to {name}", {"name": self.optimizer})
        return self


class ModelConfig(Section):
    """Network, features and optimisation.

    Attributes:
        symbol_embedding_dim: Numbers by which the model knows a symbol; 0 keeps it symbol-agnostic.
    """

    type: ModelType
    architecture: ArchitectureConfig = ArchitectureConfig()
    features: FeaturesConfig = FeaturesConfig()
    training: OptimisationConfig = OptimisationConfig()
    input_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    symbol_embedding_dim: Annotated[int, Field(strict=True, ge=0, le=4_096)] = 0

    @property
    def window_bars(self) -> int:
        """Bars of a row's window; 1 for an mlp, whose lags are columns."""
        return self.features.lookback_periods + 1 if self.type in RECURRENT_TYPES else 1

    @model_validator(mode="after")
    def _architecture_of_type(self) -> Self:
        architecture = self.architecture
        if self.type in RECURRENT_TYPES and self.features.lookback_periods < 1:
            raise PydanticCustomError(
                "at:features.lookback_periods",
                "a {type} needs lookback_periods of at least 1: it sees a window of that many bars and the current one",
                {"type": self.type},
            )
        for key in ("d_model", "num_heads"):
            if self.type != "transformer" and getattr(architecture, key) is not None:
                raise PydanticCustomError(
                    f"at:architecture.{key}",
                    "{key} belongs to a transformer, not to a {type}",
                    {"key": key, "type": self.type},
                )
        if self.type == "transformer":
            d_model, num_heads = architecture.d_model or 32, architecture.num_heads or 4
            if d_model % num_heads:
                raise PydanticCustomError(
                    "at:architecture.num_heads",
                    "d_model ({d_model}) must be a multiple of num_heads, was {num_heads}",
                    {"d_model": d_model, "num_heads": num_heads},
                )
        return self


class TradingHours(Section):
    """Hours of the day, UTC, in which signals count: `start` <= hour < `end`; 22 to 4 goes over midnight."""

    start: Annotated[int, Field(strict=True, ge=0, le=23)]
    end: Annotated[int, Field(strict=True, ge=1, le=24)]

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.start == self.end:
            raise PydanticCustomError("at:end", "end must differ from start, was {hour}", {"hour": self.end})
        return self


class FiltersConfig(Section):
    """Conditions under which a signal becomes HOLD.

    Attributes:
        min_separation: The best probability must be this far above the second.
        volume_filter: Drop signals at bars whose volume is below the mean of the 20 bars up to them.
        min_range: Drop signals at bars whose (high - low) / close is below this.
        trading_hours: Drop signals at bars that close outside these hours.
    """

    min_separation: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    volume_filter: Flag = False
    min_range: NonNegativeNumber = 0.0
    trading_hours: TradingHours | None = None


class DecisionsConfig(Section):
    """How a trained model's answers become signals.

    Attributes:
        output_format: `classification`: the network answers BUY, HOLD, SELL; `regression`: the forward return, which
            the thresholds of the labels turn into a class.
        confidence_threshold: A signal whose probability is below it is HOLD.
        position_awareness: HOLD keeps the open position, and a signal that repeats it is HOLD; otherwise HOLD is flat.
        filters: Conditions under which a signal is dropped.
        cost_bps: Cost of opening or closing a position, in basis points of its value, for the evaluation of signals.
    """

    output_format: Literal["classification", "regression"] = "classification"
    confidence_threshold: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    position_awareness: Flag = False
    filters: FiltersConfig = FiltersConfig()
    cost_bps: Annotated[float, Field(strict=True, ge=0, le=1_000, allow_inf_nan=False)] = 1.0


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


class Header(Section):
    """The words about a strategy."""

    name: Name
    description: Text = ""
    version: Text = "1.0"
    hypothesis: Text = ""
    scope: Text = ""

    @field_validator("version", mode="before")
    @classmethod
    def _version_text(cls, value: Any) -> Any:
        """YAML reads `version: 2.0` as a number."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else value
