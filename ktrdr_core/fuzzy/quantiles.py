"""Fuzzy sets whose points are quantiles of the training part."""

from __future__ import annotations

import numpy as np

from ktrdr_core.config.strategy import FuzzySetConfig
from ktrdr_core.data.bars import FloatArray
from ktrdr_core.errors import InvalidStrategyError

_TYPE_OF_POINTS = {3: "triangular", 4: "trapezoidal"}


def fit_quantile_set(config: FuzzySetConfig, sample: FloatArray, *, field: str, timeframe: str) -> FuzzySetConfig:
    """Return the set that a `quantile` set is on a sample.

    Args:
        config: Of type `quantile`: two levels make a shoulder, three a triangle, four a trapezoid; any other type is
            returned as it is.
        sample: Values of the training part, shape (N,), no NaN.
        field: Where the set stands, for messages: `fuzzy_sets.rsi_14.low`.
        timeframe: Bar length of the values, for messages.

    Returns:
        A set with values for points. The quantile of a level is interpolated between the two nearest values of the
        sample (R. J. Hyndman and Y. Fan, Sample Quantiles in Statistical Packages, 1996, type 7).

    Raises:
        InvalidStrategyError: The sample is empty, or the first and the last level have one and the same value in it.
    """
    if config.type != "quantile":
        return config
    levels = ", ".join(f"{level:g}" for level in config.parameters)
    if len(sample) == 0:
        raise InvalidStrategyError(
            f"{field} has no {timeframe} values in the training part to take quantiles {levels} of; take a longer "
            "range, or give points instead of quantiles",
            field=field,
        )
    points = [float(point) for point in np.quantile(sample, config.parameters)]
    points = np.maximum.accumulate(points).tolist()  # interpolation may round a later one below an earlier one
    if points[0] == points[-1]:
        raise InvalidStrategyError(
            f"{field}: quantiles {levels} of the {timeframe} training part are all {points[0]:g}, which makes no set; "
            "take levels further apart, or give points instead of quantiles",
            field=field,
        )
    kind = f"{config.shoulder}_shoulder" if config.shoulder else _TYPE_OF_POINTS[len(points)]
    return FuzzySetConfig.model_validate({"type": kind, "parameters": points})
