"""Scaling of features, fitted on the training part only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.errors import InvalidInputError

ScalerKind = Literal["standard", "none"]
SCALER_KINDS: tuple[ScalerKind, ...] = ("standard", "none")

# A feature whose spread is below this share of its size is constant but for rounding; its scale stays 1.
CONSTANT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Scaler:
    """An affine map of each feature: `(x - mean) / scale`.

    Attributes:
        kind: "standard" (zero mean, unit variance on the rows it was fitted on) or "none" (identity).
        mean: Shift of each feature, shape (F,), float64.
        scale: Divisor of each feature, shape (F,), float64, never 0; 1 for a constant feature.
    """

    kind: ScalerKind
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, X: NDArray[np.float64], kind: ScalerKind = "standard") -> Self:
        """Return the scaler of the rows of `X`, shape (N, F), N at least 1, no NaN."""
        num_features = X.shape[1]
        if kind == "none":
            return cls("none", np.zeros(num_features), np.ones(num_features))
        mean = X.mean(axis=0)
        scale = X.std(axis=0)
        is_constant = scale <= CONSTANT_TOLERANCE * np.maximum(1.0, np.abs(mean))
        return cls("standard", mean, np.where(is_constant, 1.0, scale))

    def transform(self, X: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return scaled rows, shape (N, F), float32, C-contiguous.

        Raises:
            InvalidInputError: `X` has another number of features than the rows this was fitted on.
        """
        if X.ndim != 2 or X.shape[1] != len(self.mean):
            raise InvalidInputError(f"X must have {len(self.mean)} features, has shape {X.shape}", field="X")
        return np.ascontiguousarray((X - self.mean) / self.scale, dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads back equal, bit for bit."""
        return {"kind": self.kind, "mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        if raw.get("kind") not in SCALER_KINDS:
            raise InvalidInputError(f"scaler kind must be one of {SCALER_KINDS}, was {raw.get('kind')!r}", field="kind")
        mean = np.asarray(raw["mean"], dtype=np.float64)
        scale = np.asarray(raw["scale"], dtype=np.float64)
        if mean.shape != scale.shape or mean.ndim != 1 or not np.all(scale > 0):
            raise InvalidInputError("a scaler needs one mean and one scale above 0 for each feature", field="scale")
        return cls(cast(ScalerKind, raw["kind"]), mean, scale)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scaler) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]
