"""What a network looks like, in plain values: what the artifact stores and the builder reads. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ktrdr_core.domain.labels import NUM_CLASSES
from ktrdr_core.errors import InvalidInputError, UnsupportedError

BUILT_MODEL_TYPES: tuple[str, ...] = ("mlp",)
NOT_BUILT_MODEL_TYPES: tuple[str, ...] = ("lstm", "transformer")
BUILT_ACTIVATIONS: tuple[str, ...] = ("relu", "tanh", "gelu", "leaky_relu", "elu", "silu", "sigmoid")
BUILT_OUTPUT_ACTIVATIONS: tuple[str, ...] = ("softmax",)


def check_model_type(name: str) -> str:
    """Return `name` if such networks are built.

    Raises:
        UnsupportedError: The grammar allows `name`, this version does not build it.
        InvalidInputError: Nobody knows `name`.
    """
    if name in BUILT_MODEL_TYPES:
        return name
    if name in NOT_BUILT_MODEL_TYPES:
        raise UnsupportedError(
            f"model type {name!r} is not built yet; use one of {', '.join(BUILT_MODEL_TYPES)}", field="model.type"
        )
    raise InvalidInputError(
        f"model type {name!r} is unknown; use one of {', '.join(BUILT_MODEL_TYPES)}", field="model.type"
    )


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Architecture of a classifier over BUY, HOLD, SELL.

    Attributes:
        type: Family of network, one of BUILT_MODEL_TYPES.
        input_size: Features of a row.
        hidden_layers: Units of each hidden layer, first to last.
        activation: After each hidden layer.
        output_activation: What turns logits into probabilities when predicting; training works on logits.
        dropout: Share of hidden units silenced while training, in [0, 1).
    """

    type: str
    input_size: int
    hidden_layers: tuple[int, ...]
    activation: str = "relu"
    output_activation: str = "softmax"
    dropout: float = 0.0
    num_classes: int = NUM_CLASSES

    def __post_init__(self) -> None:
        check_model_type(self.type)
        if self.input_size < 1:
            raise InvalidInputError(f"a network needs at least 1 feature, was given {self.input_size}")
        for index, units in enumerate(self.hidden_layers):
            if units < 1:
                raise InvalidInputError(
                    f"hidden layer must have at least 1 unit, was {units}",
                    field=f"model.architecture.hidden_layers[{index}]",
                )
        for field, known in (
            ("activation", BUILT_ACTIVATIONS),
            ("output_activation", BUILT_OUTPUT_ACTIVATIONS),
        ):
            if getattr(self, field) not in known:
                raise UnsupportedError(
                    f"{field} {getattr(self, field)!r} is not built; use one of {', '.join(known)}",
                    field=f"model.architecture.{field}",
                )
        if not 0.0 <= self.dropout < 1.0:
            raise InvalidInputError(
                f"dropout must be at least 0 and below 1, was {self.dropout}", field="model.architecture.dropout"
            )

    @classmethod
    def from_model_config(cls, model_config: Mapping[str, Any], input_size: int) -> NetworkSpec:
        """Return the network that the executor's `model_config` describes, for rows of `input_size` features.

        Raises:
            InvalidInputError: (a ValueError) A key is missing, or a value breaks a rule.
        """
        for key in ("type", "hidden_layers"):
            if model_config.get(key) is None:
                raise InvalidInputError(f"model_config.{key} is missing; give it", field=f"model_config.{key}")
        return cls(
            type=str(model_config["type"]),
            input_size=input_size,
            hidden_layers=tuple(int(units) for units in model_config["hidden_layers"]),
            activation=str(model_config.get("activation") or "relu"),
            output_activation=str(model_config.get("output_activation") or "softmax"),
            dropout=float(model_config.get("dropout") or 0.0),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back equal."""
        return {**asdict(self), "hidden_layers": list(self.hidden_layers)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> NetworkSpec:
        return cls(**{**raw, "hidden_layers": tuple(raw["hidden_layers"])})
