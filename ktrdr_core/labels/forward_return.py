"""The label that is the return over the horizon."""

from __future__ import annotations

import numpy as np

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.labels.labels import Labels, classes, unlabelled


def forward_return_labels(bars: Bars, config: LabelsConfig) -> Labels:
    """Label each bar by its return after the horizon.

    With H = `label_lookahead`: r = close[t+H] / close[t] - 1. BUY if r >= `buy_threshold`, SELL if r <=
    -`sell_threshold`, else HOLD. `targets` is r as float32, for a regression. A label has seen bar t + H; the last H
    bars have none.

    Source: fixed-time horizon method, M. Lopez de Prado, Advances in Financial Machine Learning, 2018, section 3.2,
    with thresholds that count as reached when met exactly.
    """
    horizon = config.label_lookahead
    y, ends = unlabelled(len(bars))
    targets = np.full(len(bars), np.nan, dtype=np.float32)
    num_labels = max(len(bars) - horizon, 0)
    returns = bars.close[horizon:] / bars.close[:num_labels] - 1
    y[:num_labels] = classes(returns >= (config.buy_threshold or 0.0), returns <= -(config.sell_threshold or 0.0))
    ends[:num_labels] = np.arange(num_labels) + horizon
    targets[:num_labels] = returns
    return Labels(y, ends, horizon, targets)
