"""The label that compares the extremes of the bars to come."""

from __future__ import annotations

import numpy as np

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars, FloatArray
from ktrdr_core.labels.labels import Labels, classes, unlabelled
from ktrdr_core.labels.windows import window_extremes


def forward_extremes(close: FloatArray, horizon_bars: int) -> tuple[FloatArray, FloatArray]:
    """Return the highest and lowest close of the `horizon_bars` bars after each bar that has so many.

    Args:
        close: Close prices, shape (T,), no NaN.
        horizon_bars: H, at least 1.

    Returns:
        max and min of close[t + 1 .. t + H] for t = 0 .. T - H - 1, shape (max(T - H, 0),), float64. They look H bars
        ahead.
    """
    future = close[1:]
    return window_extremes(future, horizon_bars, np.maximum), window_extremes(future, horizon_bars, np.minimum)


def zigzag_labels(bars: Bars, config: LabelsConfig) -> Labels:
    """Label each bar by the larger of the moves that follow within the horizon.

    With H = `label_lookahead` and h = `zigzag_threshold`: up = max(close[t+1..t+H]) / close[t] - 1, down =
    1 - min(close[t+1..t+H]) / close[t]. BUY if up >= h and up > down, SELL if down >= h and down > up, else HOLD. A
    label has seen all H bars; the last H bars have none.

    Source: the threshold of a zigzag (A. A. Merrill, Filtered Waves, 1977), applied to the extremes of a fixed horizon
    as the predecessor of this system labels; it is a definition of this system, not a published one.
    """
    horizon, threshold = config.label_lookahead, config.zigzag_threshold or 0.0
    y, ends = unlabelled(len(bars))
    highest, lowest = forward_extremes(bars.close, horizon)
    num_labels = len(highest)
    now = bars.close[:num_labels]
    up, down = highest / now - 1, 1 - lowest / now
    y[:num_labels] = classes((up >= threshold) & (up > down), (down >= threshold) & (down > up))
    ends[:num_labels] = np.arange(num_labels) + horizon
    return Labels(y, ends, horizon)
