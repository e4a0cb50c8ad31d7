"""Small real inputs: strategies, bars, files of bars.

`strategy_text(**{"model.training.epochs": 2, "decisions": None})` changes places of a valid strategy; None removes one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.bars import BAR_COLUMNS, Bars, time_text, validate_bars
from ktrdr_core.domain.timeframe import Timeframe

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_TIME_NS = 1_483_308_000 * 10**9  # 2017-01-01T22:00:00Z, a Sunday evening

_STRATEGY: dict[str, Any] = {
    "name": "small_reversion",
    "description": "A strategy for tests.",
    "version": "1.0",
    "hypothesis": "Prices return to their mean.",
    "scope": "universal",
    "training_data": {
        "symbols": {"mode": "single", "symbol": "EURUSD"},
        "timeframes": {"mode": "single", "timeframe": "1h"},
        "history_required": 100,
    },
    "indicators": [
        {"name": "rsi", "period": 14, "source": "close"},
        {"name": "macd", "fast_period": 12, "slow_period": 26, "signal_period": 9},
    ],
    "fuzzy_sets": {
        "rsi": {
            "oversold": {"type": "triangular", "parameters": [0, 20, 45]},
            "neutral": {"type": "triangular", "parameters": [30, 50, 70]},
            "overbought": {"type": "triangular", "parameters": [55, 80, 100]},
        },
        "macd": {
            "negative": {"type": "triangular", "parameters": [-0.006, -0.002, 0]},
            "positive": {"type": "triangular", "parameters": [0, 0.002, 0.006]},
        },
    },
    "model": {
        "type": "mlp",
        "architecture": {
            "hidden_layers": [8],
            "activation": "relu",
            "output_activation": "softmax",
            "dropout": 0.1,
        },
        "features": {"include_price_context": False, "lookback_periods": 2, "scale_features": True},
        "training": {"learning_rate": 0.01, "batch_size": 32, "epochs": 3, "optimizer": "adam"},
    },
    "decisions": {"output_format": "classification", "confidence_threshold": 0.5},
    "training": {
        "method": "supervised",
        "labels": {"source": "zigzag", "zigzag_threshold": 0.002, "label_lookahead": 10},
        "data_split": {"train": 0.7, "validation": 0.15, "test": 0.15},
    },
}


def strategy_dict(**overrides: Any) -> dict[str, Any]:
    """Return a valid strategy; a key `a.b.0.c` sets that place, and the value None removes it."""
    raw = copy.deepcopy(_STRATEGY)
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place: Any = raw
        for part in parents:
            if isinstance(place, list):
                place = place[int(part)]
            else:
                place = place.setdefault(part, {})
        key: Any = int(last) if isinstance(place, list) else last
        if value is None:
            del place[key]
        else:
            place[key] = copy.deepcopy(value)
    return raw


def strategy_text(**overrides: Any) -> str:
    """Return `strategy_dict` as YAML."""
    return yaml.dump(strategy_dict(**overrides), sort_keys=False, Dumper=yaml.CSafeDumper)


def strategy(**overrides: Any) -> StrategyConfig:
    """Return `strategy_dict` parsed."""
    return strategy_from_dict(strategy_dict(**overrides))


def make_bars(n: int = 600, seed: int = 7, *, symbol: str = "EURUSD", timeframe: str = "1h") -> Bars:
    """Return `n` bars of a seeded random walk around 1.05 with EURUSD's hourly volatility."""
    rng = np.random.default_rng(seed)
    close = 1.05 * np.exp(np.cumsum(rng.normal(0, 0.0012, n)))
    open_ = np.concatenate([[1.05], close[:-1]])
    high = np.maximum(open_, close) * (1 + rng.uniform(0, 0.0005, n))
    low = np.minimum(open_, close) * (1 - rng.uniform(0, 0.0005, n))
    times = FIRST_TIME_NS + np.arange(n, dtype=np.int64) * Timeframe.parse(timeframe).duration_ns
    return validate_bars(
        symbol=symbol,
        timeframe=timeframe,
        times=times,
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=rng.uniform(1, 100, n),
    )


def bars_of_closes(close: Any, *, symbol: str = "EURUSD", timeframe: str = "1h") -> Bars:
    """Return bars without a range at the given closes."""
    prices = np.asarray(close, dtype=np.float64)
    times = FIRST_TIME_NS + np.arange(len(prices), dtype=np.int64) * Timeframe.parse(timeframe).duration_ns
    return validate_bars(
        symbol=symbol,
        timeframe=timeframe,
        times=times,
        open=prices,
        high=prices,
        low=prices,
        close=prices,
        volume=np.ones(len(prices)),
    )


def bars_csv(bars: Bars) -> str:
    """Return bars as the text of a CSV file that reads back equal."""
    lines = ["timestamp," + ",".join(BAR_COLUMNS)]
    columns = [getattr(bars, name).tolist() for name in BAR_COLUMNS]
    for time_ns, *values in zip(bars.times.tolist(), *columns, strict=True):
        lines.append(",".join([time_text(time_ns), *map(repr, values)]))
    return "\n".join(lines) + "\n"


def write_bars_csv(directory: Path, bars: Bars | None = None, *, n: int = 600, seed: int = 7) -> Path:
    """Write `bars` (or `make_bars(n, seed)`) to `<SYMBOL>_<timeframe>.csv` in `directory`; return the file's path."""
    written = bars if bars is not None else make_bars(n, seed)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{written.symbol}_{written.timeframe}.csv"
    path.write_text(bars_csv(written))
    return path
