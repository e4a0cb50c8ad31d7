"""A signal that only a look-ahead bug could use: the model must not find it.

Hours are a random walk whose every fourth return is large. The bar of four hours that ends with it says by its volume
which way it went. Whoever aligned that bar by its open would know the large return three hours before it comes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import Bars, FloatArray, validate_bars
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidBarsError
from ktrdr_core.training.run_job import run_training
from tests.kit.builders import bars_of_closes, strategy_text, write_bars_csv

NUM_BLOCKS = 500
HOUR_NS = Timeframe.parse("1h").duration_ns
MIDNIGHT_NS = 1_483_315_200 * 10**9  # 2017-01-02T00:00:00Z


def planted(directory: Path, *, told_bars_before: int = 0, dated_bars_before: int = 0) -> DirectoryBarStore:
    """Write hours, and bars of four hours whose volume tells of their last hour.

    Args:
        directory: Where to.
        told_bars_before: How many bars before it the volume tells.
        dated_bars_before: By how many bars the times of the longer bars are too early.
    """
    rng = np.random.default_rng(5)
    is_up = rng.integers(0, 2, NUM_BLOCKS).astype(bool)
    returns = rng.normal(0, 0.0002, (NUM_BLOCKS, 4))
    returns[:, 3] = np.where(is_up, 0.004, -0.004)
    hours = bars_of_closes(np.exp(np.cumsum(returns.ravel())))
    times = MIDNIGHT_NS + np.arange(len(hours), dtype=np.int64) * HOUR_NS
    hours = validate_bars(symbol="EURUSD", timeframe="1h", times=times, **columns(hours, hours.volume))
    blocks = hours.rows(slice(3, None, 4))
    fours = validate_bars(
        symbol="EURUSD",
        timeframe="4h",
        times=times[::4] - dated_bars_before * 4 * HOUR_NS,
        **columns(blocks, np.where(np.roll(is_up, -told_bars_before), 30.0, 10.0)),
    )
    write_bars_csv(directory, hours)
    write_bars_csv(directory, fours)
    return DirectoryBarStore(directory)


def columns(bars: Bars, volume: FloatArray) -> dict[str, Any]:
    return {"open": bars.open, "high": bars.high, "low": bars.low, "close": bars.close, "volume": volume}


def train(store: DirectoryBarStore) -> TrainingResult:
    text = strategy_text(
        **{
            "training_data.timeframes": {"mode": "multi_timeframe", "list": ["1h", "4h"]},
            "indicators": [{"name": "volume_ratio", "period": 20, "timeframes": ["4h"], "feature_id": "busy"}],
            "fuzzy_sets": {
                "busy": {
                    "low": {"type": "left_shoulder", "parameters": [0.6, 1.2]},
                    "high": {"type": "right_shoulder", "parameters": [0.8, 1.4]},
                }
            },
            "model.features": {"lookback_periods": 2},
            "model.training.epochs": 12,
            "model.training.class_weights": "balanced",
            "decisions.confidence_threshold": 0.0,
            "training.labels": {
                "source": "forward_return",
                "label_lookahead": 1,
                "buy_threshold": 0.002,
                "sell_threshold": 0.002,
            },
        }
    )
    return run_training(TrainingSpec(strategy_yaml=text, enable_gpu=False), bar_store=store, model_storage=None)


def share_of_right_directions(result: TrainingResult) -> float:
    """Return how many of the large moves that were called at all were called the right way."""
    confusion = np.array(result["evaluation"]["confusion_matrix"])
    right, wrong = confusion[0, 0] + confusion[2, 2], confusion[0, 2] + confusion[2, 0]
    assert right + wrong > 40, "the model must call most of the 75 large moves, or this test shows nothing"
    return float(right / (right + wrong))


def test_model_does_not_find_what_only_an_unfinished_bar_tells(tmp_path: Path) -> None:
    result = train(planted(tmp_path))
    assert abs(share_of_right_directions(result) - 0.5) < 0.2
    assert result["evaluation"]["leakage"]["passed"] is True


def test_model_finds_the_same_signal_in_a_bar_that_has_closed_in_time(tmp_path: Path) -> None:
    """The control: told one bar before, the signal is there to be used, and this very model uses it."""
    assert share_of_right_directions(train(planted(tmp_path, told_bars_before=1))) > 0.95


def test_longer_bars_that_are_dated_too_early_are_refused_before_a_model_finds_the_signal(tmp_path: Path) -> None:
    with pytest.raises(InvalidBarsError, match=r"EURUSD 4h sees the future: .* 1h bars about 4 later than their times"):
        train(planted(tmp_path, dated_bars_before=1))
