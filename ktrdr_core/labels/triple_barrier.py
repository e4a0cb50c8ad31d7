"""The label of the barrier that the price meets first."""

from __future__ import annotations

import numpy as np

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars, FloatArray, IntArray
from ktrdr_core.labels.labels import Labels, classes, unlabelled
from ktrdr_core.labels.windows import power_windows, window_variances

BLOCK_BARS = 16_384  # the tables of a block stay in the second-level cache


def triple_barrier_labels(bars: Bars, config: LabelsConfig) -> Labels:
    """Label each bar by the first of three barriers that the closes after it meet.

    With H = `label_lookahead`, the profit barrier is close[t] (1 + p), the loss barrier close[t] (1 - q), the vertical
    barrier bar t + H. BUY if a close of bars t + 1 to t + H reaches the profit barrier and none before it the loss
    barrier, SELL the other way round, HOLD if neither is reached. A close equal to a barrier reaches it. A label has
    seen the bar of the touch, t + H for a HOLD.

    p and q are `profit_barrier` and `loss_barrier`, multiplied by `trailing_volatility` if there is a
    `volatility_period`. A bar whose volatility is not known yet, or is 0, has no barriers and no label; nor have the
    last H bars, touch or not, since those of them that touched early would be the fast movers only.

    Source: M. Lopez de Prado, Advances in Financial Machine Learning, 2018, sections 3.3 and 3.4; there the volatility
    is exponentially weighted, and the vertical barrier may take the sign of the return.
    """
    horizon = config.label_lookahead
    num_labels = max(len(bars) - horizon, 0)
    y, ends = unlabelled(len(bars))
    now = bars.close[:num_labels]
    profit: FloatArray | float = config.profit_barrier or 0.0
    loss: FloatArray | float = config.loss_barrier or 0.0
    if config.volatility_period is not None:
        volatility = trailing_volatility(bars.close, config.volatility_period)[:num_labels]
        profit, loss = profit * volatility, loss * volatility
    upper, lower = now * (1 + profit), now * (1 - loss)
    touch = first_touch(bars.close, upper, lower, horizon)
    ends[:num_labels] = np.minimum(touch, np.arange(num_labels) + horizon)
    seen = bars.close[ends[:num_labels]]
    is_buy = seen >= upper
    y[:num_labels] = classes(is_buy, (seen <= lower) & ~is_buy)
    if config.volatility_period is not None:
        unknown = np.flatnonzero(~(volatility > 0))
        y[unknown], ends[unknown] = unlabelled(len(unknown))
    return Labels(y, ends, horizon)


def trailing_volatility(close: FloatArray, period: int) -> FloatArray:
    """Return the sample standard deviation of the last `period` one-bar returns.

    Args:
        close: Close prices, shape (T,), no NaN, above 0.
        period: Returns in each window, at least 2.

    Returns:
        Shape (T,), float64: entry t is that of close[i] / close[i-1] - 1 for i = t - period + 1 .. t; NaN in the first
        `period` entries; exactly 0 where all returns are equal. Depends on bars up to t only.
    """
    volatility = np.full(len(close), np.nan)
    if len(close) > period:
        returns = close[1:] / close[:-1] - 1
        volatility[period:] = np.sqrt(window_variances(returns, period))
    return volatility


def first_touch(close: FloatArray, upper: FloatArray, lower: FloatArray, horizon_bars: int) -> IntArray:
    """Return the first bar at which the close meets one of a row's two barriers.

    Args:
        close: Shape (T,).
        upper: Upper barrier of rows 0 .. N - 1, shape (N,), N <= T - `horizon_bars`; a NaN is met at once.
        lower: Lower barrier, likewise.
        horizon_bars: H, at least 1.

    Returns:
        Shape (N,), int64: the least k in t + 1 .. t + H with close[k] >= upper[t] or close[k] <= lower[t]; if there is
        none, any k above t + H.

    The search skips runs of 2**k bars whose extremes stay between the barriers, for falling k: log2(H) steps a row
    whatever the prices do. A run that reaches over the end of a block counts as the last one within it: no bar up to
    the row's horizon is missed by that.
    """
    num_rows = len(upper)
    touch = np.empty(num_rows, dtype=np.int64)
    for start in range(0, num_rows, BLOCK_BARS):
        stop = min(start + BLOCK_BARS, num_rows)
        future = close[start + 1 : stop + horizon_bars]
        highest = list(power_windows(future, horizon_bars, np.maximum))
        lowest = list(power_windows(future, horizon_bars, np.minimum))
        own_upper, own_lower = upper[start:stop], lower[start:stop]
        place = np.arange(stop - start)
        for level in range(len(highest) - 1, -1, -1):
            is_clear = highest[level].take(place, mode="clip") < own_upper
            is_clear &= lowest[level].take(place, mode="clip") > own_lower
            place += is_clear.astype(np.int64) << level
        touch[start:stop] = place + (start + 1)
    return touch
