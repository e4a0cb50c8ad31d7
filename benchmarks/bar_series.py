"""A long series with the habits of a real one."""

from __future__ import annotations

import numpy as np

from benchmarks.sample import BARS_DIR
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import Bars, validate_bars

BLOCK_BARS = 120  # five days of hours: volatility and its daily rhythm stay together
HOUR_NS = 3_600 * 10**9
FIRST_TIME_NS = 0


def bootstrap_bars(num_bars: int, seed: int = 1) -> Bars:
    """Return hourly bars made of random runs of the shipped series' log returns, each bar with its own shape.

    Source: H. R. Kuensch, The Jackknife and the Bootstrap for General Stationary Observations, 1989 (moving blocks).
    """
    source = DirectoryBarStore(BARS_DIR).load("EURUSD", "1h")
    rng = np.random.default_rng(seed)
    starts = rng.integers(1, len(source) - BLOCK_BARS, size=-(-num_bars // BLOCK_BARS))
    rows = (starts[:, None] + np.arange(BLOCK_BARS)).ravel()[:num_bars]
    returns = np.log(source.close[rows] / source.close[rows - 1])
    # The drift is taken out, or a century of hours would end at another order of magnitude.
    close = source.close[0] * np.exp(np.cumsum(returns - returns.mean()))
    ratio = {name: getattr(source, name)[rows] / source.close[rows] for name in ("open", "high", "low")}
    return validate_bars(
        symbol="EURUSD",
        timeframe="1h",
        times=FIRST_TIME_NS + np.arange(num_bars, dtype=np.int64) * HOUR_NS,
        open=close * ratio["open"],
        high=close * ratio["high"] * (1 + 1e-12),
        low=close * ratio["low"] * (1 - 1e-12),
        close=close,
        volume=source.volume[rows],
    )
