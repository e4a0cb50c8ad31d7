"""Strategies that break one rule each: what every door must refuse, by the same sentence and place.

Each is `builders.strategy_dict` with a few places changed; it stands with the path of its violation and with words of
the sentence: the value, the rule or the way out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tests.kit.builders import strategy_text

_REGRESSION = {
    "decisions.output_format": "regression",
    "decisions.confidence_threshold": 0.0,
    "model.architecture.output_activation": "linear",
    "training.labels": {
        "source": "forward_return",
        "label_lookahead": 5,
        "buy_threshold": 0.001,
        "sell_threshold": 0.001,
    },
}
_BARRIERS = {"source": "triple_barrier", "label_lookahead": 10, "profit_barrier": 0.01, "loss_barrier": 0.01}
_TWO_TIMEFRAMES = {"mode": "multi_timeframe", "list": ["1h", "4h"]}


def _triangle() -> dict[str, Any]:
    return {"type": "triangular", "parameters": [0, 50, 100]}  # anew: YAML writes an alias for what is shared


@dataclass(frozen=True)
class BadStrategy:
    """One broken rule of a strategy.

    Attributes:
        label: Of the test.
        field: Path of the first violation.
        text: Words of the sentence.
        changes: To the valid strategy.
        needs_bars: Only who has the bars can tell.
    """

    label: str
    field: str
    text: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs_bars: bool = False

    @property
    def yaml(self) -> str:
        return strategy_text(**self.changes)


def _set(path: str, kind: str, parameters: list[float], **more: Any) -> dict[str, Any]:
    return {path: {"type": kind, "parameters": parameters, **more}}


_OVERSOLD = "fuzzy_sets.rsi.oversold"
_POINTS = f"{_OVERSOLD}.parameters"
_LAYERS = "model.architecture.hidden_layers"

BAD_STRATEGIES = (
    # Indicators.
    BadStrategy("unknown indicator", "indicators[0].name", "'rsl'", {"indicators.0.name": "rsl"}),
    BadStrategy("indicator that repaints", "indicators[0].name", "zigzag repaints", {"indicators.0.name": "zigzag"}),
    BadStrategy("unknown parameter", "indicators[0].perod", "did you mean 'period'", {"indicators.0.perod": 9}),
    BadStrategy("parameter of a wrong kind", "indicators[0].period", "'14'", {"indicators.0.period": "14"}),
    BadStrategy("parameter out of range", "indicators[0].period", "was 1", {"indicators.0.period": 1}),
    BadStrategy("parameter far out of range", "indicators[0].period", "99999", {"indicators.0.period": 99_999}),
    BadStrategy("parameters that contradict", "indicators[1].fast_period", "was 26", {"indicators.1.fast_period": 26}),
    BadStrategy("unknown source", "indicators[0].source", "'clsoe'", {"indicators.0.source": "clsoe"}),
    BadStrategy("two of one id", "indicators[1].feature_id", "indicators[0]", {"indicators.1.feature_id": "rsi_14"}),
    BadStrategy("timeframe of none", "indicators[0].timeframes", "was 1d", {"indicators.0.timeframes": ["1d"]}),
    BadStrategy("no indicators", "indicators", "at least 1", {"indicators": []}),
    # Fuzzy sets.
    BadStrategy(
        "sets for no indicator", "fuzzy_sets.stoch", "names no indicator", {"fuzzy_sets.stoch": {"a": _triangle()}}
    ),
    BadStrategy(
        "sets for no output",
        "fuzzy_sets.rsi.k",
        "names no indicator",
        {"fuzzy_sets": {"rsi": {"a": _triangle()}, "rsi.k": {"a": _triangle()}, "macd": {"a": _triangle()}}},
    ),
    BadStrategy("sets for no timeframe", "fuzzy_sets.rsi@4h", "'4h'", {"fuzzy_sets.rsi@4h": {"a": _triangle()}}),
    BadStrategy("indicator without sets", "fuzzy_sets", "macd_12_26_9", {"fuzzy_sets.macd": None}),
    BadStrategy("unknown kind of set", f"{_OVERSOLD}.type", "'cubic'", {f"{_OVERSOLD}.type": "cubic"}),
    BadStrategy("points that decrease", _POINTS, "must not decrease", {_POINTS: [0, 45, 20]}),
    BadStrategy("points that are one", _POINTS, "below the last", {_POINTS: [5, 5, 5]}),
    BadStrategy("too few points", _POINTS, "takes 3", {_POINTS: [0, 45]}),
    BadStrategy("point that is no number", f"{_POINTS}[1]", "nan", {_POINTS: [0, float("nan"), 45]}),
    BadStrategy("sigma of 0", _POINTS, "sigma", _set(_OVERSOLD, "gaussian", [30, 0])),
    BadStrategy("bell of no width", _POINTS, "width", _set(_OVERSOLD, "generalised_bell", [0, 2, 30])),
    BadStrategy("sigmoid of no slope", _POINTS, "slope", _set(_OVERSOLD, "sigmoid", [0, 30])),
    BadStrategy("quantile above 1", _POINTS, "[0, 1]", _set(_OVERSOLD, "quantile", [0, 50, 100])),
    BadStrategy(
        "quantile without a side", f"{_OVERSOLD}.shoulder", "shoulder", _set(_OVERSOLD, "quantile", [0.1, 0.5])
    ),
    # Features and scaling.
    BadStrategy(
        "negative lookback", "model.features.lookback_periods", "was -1", {"model.features.lookback_periods": -1}
    ),
    BadStrategy("unknown scaling", "model.features.scaling", "'log'", {"model.features.scaling": "log"}),
    BadStrategy(
        "features without end",
        "model.features.lookback_periods",
        "at most 10,000",
        {
            "model.features.lookback_periods": 1_000,
            "fuzzy_sets.rsi": {f"set_{index}": _triangle() for index in range(10)},
        },
    ),
    # Labels.
    BadStrategy("unknown labels", "training.labels.source", "'magic'", {"training.labels.source": "magic"}),
    BadStrategy("no horizon", "training.labels.label_lookahead", "was 0", {"training.labels.label_lookahead": 0}),
    BadStrategy("no threshold", "training.labels.zigzag_threshold", "need", {"training.labels.zigzag_threshold": None}),
    BadStrategy(
        "key of other labels", "training.labels.profit_barrier", "take no", {"training.labels.profit_barrier": 1}
    ),
    BadStrategy(
        "barrier of a whole",
        "training.labels.profit_barrier",
        "below 1",
        {"training.labels": {**_BARRIERS, "profit_barrier": 1.5}},
    ),
    BadStrategy(
        "barrier without end",
        "training.labels.loss_barrier",
        "1e+308",
        {"training.labels": {**_BARRIERS, "loss_barrier": 1e308, "volatility_period": 9}},
    ),
    # Symbols and timeframes.
    BadStrategy(
        "symbol that is a path", "training_data.symbols.symbol", "'../x'", {"training_data.symbols.symbol": "../x"}
    ),
    BadStrategy(
        "symbol twice",
        "training_data.symbols",
        "twice",
        {"training_data.symbols": {"mode": "multi_symbol", "list": ["EURUSD", "EURUSD"]}},
    ),
    BadStrategy(
        "several symbols of one",
        "training_data.symbols",
        "takes one name",
        {"training_data.symbols": {"mode": "single", "list": ["EURUSD", "GBPUSD"]}},
    ),
    BadStrategy(
        "timeframe of no form", "training_data.timeframes", "'h1'", {"training_data.timeframes.timeframe": "h1"}
    ),
    BadStrategy(
        "timeframes that do not divide",
        "training_data.timeframes",
        "no whole multiple",
        {"training_data.timeframes": {"mode": "multi_timeframe", "list": ["1h", "90m"]}},
    ),
    BadStrategy(
        "base that is none of them",
        "training_data.timeframes",
        "base_timeframe",
        {"training_data.timeframes": {**_TWO_TIMEFRAMES, "base_timeframe": "1d"}},
    ),
    # Splits and folds.
    BadStrategy(
        "shares of more than all",
        "training.data_split",
        "must be 1, was 1.2",
        {"training.data_split.train": 0.9},
    ),
    BadStrategy("share of nothing", "training.data_split.test", "above 0", {"training.data_split.test": 0.0}),
    BadStrategy(
        "negative embargo", "training.data_split.embargo_bars", "was -1", {"training.data_split.embargo_bars": -1}
    ),
    BadStrategy("unknown validation", "validation.method", "'bootstrap'", {"validation": {"method": "bootstrap"}}),
    BadStrategy("one fold", "validation.folds", "at least 2", {"validation": {"method": "walk_forward", "folds": 1}}),
    BadStrategy(
        "window of k-fold",
        "validation.window",
        "walk_forward",
        {"validation": {"method": "purged_k_fold", "window": "rolling"}},
    ),
    BadStrategy(
        "embargo of a walk",
        "validation.embargo_bars",
        "purged_k_fold",
        {"validation": {"method": "walk_forward", "embargo_bars": 5}},
    ),
    BadStrategy(
        "more folds than rows",
        "spec.start_date",
        "fewer folds",
        {"validation": {"method": "walk_forward", "folds": 64}},
        needs_bars=True,
    ),
    BadStrategy(
        "horizon of all bars",
        "spec.start_date",
        "a horizon of 590 bars",
        {"training.labels.label_lookahead": 590},
        needs_bars=True,
    ),
    BadStrategy(
        "embargo of all bars",
        "spec.start_date",
        "an embargo of 1000 bars",
        {"training.data_split.embargo_bars": 1_000},
        needs_bars=True,
    ),
    BadStrategy(
        "more history than there is",
        "spec.start_date",
        "asks for 601",
        {"training_data.history_required": 601},
        needs_bars=True,
    ),
    # Models.
    BadStrategy("unknown model", "model.type", "'cnn'", {"model.type": "cnn"}),
    BadStrategy(
        "lstm without a window",
        "model.features.lookback_periods",
        "at least 1",
        {"model.type": "lstm", "model.features.lookback_periods": 0},
    ),
    BadStrategy(
        "heads that do not divide",
        "model.architecture.num_heads",
        "multiple",
        {"model.type": "transformer", "model.architecture.num_heads": 5},
    ),
    BadStrategy("heads of an mlp", "model.architecture.num_heads", "transformer", {"model.architecture.num_heads": 2}),
    BadStrategy("layer of nothing", f"{_LAYERS}[0]", "was 0", {_LAYERS: [0]}),
    BadStrategy("network beyond memory", _LAYERS, "at most 134,217,728", {_LAYERS: [65_536, 65_536]}),
    BadStrategy("dropout of everything", "model.architecture.dropout", "below 1", {"model.architecture.dropout": 1.0}),
    # Optimisation.
    BadStrategy("learning rate of 0", "model.training.learning_rate", "above 0", {"model.training.learning_rate": 0.0}),
    BadStrategy(
        "learning rate of nan", "model.training.learning_rate", "nan", {"model.training.learning_rate": float("nan")}
    ),
    BadStrategy("no epochs", "model.training.epochs", "at least 1", {"model.training.epochs": 0}),
    BadStrategy(
        "batch of part of a row", "model.training.batch_size", "whole number", {"model.training.batch_size": 0.5}
    ),
    BadStrategy("unknown optimizer", "model.training.optimizer", "'lion'", {"model.training.optimizer": "lion"}),
    BadStrategy("momentum of adam", "model.training.momentum", "sgd", {"model.training.momentum": 0.9}),
    BadStrategy(
        "step without a factor",
        "model.training.schedule",
        "factor",
        {"model.training.schedule": {"type": "step", "every_epochs": 2}},
    ),
    BadStrategy(
        "factor of a constant",
        "model.training.schedule.factor",
        "takes no factor",
        {"model.training.schedule": {"factor": 0.5}},
    ),
    BadStrategy(
        "clip to nothing", "model.training.gradient_clip_norm", "above 0", {"model.training.gradient_clip_norm": 0}
    ),
    BadStrategy(
        "no patience",
        "model.training.early_stopping.patience",
        "at least 1",
        {"model.training.early_stopping": {"patience": 0}},
    ),
    BadStrategy(
        "unknown metric",
        "model.training.early_stopping.metric",
        "'test_loss'",
        {"model.training.early_stopping": {"metric": "test_loss"}},
    ),
    BadStrategy("unknown loss", "model.training.loss", "'hinge'", {"model.training.loss": "hinge"}),
    BadStrategy(
        "focal of sigmoids",
        "model.training.loss",
        "softmax",
        {"model.training.loss": "focal", "model.architecture.output_activation": "sigmoid"},
    ),
    BadStrategy(
        "more than the gpu",
        "model.training.gpu_memory_fraction",
        "at most 1",
        {"model.training.gpu_memory_fraction": 1.5},
    ),
    BadStrategy(
        "checkpoint never",
        "model.training.checkpoint_every_epochs",
        "at least 1",
        {"model.training.checkpoint_every_epochs": 0},
    ),
    # Regression and decisions.
    BadStrategy(
        "loss of a regression",
        "model.training.loss",
        "with decisions.output_format classification",
        {"model.training.loss": "mse"},
    ),
    BadStrategy(
        "regression of zigzags",
        "training.labels.source",
        "forward_return",
        {**_REGRESSION, "training.labels": {"source": "zigzag", "label_lookahead": 5, "zigzag_threshold": 0.01}},
    ),
    BadStrategy(
        "weights of no classes",
        "model.training.class_weights",
        "no classes",
        {**_REGRESSION, "model.training.class_weights": "balanced"},
    ),
    BadStrategy(
        "doubt of a regression",
        "decisions.confidence_threshold",
        "no probabilities",
        {**_REGRESSION, "decisions.confidence_threshold": 0.5},
    ),
    BadStrategy(
        "threshold above 1", "decisions.confidence_threshold", "at most 1", {"decisions.confidence_threshold": 1.1}
    ),
    BadStrategy(
        "hour that is none",
        "decisions.filters.trading_hours.start",
        "at most 23",
        {"decisions.filters": {"trading_hours": {"start": 24, "end": 3}}},
    ),
    BadStrategy("cost of more than a tenth", "decisions.cost_bps", "at most 1000", {"decisions.cost_bps": 1_001}),
    # The file.
    BadStrategy("unknown section", "modle", "did you mean 'model'", {"modle": {}}),
    BadStrategy("unknown key", "model.trainng", "did you mean 'training'", {"model.trainng": {}}),
    BadStrategy("name that is a path", "name", "'../x'", {"name": "../x"}),
    BadStrategy("name of other letters", "name", "'stratégie'", {"name": "stratégie"}),
    BadStrategy("no labels", "training.labels", "labels is missing", {"training.labels": None}),
)
