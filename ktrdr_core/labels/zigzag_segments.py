"""The label of the leg that a bar lies on, between two confirmed extremes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars, FloatArray, IntArray
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.labels.labels import Labels, unlabelled

# Below this many bars the loop in Python (0.2 us a bar) is not worth importing and compiling for (0.7 s, once).
MIN_COMPILED_BARS = 100_000


def zigzag_segment_labels(bars: Bars, config: LabelsConfig) -> Labels:
    """Label each bar by the direction of the zigzag leg it lies on.

    A bar strictly between two extremes that follow one another is BUY if the leg rises and SELL if it falls; an extreme
    is HOLD. See `find_extremes` for what an extreme is; it is known only once it is confirmed, at a later bar. A label
    has seen the bar that confirms the end of its leg (for an extreme: itself).

    A bar whose leg's end is not confirmed within `label_lookahead` bars has no label, rather than a guess, so that the
    horizon is true: such rows are counted as unlabelled. Nor have bars before the first extreme, and the last
    `label_lookahead` bars.

    Source: A. A. Merrill, Filtered Waves, 1977 (the zigzag); labels as the predecessor of this system defines them, but
    for those it gave without a confirmation.
    """
    horizon = config.label_lookahead
    y, ends = unlabelled(len(bars))
    extremes, confirmations, is_first_high = find_extremes(bars.close, config.zigzag_threshold or 0.0)
    if len(extremes) == 0:
        return Labels(y, ends, horizon)
    # The leg that ends in extreme j owns the bars after extreme j - 1 up to its own; the first owns its extreme alone.
    first, stop = int(extremes[0]), int(extremes[-1]) + 1
    leg_bars = np.diff(extremes, prepend=first - 1)
    is_high = (np.arange(len(extremes)) % 2 == 0) == is_first_high
    y[first:stop] = np.repeat(np.where(is_high, int(SignalClass.BUY), int(SignalClass.SELL)), leg_bars)
    y[extremes] = SignalClass.HOLD
    ends[first:stop] = np.repeat(confirmations, leg_bars)
    has_none = ends - np.arange(len(bars)) > horizon
    has_none[max(len(bars) - horizon, 0) :] = True
    unknown = np.flatnonzero(has_none)
    y[unknown], ends[unknown] = unlabelled(len(unknown))
    return Labels(y, ends, horizon)


def find_extremes(close: FloatArray, threshold: float) -> tuple[IntArray, IntArray, bool]:
    """Return the extremes of the zigzag of a series, each with the bar that confirms it.

    A high is the first highest close since the low before it, confirmed by the first later close with 1 - close / high
    >= threshold; a low is the first lowest close since the high before it, confirmed by the first later close with
    close / low - 1 >= threshold. They take turns: the search for one begins when the other is confirmed. The first of
    them is the series' highest or lowest close so far, whichever is confirmed first.

    Args:
        close: Close prices, shape (T,), no NaN, above 0.
        threshold: Reversal that confirms, above 0.

    Returns:
        Bars of the extremes, shape (E,), int64, increasing, highs and lows in turn; the bars that confirm them, shape
        (E,), increasing, each after its extreme and at or before the next one; whether the first is a high. Entry j is
        a function of the bars up to confirmations[j].
    """
    if len(close) < MIN_COMPILED_BARS:
        extremes, confirmations, is_first_high = _walk(close.tolist(), threshold)
    else:
        extremes, confirmations, is_first_high = _compiled_walk()(close, threshold)
    return np.array(extremes, dtype=np.int64), np.array(confirmations, dtype=np.int64), bool(is_first_high)


def _walk(close: FloatArray | list[float], threshold: float) -> tuple[IntArray, IntArray, bool]:
    """Walk along the closes once, in code that numba can compile; IEEE divisions alone, so both give the same bits."""
    extremes = np.empty(len(close), dtype=np.int64)
    confirmations = np.empty(len(close), dtype=np.int64)
    count = 0
    is_first_high = False
    direction = 0  # 1 looks for a high, -1 for a low, 0 for either
    high_bar = low_bar = 0
    high, low = -np.inf, np.inf
    for bar in range(len(close)):
        price = close[bar]
        if price > high:
            high, high_bar = price, bar
        if price < low:
            low, low_bar = price, bar
        found = -1
        if direction >= 0 and 1 - price / high >= threshold:
            found, direction = high_bar, -1
        elif direction <= 0 and price / low - 1 >= threshold:
            found, direction = low_bar, 1
        if found >= 0:
            if count == 0:
                is_first_high = direction < 0
            extremes[count], confirmations[count] = found, bar
            count += 1
            high = low = price
            high_bar = low_bar = bar
    return extremes[:count], confirmations[:count], is_first_high


@cache
def _compiled_walk() -> Callable[[FloatArray, float], tuple[IntArray, IntArray, bool]]:
    import numba

    return cast(Callable[[FloatArray, float], tuple[IntArray, IntArray, bool]], numba.njit(_walk))
