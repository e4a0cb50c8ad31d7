"""A stored model, ready to predict: everything it needs is in its artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.alignment import resample
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.series_features import compute_features
from ktrdr_core.errors import CorruptDataError, InvalidInputError
from ktrdr_core.evaluation.decisions import classes, decide, output_activation_of, probabilities
from ktrdr_core.evaluation.forward import series_outputs
from ktrdr_core.features.scaler import Scaler
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network
from ktrdr_core.storage.artifact import load_result
from ktrdr_core.storage.artifact_files import FEATURES_FILE
from ktrdr_core.storage.publication import check_publication
from ktrdr_core.storage.torch_files import map_torch_tensors


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says at each bar with a complete row of features; row i depends on bars up to its own only.

    Attributes:
        times: Open time of each bar, ns since 1970 UTC, shape (N,), int64.
        classes: SignalClass of the largest output, or of the predicted return, shape (N,), int64.
        decisions: SignalClass to act on, shape (N,), int64: that of `classes`, or HOLD where the strategy's `decisions`
            drop the signal.
        probabilities: Of BUY, HOLD, SELL, shape (N, 3), float64; rows sum to 1. A regression states no doubt: 1 for its
            class.
        returns: Predicted forward returns, shape (N,), float64; None for a classification.
        outputs: What the network answered, shape (N, C), float32.
    """

    times: NDArray[np.int64]
    classes: NDArray[np.int64]
    decisions: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    returns: NDArray[np.float64] | None
    outputs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, eq=False)
class TradingModel:
    """A trained network with the strategy and the scaler that make its rows.

    Attributes:
        strategy: What it was trained by; its fuzzy sets are those that were fitted, quantiles among them.
        feature_names: Columns of a row.
        scaler: Fitted on the training part.
        network: In evaluation mode, on `device`.
        device: Where it answers. On a CPU the answers are those of its training's evaluation, bit for bit.
    """

    strategy: StrategyConfig
    feature_names: tuple[str, ...]
    scaler: Scaler
    network: Network
    device: str = "cpu"

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> Self:
        """Return the model whose artifact is in the directory `path`.

        Raises:
            NotFoundError: There is no complete artifact.
            CorruptDataError: A file is damaged, or the weights are of another network.
        """
        publication = check_publication(path)
        result = load_result(path, digest=None if publication is None else publication.digest)
        features = json.loads((path / FEATURES_FILE).read_bytes())
        try:
            spec = NetworkSpec.from_dict(result["config"]["model_config"]["network"])
            strategy = _fitted_strategy(result["config"]["strategy_config"], features["fuzzy_sets"])
            scaler = Scaler.from_dict(features["scaler"])
        except (KeyError, InvalidInputError) as error:
            raise CorruptDataError(f"the model artifact {path} is damaged: {error}; train it again") from error
        weights = map_torch_tensors(path)
        num_weights = sum(tensor.numel() for tensor in weights.values())
        if num_weights != spec.num_parameters:  # before the memory is taken that a damaged description asks for
            raise CorruptDataError(
                f"the weights in {path} are not those of its network: it has {spec.num_parameters} numbers, they are "
                f"{num_weights}"
            )
        network = build_network(spec, seed=0)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise CorruptDataError(f"the weights in {path} are not those of its network: {error}") from error
        return cls(
            strategy=strategy,
            feature_names=tuple(result["feature_names"]),
            scaler=scaler,
            network=network.to(device).eval(),
            device=device,
        )

    def predict(self, bars: Bars | SymbolBars) -> Predictions:
        """Return predictions for every bar after the warm-up of features and window.

        A prediction over the bars of the training, from the same first bar, gives the test part's rows the bits that
        the training's evaluation saw, and bars that follow change none.

        Args:
            bars: Bars of the base timeframe and, for a strategy of several timeframes, of the others; where only base
                bars are given, the others are resampled from them, which a training does too where it has none.

        Raises:
            InvalidInputError: (a ValueError) The bars are of other timeframes than the model's, or the model knows
                symbols apart and not this one.
            CorruptDataError: The features are not those the model was trained on.
        """
        symbol_bars = self._complete(bars)
        features = compute_features(symbol_bars, self.strategy)
        if features.names != self.feature_names:
            raise CorruptDataError(
                f"the strategy makes the features {', '.join(features.names)}, the model was trained on "
                f"{', '.join(self.feature_names)}; train it again with this version"
            )
        window_bars = self.network.spec.window_bars
        matrix = self.scaler.transform(features.X[features.warm_up_bars :])
        outputs = series_outputs(self.network, matrix, window_bars=window_bars, device=self.device)
        first = features.warm_up_bars + window_bars - 1
        rows = np.arange(first, first + len(outputs), dtype=np.int64)
        return self._judge(symbol_bars.base, rows, outputs)

    def _judge(self, bars: Bars, rows: NDArray[np.int64], outputs: NDArray[np.float32]) -> Predictions:
        activation, labels = output_activation_of(self.strategy), self.strategy.training.labels
        found = classes(outputs, activation, labels)
        chances = probabilities(outputs, activation, labels)
        return Predictions(
            times=bars.times[rows],
            classes=found,
            decisions=decide(found, chances, bars=bars, bar_indices=rows, config=self.strategy.decisions),
            probabilities=chances,
            returns=outputs[:, 0].astype(np.float64) if self.strategy.is_regression else None,
            outputs=outputs,
        )

    def _complete(self, bars: Bars | SymbolBars) -> SymbolBars:
        """Return bars of exactly the strategy's timeframes."""
        base, higher = self.strategy.base_timeframe, self.strategy.higher_timeframes
        given = (bars.timeframe,) if isinstance(bars, Bars) else bars.timeframes
        if given not in ((base,), (base, *higher)):
            raise InvalidInputError(
                f"the bars are of {', '.join(given)}, the model was trained on {', '.join((base, *higher))}; "
                f"give bars of {base}",
                field="timeframe",
            )
        base_bars = bars if isinstance(bars, Bars) else bars.base
        if len(given) == 1:
            return SymbolBars(base_bars, tuple(resample(base_bars, timeframe) for timeframe in higher))
        return bars if isinstance(bars, SymbolBars) else SymbolBars(bars)


def _fitted_strategy(raw: Mapping[str, Any], fuzzy_sets: Mapping[str, Any]) -> StrategyConfig:
    """Return the strategy with the fuzzy sets that the training fitted in place of those of the file."""
    return strategy_from_dict({**raw, "fuzzy_sets": dict(fuzzy_sets)})
