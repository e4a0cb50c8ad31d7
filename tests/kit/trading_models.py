"""Stored models whose weights were drawn, not trained; importing this loads torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.datasets.rows import build_rows
from ktrdr_core.datasets.series_features import (
    compute_features,
    compute_symbol_indicators,
    fit_quantile_sets,
)
from ktrdr_core.datasets.split import split_rows
from ktrdr_core.labels.registry import generate_labels
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.storage.artifact import write_artifact
from tests.kit.artifacts import make_artifact

TWO_SYMBOLS: dict[str, Any] = {
    "training_data.symbols": {"mode": "multi_symbol", "list": ["EURUSD", "USDJPY"]},
    "model.symbol_embedding_dim": 3,
}
REGRESSION: dict[str, Any] = {
    "decisions": {"output_format": "regression"},
    "model.architecture.output_activation": None,
    "training.labels": {
        "source": "forward_return",
        "label_lookahead": 5,
        "buy_threshold": 0.001,
        "sell_threshold": 0.001,
    },
}


@dataclass(frozen=True, eq=False)
class StoredNetwork:
    """An artifact on disk, and what it was made from."""

    path: Path
    strategy: StrategyConfig
    split: DataSplit
    network: Network


def store_network(
    directory: Path, strategy: StrategyConfig, bars: Sequence[SymbolBars], *, seed: int = 5
) -> StoredNetwork:
    """Do all a training does but train, and write the artifact into `directory`."""
    window_bars = strategy.model.window_bars
    fitted = _fit_sets(strategy, bars)
    features = [compute_features(own, fitted) for own in bars]
    labels = [generate_labels(own.base, strategy.training.labels) for own in bars]
    rows = build_rows(
        features, labels, [own.base for own in bars], symbols=[own.symbol for own in bars], window_bars=window_bars
    )
    shares = strategy.training.data_split
    assert shares is not None
    columns = features[0].columns
    split = split_rows(rows, columns=columns, shares=shares, scaling=strategy.model.features.scaling)
    model_config = _model_config(strategy)
    network = build_network(NetworkSpec.from_model_config(model_config, len(columns)), seed=seed).eval()
    names = list(split.feature_names)
    base = make_artifact(symbols=strategy.symbols)
    artifact = replace(
        base,
        tensors={name: weight.detach().numpy() for name, weight in network.state_dict().items()},
        config={
            **base.config,
            "strategy_config": strategy.to_dict(),
            "model_config": {**model_config, "network": network.spec.to_dict()},
        },
        features={
            "feature_names": names,
            "feature_importance": dict.fromkeys(names, 0.0),
            "scaler": split.scaler.to_dict(),
            "fuzzy_sets": fitted.to_dict()["fuzzy_sets"],
        },
    )
    write_artifact(directory, artifact)
    return StoredNetwork(directory, strategy, split, network)


def _fit_sets(strategy: StrategyConfig, bars: Sequence[SymbolBars]) -> StrategyConfig:
    values = {own.symbol: compute_symbol_indicators(own, strategy) for own in bars}
    first_half = {own.symbol: np.arange(len(own) // 2, dtype=np.int64) for own in bars}
    return fit_quantile_sets(values, {own.symbol: own for own in bars}, first_half, strategy)


def _model_config(strategy: StrategyConfig) -> Mapping[str, Any]:
    model = strategy.model
    return {
        "type": model.type,
        **model.architecture.model_dump(mode="json"),
        "window_bars": model.window_bars,
        "num_symbols": len(strategy.symbols),
        "symbol_embedding_dim": model.symbol_embedding_dim,
        "output_format": strategy.decisions.output_format,
    }
