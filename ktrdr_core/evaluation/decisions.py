"""From a network's outputs to classes, probabilities, decisions and positions.

The one rule of prediction and of the evaluation of signals. Everything at a row uses bars up to that row's bar.

Shape suffixes: N rows, C classes (BUY, HOLD, SELL), T bars of the row's series.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.decision_sections import DecisionsConfig, FiltersConfig, TradingHours
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.config.training_sections import LabelsConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.domain.labels import NUM_CLASSES, SignalClass
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidInputError

OUTPUT_ACTIVATIONS = ("softmax", "sigmoid", "linear")
"""What a network's outputs are: logits of classes, logits of each class against the rest, or a forward return."""

VOLUME_FILTER_BARS = 20
"""Bars, the row's own among them, whose mean volume `volume_filter` compares with."""

_HOUR_NS = 3_600 * 10**9


def output_activation_of(strategy: StrategyConfig) -> str:
    """Return what the outputs of a strategy's network are: `linear` for a regression, else `softmax` or `sigmoid`."""
    if strategy.is_regression:
        return "linear"
    return strategy.model.architecture.output_activation or "softmax"


def classes(
    outputs: NDArray[np.floating], output_activation: str, labels: LabelsConfig | None = None
) -> NDArray[np.int64]:
    """Return the class that each row's outputs answer.

    Args:
        outputs: The network's outputs before any activation, (N, 3); with `linear` predicted forward returns, (N, 1).
        output_activation: One of OUTPUT_ACTIVATIONS: what the outputs are.
        labels: With `linear`, whose `buy_threshold` and `sell_threshold` make a return BUY or SELL; else not looked at.

    Returns:
        SignalClass of each row, shape (N,), int64. The largest output decides, a tie goes to the lower class. NaN: the
        column of the first NaN, or HOLD with `linear`.

    Raises:
        InvalidInputError: The outputs have another shape, the activation is unknown, or `labels` lacks the thresholds.
    """
    _check_shape(outputs, output_activation)
    if output_activation != "linear":
        return np.asarray(outputs.argmax(axis=1), dtype=np.int64)
    buy_threshold, sell_threshold = return_thresholds(labels)
    predicted_N = outputs[:, 0].astype(np.float64)
    found_N = np.full(len(predicted_N), SignalClass.HOLD, dtype=np.int64)
    found_N[predicted_N >= buy_threshold] = SignalClass.BUY
    found_N[predicted_N <= -sell_threshold] = SignalClass.SELL
    return found_N


def return_thresholds(labels: LabelsConfig | None) -> tuple[float, float]:
    """Return the returns, both positive, from which on a rise is BUY and a fall is SELL.

    Raises:
        InvalidInputError: There are no labels, or they have no thresholds.
    """
    if labels is None or labels.buy_threshold is None or labels.sell_threshold is None:
        raise InvalidInputError(
            "predicted returns become classes by buy_threshold and sell_threshold; these labels have none",
            field="training.labels.buy_threshold",
        )
    return labels.buy_threshold, labels.sell_threshold


def probabilities(
    outputs: NDArray[np.floating], output_activation: str, labels: LabelsConfig | None = None
) -> NDArray[np.float64]:
    """Return the probability of each class.

    `softmax`: of the outputs. `sigmoid`: each class judged alone, then divided by their sum. `linear`: 1 for the class
    of the predicted return, for a regression states no doubt; confidence and separation then drop nothing.

    Args:
        outputs: As for `classes`.
        output_activation: As for `classes`.
        labels: As for `classes`.

    Returns:
        Shape (N, 3), float64, rows summing to 1; computed in float64, row by row. Outputs that are NaN or infinite give
        NaN rows (with `linear`: as `classes`).

    Raises:
        InvalidInputError: As for `classes`.
    """
    _check_shape(outputs, output_activation)
    if output_activation == "linear":
        return np.eye(NUM_CLASSES)[classes(outputs, output_activation, labels)]
    z_NC = outputs.astype(np.float64)
    if output_activation == "sigmoid":
        # log sigmoid(z), so that three classes that are all but impossible still share their row.
        z_NC = -np.logaddexp(0.0, -z_NC)
    with np.errstate(invalid="ignore"):
        exp_NC = np.exp(z_NC - z_NC.max(axis=1, keepdims=True))
    # Sums written out: numpy's own order of additions may depend on the number of rows.
    return np.asarray(exp_NC / (exp_NC[:, 0] + exp_NC[:, 1] + exp_NC[:, 2])[:, None])


