"""Labels: what the model should have said at each bar. Labels look ahead, by a declared number of bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars, FloatArray
from ktrdr_core.domain.labels import CLASS_NAMES, NUM_CLASSES, SignalClass
from ktrdr_core.errors import DegenerateLabelsError, UnsupportedError

NO_LABEL = -1
MAX_CLASS_SHARE = 0.95


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of a series.

    Attributes:
        y: SignalClass of each bar, shape (T,), int64; NO_LABEL where the horizon is not complete.
        horizon_bars: Bars ahead that a label has seen.
    """

    y: NDArray[np.int64]
    horizon_bars: int


def forward_extremes(close: FloatArray, horizon_bars: int) -> tuple[FloatArray, FloatArray]:
    """Return the highest and lowest close of the `horizon_bars` bars after each bar.

    Args:
        close: Close prices, shape (T,), no NaN.
        horizon_bars: H, at least 1.

    Returns:
        max and min of close[t + 1 .. t + H], shape (T,), float64; NaN in the last H rows. Looks H bars ahead.
    """
    import talib

    highest_T, lowest_T = np.full(len(close), np.nan), np.full(len(close), np.nan)
    if len(close) > horizon_bars:
        if horizon_bars == 1:  # TA-Lib takes no window of one bar
            highest_T[:-1] = lowest_T[:-1] = close[1:]
        else:
            highest_T[:-horizon_bars] = talib.MAX(close, timeperiod=horizon_bars)[horizon_bars:]
            lowest_T[:-horizon_bars] = talib.MIN(close, timeperiod=horizon_bars)[horizon_bars:]
    return highest_T, lowest_T


def zigzag_labels(bars: Bars, config: LabelsConfig) -> Labels:
    """Label each bar by the larger of the moves that follow within the horizon.

    With H = `label_lookahead` and h = `zigzag_threshold`: up = max(close[t+1..t+H]) / close[t] - 1, down =
    1 - min(close[t+1..t+H]) / close[t]. BUY if up >= h and up > down, SELL if down >= h and down > up, else HOLD.
    The last H bars have no label.
    """
    highest_T, lowest_T = forward_extremes(bars.close, config.label_lookahead)
    up_T = highest_T / bars.close - 1
    down_T = 1 - lowest_T / bars.close
    y = np.full(len(bars), int(SignalClass.HOLD), dtype=np.int64)
    y[(up_T >= config.zigzag_threshold) & (up_T > down_T)] = SignalClass.BUY
    y[(down_T >= config.zigzag_threshold) & (down_T > up_T)] = SignalClass.SELL
    y[np.isnan(up_T)] = NO_LABEL
    return Labels(y, config.label_lookahead)


LABELERS: Mapping[str, Callable[[Bars, LabelsConfig], Labels]] = {"zigzag": zigzag_labels}


def find_labeler(source: str) -> Callable[[Bars, LabelsConfig], Labels]:
    """Return the labeler of a label source.

    Raises:
        UnsupportedError: This version does not build it.
    """
    if source not in LABELERS:
        raise UnsupportedError(
            f"label source {source!r} is not built yet; this version has {', '.join(LABELERS)}",
            field="training.labels.source",
        )
    return LABELERS[source]


def generate_labels(bars: Bars, config: LabelsConfig) -> Labels:
    """Return the labels of a series by the strategy's label source.

    Raises:
        UnsupportedError: The source is not built yet.
    """
    return find_labeler(config.source)(bars, config)


def check_degenerate(y: NDArray[np.int64], allow: bool) -> None:
    """Refuse labels from which nothing can be learned.

    Args:
        y: Labels, shape (N,); NO_LABEL entries are left out.
        allow: The strategy says `allow_degenerate_labels`.

    Raises:
        DegenerateLabelsError: A class is missing, or one has over 95 % of the rows; the counts are named.
    """
    counts = np.bincount(y[y != NO_LABEL], minlength=NUM_CLASSES)
    total = int(counts.sum())
    if allow or (total and counts.min() > 0 and counts.max() <= MAX_CLASS_SHARE * total):
        return
    shown = ", ".join(f"{name} {count}" for name, count in zip(CLASS_NAMES, counts.tolist(), strict=True))
    raise DegenerateLabelsError(
        f"labels are degenerate: {shown} of {total} rows; each class must appear and none exceed "
        f"{MAX_CLASS_SHARE:.0%}; change training.labels.zigzag_threshold or label_lookahead, "
        "or set allow_degenerate_labels",
        metadata={name: str(count) for name, count in zip(CLASS_NAMES, counts.tolist(), strict=True)},
    )
