"""What a network looks like, in plain values: what the artifact stores and the builder reads. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, Self

from ktrdr_core.domain.labels import NUM_CLASSES
from ktrdr_core.errors import InvalidInputError

WINDOW_MODEL_TYPES: tuple[str, ...] = ("lstm", "gru", "transformer")
"""Networks whose row is a window of bars, oldest first."""
MODEL_TYPES: tuple[str, ...] = ("mlp", *WINDOW_MODEL_TYPES)
BUILT_ACTIVATIONS: tuple[str, ...] = ("relu", "tanh", "gelu", "leaky_relu", "elu", "silu", "sigmoid")
CLASSIFICATION_ACTIVATIONS: tuple[str, ...] = ("softmax", "sigmoid")
REGRESSION_ACTIVATION = "linear"

_GATES = {"lstm": 4, "gru": 3}

DEFAULT_D_MODEL = 32
DEFAULT_NUM_HEADS = 4


def check_model_type(name: str) -> str:
    """Return `name` if there are such networks.

    Raises:
        InvalidInputError: There are none.
    """
    if name not in MODEL_TYPES:
        near = get_close_matches(name, MODEL_TYPES, n=1)
        way_out = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(MODEL_TYPES)}"
        raise InvalidInputError(f"model type {name!r} is unknown; {way_out}", field="model.type")
    return name


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Architecture of a network that answers BUY, HOLD, SELL, or a forward return.

    Attributes:
        type: Family of network, one of MODEL_TYPES.
        input_size: Columns of X, the identity columns among them.
        hidden_layers: Units of each layer, first to last; for a transformer the feed-forward width of each encoder
            layer.
        activation: After each hidden layer of an mlp, inside the feed-forward part of a transformer; an lstm or gru has
            tanh and sigmoid inside and takes no other.
        output_activation: What turns outputs into probabilities when predicting (`softmax`, or `sigmoid` for each class
            against the rest), or `linear` for a regression; the network itself answers logits.
        dropout: Share of hidden units silenced while training, in [0, 1).
        num_outputs: One for each class, or 1 for a regression.
        window_bars: Bars of a row; 1 for an mlp.
        d_model: Width of a transformer's tokens; 0 for the others.
        num_heads: Attention heads of a transformer; 0 for the others.
        num_symbols: Identity columns, one-hot and last in X; 0 for a symbol-agnostic network.
        symbol_embedding_dim: Numbers by which the network knows a symbol; 0 for a symbol-agnostic one.
    """

    type: str
    input_size: int
    hidden_layers: tuple[int, ...]
    activation: str = "relu"
    output_activation: str = "softmax"
    dropout: float = 0.0
    num_outputs: int = NUM_CLASSES
    window_bars: int = 1
    d_model: int = 0
    num_heads: int = 0
    num_symbols: int = 0
    symbol_embedding_dim: int = 0

    def __post_init__(self) -> None:
        check_model_type(self.type)
        self._check_layers()
        self._check_outputs()
        self._check_window()
        self._check_attention()
        self._check_symbols()

    @property
    def is_regression(self) -> bool:
        return self.num_outputs == 1

    @property
    def embedded_size(self) -> int:
        """Numbers of a bar once the identity columns have become an embedding."""
        return self.input_size - self.num_symbols + self.symbol_embedding_dim

    @property
    def num_parameters(self) -> int:
        """Numbers that a training fits."""
        widths = (self.embedded_size, *self.hidden_layers)
        own = self.num_symbols * self.symbol_embedding_dim
        if self.type == "transformer":
            d = self.d_model
            own += (self.embedded_size + 1) * d + 2 * d
            own += sum(4 * d * (d + 1) + 4 * d + units * (2 * d + 1) + d for units in self.hidden_layers)
            return own + (d + 1) * self.num_outputs
        for inputs, units in zip(widths, self.hidden_layers, strict=False):
            own += units * (inputs + 1) if self.type == "mlp" else _GATES[self.type] * units * (inputs + units + 2)
        return own + (widths[-1] + 1) * self.num_outputs

    @property
    def values_per_row(self) -> int:
        """Numbers that the layers keep of a row for the gradient, about."""
        if self.type == "mlp":
            return self.input_size + 2 * sum(self.hidden_layers)
        if self.type == "transformer":
            kept = sum(12 * self.d_model + 2 * units for units in self.hidden_layers)
        else:
            kept = sum(2 * _GATES[self.type] * units for units in self.hidden_layers)
        return self.window_bars * (self.input_size + kept)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of X: (F,), or (L, F) for windows."""
        is_window = self.type in WINDOW_MODEL_TYPES
        return (self.window_bars, self.input_size) if is_window else (self.input_size,)

    def _check_layers(self) -> None:
        if self.input_size < 1:
            raise InvalidInputError(
                f"a network needs at least 1 feature, was given {self.input_size}; add fuzzy sets",
                field="model.input_size",
            )
        if not self.hidden_layers and self.type != "mlp":
            raise InvalidInputError(
                f"{_article(self.type)} needs at least one entry in hidden_layers; name the units of each layer",
                field="model.architecture.hidden_layers",
            )
        for index, units in enumerate(self.hidden_layers):
            if units < 1:
                raise InvalidInputError(
                    f"a hidden layer must have at least 1 unit, hidden_layers[{index}] was {units}",
                    field=f"model.architecture.hidden_layers[{index}]",
                )
        if self.activation not in BUILT_ACTIVATIONS:
            raise InvalidInputError(
                f"activation {self.activation!r} is unknown; use one of {', '.join(BUILT_ACTIVATIONS)}",
                field="model.architecture.activation",
            )
        if not 0.0 <= self.dropout < 1.0:
            raise InvalidInputError(
                f"dropout must be at least 0 and below 1, was {self.dropout}", field="model.architecture.dropout"
            )

    def _check_outputs(self) -> None:
        if self.num_outputs not in (1, NUM_CLASSES):
            raise InvalidInputError(
                f"a network has {NUM_CLASSES} outputs, or 1 for a regression, was {self.num_outputs}",
                field="model.num_outputs",
            )
        kind, allowed = "classification", CLASSIFICATION_ACTIVATIONS
        if self.is_regression:
            kind, allowed = "regression", (REGRESSION_ACTIVATION,)
        if self.output_activation not in allowed:
            raise InvalidInputError(
                f"output_activation {self.output_activation!r} does not fit a {kind}; use {' or '.join(allowed)}, "
                "or leave it out",
                field="model.architecture.output_activation",
            )

    def _check_window(self) -> None:
        if self.type in WINDOW_MODEL_TYPES and self.window_bars < 2:
            raise InvalidInputError(
                f"{_article(self.type)} needs a window of at least 2 bars, was {self.window_bars}; "
                "set lookback_periods to at least 1",
                field="model.features.lookback_periods",
            )
        if self.type == "mlp" and self.window_bars != 1:
            raise InvalidInputError(
                f"an mlp sees one row, not a window of {self.window_bars} bars; its lags are columns",
                field="model.features.lookback_periods",
            )

    def _check_attention(self) -> None:
        if self.type != "transformer":
            for key in ("d_model", "num_heads"):
                if getattr(self, key):
                    raise InvalidInputError(
                        f"{key} belongs to a transformer, not to {_article(self.type)}; leave it out",
                        field=f"model.architecture.{key}",
                    )
            return
        if self.d_model < 2:
            raise InvalidInputError(
                f"d_model of a transformer must be at least 2, was {self.d_model}", field="model.architecture.d_model"
            )
        if self.num_heads < 1:
            raise InvalidInputError(
                f"num_heads of a transformer must be at least 1, was {self.num_heads}",
                field="model.architecture.num_heads",
            )
        if self.d_model % self.num_heads:
            raise InvalidInputError(
                f"d_model ({self.d_model}) must be a multiple of num_heads, was {self.num_heads}",
                field="model.architecture.num_heads",
            )

    def _check_symbols(self) -> None:
        if self.symbol_embedding_dim < 0:
            raise InvalidInputError(
                f"symbol_embedding_dim must be at least 0, was {self.symbol_embedding_dim}",
                field="model.symbol_embedding_dim",
            )
        if (self.symbol_embedding_dim > 0) != (self.num_symbols > 0):
            raise InvalidInputError(
                f"a symbol embedding needs a dimension and symbols, was given {self.symbol_embedding_dim} and "
                f"{self.num_symbols}; set symbol_embedding_dim to 0 for a symbol-agnostic model",
                field="model.symbol_embedding_dim",
            )
        if self.num_symbols >= self.input_size:
            raise InvalidInputError(
                f"{self.num_symbols} identity columns leave no feature among {self.input_size} columns; add fuzzy sets",
                field="model.input_size",
            )

    @classmethod
    def from_model_config(cls, model_config: Mapping[str, Any], input_size: int) -> Self:
        """Return the network that the executor's `model_config` describes, for rows of `input_size` columns.

        Keys: `type` and `hidden_layers`; may have `activation`, `output_activation`, `dropout`, `d_model`, `num_heads`,
        `window_bars`, `num_symbols`, `symbol_embedding_dim`, `output_format`. None is as good as absent.

        Args:
            model_config: See above.
            input_size: Columns of X, the identity columns among them.

        Raises:
            InvalidInputError: (a ValueError) A key is missing, or a value breaks a rule.
        """
        given = {key: value for key, value in model_config.items() if value is not None}
        for key in ("type", "hidden_layers"):
            if key not in given:
                raise InvalidInputError(f"model_config.{key} is missing; give it", field=f"model_config.{key}")
        try:
            return cls(input_size=input_size, **_resolve(given))
        except InvalidInputError:
            raise
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"model_config has a value of the wrong kind ({error}); correct it", field="model_config"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back equal."""
        return {**asdict(self), "hidden_layers": list(self.hidden_layers)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Return the spec that `to_dict` gave.

        Raises:
            InvalidInputError: A key is missing or unknown, or a value breaks a rule.
        """
        try:
            return cls(**{**raw, "hidden_layers": tuple(raw["hidden_layers"])})
        except (KeyError, TypeError) as error:
            raise InvalidInputError(f"not the description of a network: {error}", field="model") from error


def _resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec, but for `input_size`, from the keys of a `model_config` that are not None."""
    is_regression = given.get("output_format", "classification") == "regression"
    is_transformer = given["type"] == "transformer"
    embedding_dim = int(given.get("symbol_embedding_dim", 0))
    return {
        "type": str(given["type"]),
        "hidden_layers": tuple(int(units) for units in given["hidden_layers"]),
        "activation": str(given.get("activation", "relu")),
        "output_activation": str(given.get("output_activation", REGRESSION_ACTIVATION if is_regression else "softmax")),
        "dropout": float(given.get("dropout", 0.0)),
        "num_outputs": 1 if is_regression else NUM_CLASSES,
        "window_bars": int(given.get("window_bars", 1)),
        "d_model": int(given.get("d_model", DEFAULT_D_MODEL if is_transformer else 0)),
        "num_heads": int(given.get("num_heads", DEFAULT_NUM_HEADS if is_transformer else 0)),
        "num_symbols": int(given.get("num_symbols", 0)) if embedding_dim else 0,
        "symbol_embedding_dim": embedding_dim,
    }


def _article(kind: str) -> str:
    return f"{'an' if kind in ('mlp', 'lstm') else 'a'} {kind}"