def decide(
    classes: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    *,
    bars: Bars,
    bar_indices: NDArray[np.int64],
    config: DecisionsConfig,
) -> NDArray[np.int64]:
    """Return the decision at each row: its class, or HOLD where a condition drops the signal.

    A BUY or SELL is dropped if its probability is below `confidence_threshold` or less than `min_separation` above
    the second, and by the filters: a volume below the mean of the 20 bars up to and including the row's (also where
    there are fewer than 20), a range (high - low) / close below `min_range`, a bar that closes outside
    `trading_hours`. With `position_awareness`, a signal that repeats the open position is HOLD; the first row finds
    none open.

    Args:
        classes: Class of each row, shape (N,).
        probabilities: Of those rows, shape (N, 3).
        bars: The whole series of base bars that the rows are of.
        bar_indices: Position of each row's bar in `bars`, shape (N,), increasing.
        config: The strategy's `decisions`.

    Returns:
        SignalClass, shape (N,), int64. Row i depends on bars up to its own and on rows up to i. A NaN probability
        drops the signal if a threshold or a separation is asked for.
    """
    passes_N = _is_sure(classes, probabilities, config) & _passes_filters(bars, bar_indices, config.filters)
    decisions_N = np.where(passes_N, classes, SignalClass.HOLD).astype(np.int64)
    if config.position_awareness:
        signal_rows = np.flatnonzero(decisions_N != SignalClass.HOLD)
        signals = decisions_N[signal_rows]
        decisions_N[signal_rows[1:][signals[1:] == signals[:-1]]] = SignalClass.HOLD
    return decisions_N


def positions(decisions: NDArray[np.int64], position_awareness: bool) -> NDArray[np.int8]:
    """Return the position held from each row's close to the next bar's close.

    Args:
        decisions: Decisions of one series in time order, shape (N,).
        position_awareness: HOLD keeps the open position; otherwise HOLD is flat.

    Returns:
        +1 (long), 0 (flat) or -1 (short), shape (N,), int8; flat before the first signal. Row i depends on rows up to
        its own.
    """
    signals_N = (SignalClass.HOLD - decisions).astype(np.int8)  # BUY = 0, HOLD = 1, SELL = 2
    if not position_awareness or len(signals_N) == 0:
        return signals_N
    last_signal_N = np.maximum.accumulate(np.where(signals_N != 0, np.arange(len(signals_N)), -1))
    return np.where(last_signal_N >= 0, signals_N[last_signal_N], 0).astype(np.int8)


def _check_shape(outputs: NDArray[np.floating], output_activation: str) -> None:
    if output_activation not in OUTPUT_ACTIVATIONS:
        raise InvalidInputError(
            f"outputs are one of {', '.join(OUTPUT_ACTIVATIONS)}, was {output_activation!r}", field="output_activation"
        )
    num_outputs = 1 if output_activation == "linear" else NUM_CLASSES
    if outputs.ndim != 2 or outputs.shape[1] != num_outputs:
        raise InvalidInputError(
            f"{output_activation} outputs must have the shape (rows, {num_outputs}), was {outputs.shape}",
            field="outputs",
        )


def _is_sure(
    classes_N: NDArray[np.int64], probabilities_NC: NDArray[np.float64], config: DecisionsConfig
) -> NDArray[np.bool_]:
    sure_N = np.ones(len(classes_N), dtype=np.bool_)
    rows = np.arange(len(classes_N))
    best_N = probabilities_NC[rows, classes_N]
    if config.confidence_threshold > 0:
        sure_N &= best_N >= config.confidence_threshold
    if config.filters.min_separation > 0:
        others_NC = probabilities_NC.copy()
        others_NC[rows, classes_N] = -np.inf
        sure_N &= best_N - others_NC.max(axis=1) >= config.filters.min_separation
    return sure_N


def _passes_filters(bars: Bars, bar_indices_N: NDArray[np.int64], filters: FiltersConfig) -> NDArray[np.bool_]:
    passes_N = np.ones(len(bar_indices_N), dtype=np.bool_)
    if filters.volume_filter:
        passes_N &= _has_volume(bars.volume, bar_indices_N)
    if filters.min_range > 0:
        high_N, low_N, close_N = (column[bar_indices_N] for column in (bars.high, bars.low, bars.close))
        passes_N &= (high_N - low_N) / close_N >= filters.min_range
    if filters.trading_hours is not None:
        close_times_N = bars.times[bar_indices_N] + Timeframe.parse(bars.timeframe).duration_ns
        passes_N &= _is_within(close_times_N // _HOUR_NS % 24, filters.trading_hours)
    return passes_N


def _has_volume(volume_T: NDArray[np.float64], bar_indices_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    enough_N = bar_indices_N >= VOLUME_FILTER_BARS - 1
    ends = bar_indices_N[enough_N]
    # Always the same 20 additions: a running sum would depend on where the series starts.
    total = np.zeros(len(ends))
    for lag in range(VOLUME_FILTER_BARS):
        total += volume_T[ends - lag]
    enough_N[enough_N] = volume_T[ends] >= total / VOLUME_FILTER_BARS
    return enough_N


def _is_within(hours_N: NDArray[np.int64], trading_hours: TradingHours) -> NDArray[np.bool_]:
    after_N, before_N = hours_N >= trading_hours.start, hours_N < trading_hours.end
    # `end` below `start` goes over midnight.
    return after_N & before_N if trading_hours.start < trading_hours.end else after_N | before_N
