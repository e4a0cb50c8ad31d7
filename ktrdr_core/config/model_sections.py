"""`model` of a strategy file: network, features, optimisation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from ktrdr_core.config.section import Epochs, Flag, NonNegativeNumber, PositiveNumber, Rate, Section

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
