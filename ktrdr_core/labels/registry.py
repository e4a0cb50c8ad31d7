"""The label sources by name, and what they declare before a bar is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.data.bars import Bars
from ktrdr_core.domain.labels import CLASS_NAMES, NUM_CLASSES
from ktrdr_core.errors import DegenerateLabelsError, UnsupportedError
from ktrdr_core.labels.forward_return import forward_return_labels
from ktrdr_core.labels.labels import NO_LABEL, Labels
from ktrdr_core.labels.triple_barrier import triple_barrier_labels
from ktrdr_core.labels.zigzag import zigzag_labels
from ktrdr_core.labels.zigzag_segments import zigzag_segment_labels

MAX_CLASS_SHARE = 0.95

Labeler = Callable[[Bars, LabelsConfig], Labels]


@dataclass(frozen=True, slots=True)
class LabelSource:
    """A label source.

    Attributes:
        label: Labels a series.
        tuning_keys: Keys of `training.labels` that decide how often each class appears.
    """

    label: Labeler
    tuning_keys: tuple[str, ...]


LABEL_SOURCES: Mapping[str, LabelSource] = {
    "zigzag": LabelSource(zigzag_labels, ("zigzag_threshold", "label_lookahead")),
    "zigzag_segments": LabelSource(zigzag_segment_labels, ("zigzag_threshold", "label_lookahead")),
    "triple_barrier": LabelSource(triple_barrier_labels, ("profit_barrier", "loss_barrier", "label_lookahead")),
    "forward_return": LabelSource(forward_return_labels, ("buy_threshold", "sell_threshold", "label_lookahead")),
}


def find_label_source(name: str) -> LabelSource:
    """Return a label source.

    Raises:
        UnsupportedError: There is none of this name.
    """
    if name not in LABEL_SOURCES:
        raise UnsupportedError(
            f"label source {name!r} is not known; use {', '.join(LABEL_SOURCES)}", field="training.labels.source"
        )
    return LABEL_SOURCES[name]


def generate_labels(bars: Bars, config: LabelsConfig) -> Labels:
    """Return the labels of a series by the strategy's label source; see its module for the definition."""
    return find_label_source(config.source).label(bars, config)


def label_horizon(config: LabelsConfig) -> int:
    """Return the most bars ahead that a label may see; as many bars at the end of a series have no label."""
    return config.label_lookahead


def label_warm_up_bars(config: LabelsConfig) -> int:
    """Return the bars at the start of a series that have no label for want of history."""
    return config.volatility_period or 0


def check_degenerate(y: NDArray[np.int64], config: LabelsConfig) -> None:
    """Refuse labels from which nothing can be learned.

    Args:
        y: Labels of every symbol, shape (N,); NO_LABEL entries are left out.
        config: Their source, and whether the strategy says `allow_degenerate_labels`.

    Raises:
        DegenerateLabelsError: A class is missing, or one has over 95 % of the rows; the counts are named.
    """
    counts = np.bincount(y[y != NO_LABEL], minlength=NUM_CLASSES)
    total = int(counts.sum())
    if config.allow_degenerate_labels or (total and counts.min() > 0 and counts.max() <= MAX_CLASS_SHARE * total):
        return
    shown = ", ".join(f"{name} {count}" for name, count in zip(CLASS_NAMES, counts.tolist(), strict=True))
    *others, last = find_label_source(config.source).tuning_keys
    raise DegenerateLabelsError(
        f"{config.source} labels are degenerate: {shown} of {total} rows; each class must appear and none exceed "
        f"{MAX_CLASS_SHARE:.0%}; change training.labels.{', '.join(others)} or {last}, or set allow_degenerate_labels",
        metadata={name: str(count) for name, count in zip(CLASS_NAMES, counts.tolist(), strict=True)},
    )


def check_degenerate_targets(targets: NDArray[np.float32], config: LabelsConfig) -> None:
    """Refuse forward returns from which a regression can learn nothing.

    Args:
        targets: Of every symbol, shape (N,); NaN entries are left out.
        config: Whether the strategy says `allow_degenerate_labels`.

    Raises:
        DegenerateLabelsError: There are none, or all are the same.
    """
    known = targets[~np.isnan(targets)]
    if config.allow_degenerate_labels or (len(known) and known.min() < known.max()):
        return
    value = f"all {len(known)} are {known[0]:g}" if len(known) else "there are none"
    raise DegenerateLabelsError(
        f"forward returns are degenerate: {value}; take a longer range, change training.labels.label_lookahead, or set "
        "allow_degenerate_labels"
    )
