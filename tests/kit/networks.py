"""Small networks of every family, and matrices to evaluate them on; importing this loads torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import MODEL_TYPES, WINDOW_MODEL_TYPES, NetworkSpec
from ktrdr_core.models.registry import build_network

FAMILIES = MODEL_TYPES
WINDOW_FAMILIES = WINDOW_MODEL_TYPES
WINDOW_BARS = 5


def spec_of(family: str, **changes: Any) -> NetworkSpec:
    """Return a small spec of a family: 6 columns, hidden layers of 9 and 7 units; `changes` replaces fields."""
    chosen: dict[str, Any] = {"input_size": 6, "hidden_layers": (9, 7)}
    if family in WINDOW_MODEL_TYPES:
        chosen["window_bars"] = WINDOW_BARS
    if family == "transformer":
        chosen |= {"d_model": 8, "num_heads": 2}
    return NetworkSpec(type=family, **(chosen | changes))


def network_of(family: str, *, seed: int = 1, **changes: Any) -> Network:
    return build_network(spec_of(family, **changes), seed=seed)


def make_matrix(num_bars: int, num_features: int = 6, *, seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num_bars, num_features)).astype(np.float32)


def part_of(matrix: NDArray[np.float32], rows: NDArray[np.int64], window_bars: int = 1) -> DatasetPart:
    """Return a part without labels over `matrix`."""
    nothing = np.zeros(len(rows), dtype=np.int64)
    return DatasetPart(
        matrix=matrix,
        rows=rows.astype(np.int64),
        y=nothing,
        times=rows.astype(np.int64),
        symbol_ids=nothing,
        targets=np.empty(0, dtype=np.float32),
        window_bars=window_bars,
    )
