"""A stored model, ready to predict: everything it needs is in its artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.datasets.series_features import compute_features
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.errors import CorruptDataError
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.forward import PaddedRows, compute_logits
from ktrdr_core.evaluation.metrics import softmax
from ktrdr_core.features.scaler import Scaler
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.storage.artifact import FEATURES_FILE, load_result, load_tensors
from ktrdr_core.storage.publication import check_publication


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says at each bar with a complete row of features.

    Attributes:
        times: Open time of each bar, ns since 1970 UTC, shape (N,), int64.
        classes: SignalClass of the largest logit, shape (N,), int64.
        decisions: SignalClass to act on, shape (N,), int64: that of `classes`, but HOLD where its probability is below
            the strategy's `decisions.confidence_threshold`.
        probabilities: Of BUY, HOLD, SELL, shape (N, 3), float64; rows sum to 1.
        logits: What the network answered, shape (N, 3), float32.
    """

    times: NDArray[np.int64]
    classes: NDArray[np.int64]
    decisions: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, eq=False)
class TradingModel:
    """A trained network with the strategy and the scaler that make its rows."""

    strategy: StrategyConfig
    feature_names: tuple[str, ...]
    scaler: Scaler
    network: Network

    @classmethod
    def load(cls, path: Path) -> TradingModel:
        """Return the model whose artifact is in the directory `path`.

        Raises:
            NotFoundError: There is no complete artifact.
            CorruptDataError: A file is damaged, or the weights are of another network.
        """
        check_publication(path)
        result = load_result(path)
        features = json.loads((path / FEATURES_FILE).read_bytes())
        network = build_network(NetworkSpec.from_dict(result["config"]["model_config"]["network"]), seed=0)
        weights = {name: torch.from_numpy(np.array(tensor)) for name, tensor in load_tensors(path).items()}
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise CorruptDataError(f"the weights in {path} are not those of its network: {error}") from error
        return cls(
            strategy=strategy_from_dict(result["config"]["strategy_config"]),
            feature_names=tuple(result["feature_names"]),
            scaler=Scaler.from_dict(features["scaler"]),
            network=network.eval(),
        )

    def predict(self, bars: Bars) -> Predictions:
        """Return predictions for every bar after warm-up; each depends on bars up to its own only."""
        features = compute_features(bars, self.strategy)
        if features.names != self.feature_names:
            raise CorruptDataError(
                f"the strategy makes the features {features.names}, the model was trained on {self.feature_names}"
            )
        rows = np.flatnonzero(~np.isnan(features.X).any(axis=1))
        logits = self.compute_logits(self.scaler.transform(features.X[rows]))
        classes = logits.argmax(axis=1).astype(np.int64)
        probabilities = softmax(logits)
        is_confident = probabilities.max(axis=1) >= self.strategy.decisions.confidence_threshold
        return Predictions(
            times=bars.times[rows],
            classes=classes,
            decisions=np.where(is_confident, classes, int(SignalClass.HOLD)),
            probabilities=probabilities,
            logits=logits,
        )

    def compute_logits(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (N, 3) of scaled rows, bit for bit as training's evaluation on a CPU gives them."""
        with deterministic_torch("cpu"):
            return compute_logits(self.network, PaddedRows(X, "cpu"))
