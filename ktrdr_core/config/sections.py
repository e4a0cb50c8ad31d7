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
    canonical_indicator_name,
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
    """Instruments: `single` with one, `multi_symbol` with a list."""

    mode: Literal["single", "multi_symbol"] = "single"
    list: tuple[Name, ...] | None = Field(default=None, min_length=1, max_length=1_000)
    symbol: Name | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.list if self.list is not None else (self.symbol or "",)

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        _check_choice(self.mode, "single", self.list, "list", self.symbol, "symbol")
        return self


class TimeframesConfig(Section):
    """Bar lengths: `single` with one, `multi_timeframe` with a list and the base one among them."""

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
        parameters: In the signature's order, defaults filled in.
    """

    name: str
    feature_id: Identifier
    source: PriceSource = "close"
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
        try:
            canonical = canonical_indicator_name(name)
            signature = SIGNATURES.get(canonical)
            parameters = signature.check(fields) if signature else fields
        except InvalidIndicatorError as error:
            field = error.violations[0].field
            raise PydanticCustomError(f"at:{field}", "{text}", {"text": error.message}) from error
        if feature_id is None:
            suffixes = [str(value).replace(".", "p") for value in parameters.values()]
            suffixes += [] if source == "close" else [str(source)]
            feature_id = "_".join([canonical, *suffixes])
        return {"name": canonical, "feature_id": feature_id, "source": source, "parameters": parameters}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        return {"name": self.name, "feature_id": self.feature_id, "source": self.source, **self.parameters}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its values: `feature_id`, then `feature_id.output` of each named output."""
        signature = SIGNATURES.get(self.name)
        return (
            self.feature_id,
            *(f"{self.feature_id}.{output}" for output in (signature.outputs if signature else ())),
        )


# Points of a membership function in non-decreasing order: how many each type takes.
_ORDERED_POINTS = {"triangular": 3, "trapezoidal": 4}


class FuzzySetConfig(Section):
    """One fuzzy set: a membership function and its parameters.

    triangular [a, b, c] and trapezoidal [a, b, c, d] take points in non-decreasing order, the first below the last.
    """

    type: Literal["triangular", "trapezoidal", "gaussian", "sigmoid", "bell"]
    parameters: tuple[Number, ...] = Field(min_length=1, max_length=8)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        count = _ORDERED_POINTS.get(self.type)
        if count is None:
            return self
        shown = {"type": self.type, "count": count, "values": str(list(self.parameters))}
        if len(self.parameters) != count:
            raise PydanticCustomError("at:parameters", "{type} takes {count} parameters, was {values}", shown)
        if any(left > right for left, right in itertools.pairwise(self.parameters)):
            raise PydanticCustomError("at:parameters", "{type} parameters must not decrease, was {values}", shown)
        if self.parameters[0] == self.parameters[-1]:
            raise PydanticCustomError(
                "at:parameters", "the first of {type} parameters must be below the last, was {values}", shown
            )
        return self


FuzzySets = dict[Identifier, FuzzySetConfig]


class ArchitectureConfig(Section):
    hidden_layers: tuple[Annotated[int, Field(strict=True, ge=1, le=65_536)], ...] = Field(
        default=(32, 16), min_length=1, max_length=64
    )
    activation: Literal["relu", "tanh", "sigmoid", "gelu", "leaky_relu", "elu", "silu"] = "relu"
    output_activation: Literal["softmax", "sigmoid", "linear"] = "softmax"
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0


class FeaturesConfig(Section):
    """How memberships become a row.

    Attributes:
        include_price_context: Add the causal price columns of `features/engineer.py`.
        lookback_periods: Copies of the memberships of that many bars before, beside the current ones.
        scale_features: Give each column zero mean and unit variance on the training part.
    """

    include_price_context: Flag = False
    lookback_periods: Annotated[int, Field(strict=True, ge=0, le=1_000)] = 0
    scale_features: Flag = True


class OptimisationConfig(Section):
    """`model.training` of the file."""

    learning_rate: Annotated[float, Field(strict=True, gt=0, lt=10, allow_inf_nan=False)] = 0.001
    batch_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 32
    epochs: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 50
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"


class ModelConfig(Section):
    type: Literal["mlp", "lstm", "transformer"]
    architecture: ArchitectureConfig = ArchitectureConfig()
    features: FeaturesConfig = FeaturesConfig()
    training: OptimisationConfig = OptimisationConfig()
    input_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    symbol_embedding_dim: Annotated[int, Field(strict=True, ge=0, le=4_096)] = 0


class DecisionsConfig(Section):
    """How a trained model's probabilities become signals.

    Attributes:
        output_format: What the network answers.
        confidence_threshold: A signal whose probability is below it is HOLD.
        position_awareness: Let the open position take part in the decision.
        filters: Conditions under which a signal is dropped.
    """

    output_format: Literal["classification", "regression"] = "classification"
    confidence_threshold: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    position_awareness: Flag = False
    filters: dict[Identifier, Any] = Field(default_factory=dict)


class LabelsConfig(Section):
    """What a row is labelled with.

    Attributes:
        source: The labeler.
        zigzag_threshold: Move of the close that makes a BUY or SELL, as a fraction: 0.005 is half a per cent.
        label_lookahead: Bars ahead that a label looks at (its horizon).
        allow_degenerate_labels: Train even if a class is missing or has over 95 % of the rows.
    """

    source: Literal["zigzag", "zigzag_segments", "forward_return", "triple_barrier"] = "zigzag"
    zigzag_threshold: Share
    label_lookahead: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    allow_degenerate_labels: Flag = False


class DataSplitConfig(Section):
    """Chronological shares of train, validation and test; they sum to 1."""

    train: Share
    validation: Share
    test: Share

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > SPLIT_TOLERANCE:
            raise PydanticCustomError(
                "split", "train + validation + test must be 1, was {total}", {"total": round(total, 6)}
            )
        return self


class TrainingConfig(Section):
    method: Literal["supervised", "reinforcement"] = "supervised"
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
