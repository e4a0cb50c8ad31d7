"""Proves on the bars at hand that features do not see the future, and labels no further than they declare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ktrdr_core.config.strategy import LabelsConfig, StrategyConfig
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.datasets.series_features import compute_features
from ktrdr_core.errors import LeakageError
from ktrdr_core.features.engineer import FeatureMatrix
from ktrdr_core.labels.registry import Labels, generate_labels

NUM_CUTS = 6
# A recursion over a prefix repeats the same operations; what differs by more than rounding has seen something else.
TOLERANCE = 1e-9

FeatureBuilder = Callable[[Bars, StrategyConfig], FeatureMatrix]
Labeler = Callable[[Bars, LabelsConfig], Labels]


@dataclass(frozen=True)
class LeakageReport:
    """What was checked; stored with the model.

    Attributes:
        cut_bars: Numbers of bars that were kept; the features of the last of them were compared, and all before.
        num_features: Columns compared at each cut.
        horizon_bars: Bars ahead that labels were allowed to see.
    """

    cut_bars: tuple[int, ...]
    num_features: int
    horizon_bars: int

    def to_dict(self) -> dict[str, object]:
        return {
            "cut_bars": list(self.cut_bars),
            "num_features": self.num_features,
            "horizon_bars": self.horizon_bars,
            "passed": True,
        }


def check_truncation(
    bars: Bars,
    strategy: StrategyConfig,
    seed: int,
    *,
    build: FeatureBuilder = compute_features,
    labeler: Labeler = generate_labels,
) -> LeakageReport:
    """Recompute features with the future cut off, and with another future, at random bars.

    Args:
        bars: The series that is trained on.
        strategy: What to compute.
        seed: Of the choice of bars and of the other future.
        build: Computes features.
        labeler: Computes labels.

    Returns:
        What was compared.

    Raises:
        LeakageError: A feature of a bar changes with later bars, or a label with bars beyond its horizon; the
            feature and the bar are named.
    """
    rng = np.random.default_rng(seed)
    full = build(bars, strategy)
    labels = labeler(bars, strategy.training.labels)
    first = min(full.warm_up_bars + 2, len(bars) - 1)
    cuts = np.unique(rng.integers(first, len(bars), size=NUM_CUTS)) if len(bars) > 1 else np.array([], dtype=np.int64)
    for cut in cuts.tolist():
        other = _with_other_future(bars, cut, rng)
        _compare(full, build(bars.head(cut), strategy), cut)
        _compare(full, build(other, strategy), cut)
        _compare_labels(labels, labeler(other, strategy.training.labels), cut)
    return LeakageReport(tuple(cuts.tolist()), len(full.names), labels.horizon_bars)


def _with_other_future(bars: Bars, cut: int, rng: np.random.Generator) -> Bars:
    """Return bars that are the same before `cut` and scaled by up to half or double from there on."""
    factor = np.ones(len(bars))
    factor[cut:] = np.exp(rng.uniform(-0.7, 0.7, size=len(bars) - cut))
    columns: dict[str, Any] = {name: getattr(bars, name) * factor for name in BAR_COLUMNS}
    return replace(bars, **columns)


def _compare(full: FeatureMatrix, other: FeatureMatrix, cut: int) -> None:
    """Compare the rows before `cut`; the last of them is where look-ahead shows first."""
    if full.names != other.names:
        raise LeakageError(
            f"the features change from {', '.join(full.names)} to {', '.join(other.names)} when bars from {cut} on "
            "change; a feature may not depend on later bars",
            metadata={"feature": "names", "bar": str(cut - 1)},
        )
    expected, actual = full.X[:cut], other.X[:cut]
    if np.array_equal(expected, actual, equal_nan=True):  # the usual case, and the cheap one
        return
    is_equal = np.isclose(expected, actual, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    if not is_equal.all():
        row, column = (int(index) for index in np.argwhere(~is_equal)[-1])
        raise LeakageError(
            f"feature {full.names[column]} of bar {row} changes when bars from {cut} on change: it sees the future; "
            "compute it from closed bars only",
            metadata={"feature": full.names[column], "bar": str(row)},
        )


def _compare_labels(full: Labels, other: Labels, cut: int) -> None:
    """Compare the labels whose horizon ends before `cut`."""
    stop = max(cut - full.horizon_bars, 0)
    differs = np.flatnonzero(full.y[:stop] != other.y[:stop])
    if len(differs):
        raise LeakageError(
            f"the label of bar {differs[-1]} changes when bars from {cut} on change: it looks further ahead than its "
            f"horizon of {full.horizon_bars} bars; declare the true horizon",
            metadata={"feature": "label", "bar": str(differs[-1])},
        )
