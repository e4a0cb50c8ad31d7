"""Scale-free columns of the bar itself."""

from __future__ import annotations

import numpy as np

from ktrdr_core.data.bars import Bars, FloatArray

PRICE_CONTEXT_NAMES = ("price.return_1", "price.range", "price.body", "price.close_position")
PRICE_CONTEXT_WARM_UP_BARS = 1


def price_context(bars: Bars) -> dict[str, FloatArray]:
    """Return scale-free columns of the current bar, known at its close.

    Returns:
        `price.return_1`: close / close before - 1 (NaN at bar 0); `price.range`: (high - low) / close;
        `price.body`: (close - open) / close; `price.close_position`: where the close is between low (0) and
        high (1), 0.5 for a bar without a range. Shape (T,), float64. Value t depends on bars t - 1 and t only.
    """
    range_T = bars.high - bars.low
    return_T = np.full(len(bars), np.nan)
    return_T[1:] = bars.close[1:] / bars.close[:-1] - 1
    position_T = np.full(len(bars), 0.5)
    np.divide(bars.close - bars.low, range_T, out=position_T, where=range_T > 0)
    columns = (return_T, range_T / bars.close, (bars.close - bars.open) / bars.close, position_T)
    return dict(zip(PRICE_CONTEXT_NAMES, columns, strict=True))
