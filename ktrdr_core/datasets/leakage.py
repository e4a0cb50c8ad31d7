"""Proves on the bars at hand that features do not see the future, and labels no further than they say.

Two questions are asked of every part of the computation. Is a value the same when what follows is cut off? Is it the
same when what follows is different? The first catches what needs later bars, the second also what only looks at them.

Asked of a whole series of a million bars, each costs as much as the features themselves. So they are asked

- once of a long prefix: the matrix that is trained on must be, up to a random bar, the one computed of the prefix
  alone, and the labels likewise. This ties the check to the real matrix and finds whatever spans a series, such as a
  mean over all of it;
- many times of short windows that begin at random bars: a window is computed once, and again for each cut. What looks
  a few bars ahead shows at the last bars before a cut, so many cuts on little data find more than few on much. Some
  things show at certain cuts only, so beside random ones there is one right before a base bar that first sees a new
  longer bar, for each higher timeframe, and one right before a bar that opens after a gap, which the bar before it
  cannot know of.

Together that is about one computation of all features and labels at a million bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import LabelsConfig, StrategyConfig
from ktrdr_core.data.alignment import last_closed, num_closed
from ktrdr_core.data.bars import BAR_COLUMNS, Bars, IntArray, time_text
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.series_features import compute_features
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import LeakageError
from ktrdr_core.features.engineer import FeatureMatrix
from ktrdr_core.fuzzy.timeframe_sets import timeframe_indicators
from ktrdr_core.indicators.compute import indicator_warm_up_bars
from ktrdr_core.labels.labels import NO_LABEL, Labels
from ktrdr_core.labels.registry import generate_labels

WINDOW_BARS = 16_384
NUM_WINDOWS = 4
RANDOM_CUTS = 6  # over all windows, at least 2 in each; beside those at certain bars, see `_cuts`
# A computation over a prefix repeats the same operations. A difference of this size is the last bit of a float32.
RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9
BLOCK_ROWS = 4_096

FeatureBuilder = Callable[[SymbolBars, StrategyConfig], FeatureMatrix]
Labeler = Callable[[Bars, LabelsConfig], Labels]


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """What was compared, of one symbol.

    Attributes:
        cuts: Bars from which on the future was cut off.
        perturbations: Bars from which on it was changed.
        num_features: Columns compared at each.
        horizon_bars: Bars ahead that labels were allowed to see.
    """

    cuts: int
    perturbations: int
    num_features: int
    horizon_bars: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def _no_check() -> None:
    pass


def check_leakage(
    bars: SymbolBars,
    features: FeatureMatrix,
    labels: Labels,
    strategy: StrategyConfig,
    seed: int,
    *,
    build: FeatureBuilder = compute_features,
    labeler: Labeler = generate_labels,
    check: Callable[[], None] = _no_check,
) -> LeakageReport:
    """Recompute features and labels with the future cut off, and with another future, at random bars.

    Args:
        bars: The bars that are trained on.
        features: What was computed of them.
        labels: Likewise.
        strategy: What to compute; its `quantile` sets are fitted.
        seed: Of the choice of bars and of the other futures.
        build: Computes features.
        labeler: Computes labels.
        check: Called between the pieces, each of which takes no longer than the features themselves; may raise
            to end the check.

    Returns:
        What was compared.

    Raises:
        LeakageError: A feature changes with later bars, or a label with bars beyond those it says it has seen; the
            feature and the bar are named.
    """
    rng = np.random.default_rng(seed)
    gate = _Gate(strategy, build, labeler, check)
    gate.check_spans(labels, bars.base)
    if len(bars) > 1:
        gate.check_prefix(bars, features, labels, rng)
        for window in _windows(bars, features, strategy, rng):
            gate.check_window(window, rng)
    return LeakageReport(gate.cuts, gate.perturbations, len(features.columns), labels.horizon_bars)


class _Gate:
    """One check: how to compute, and how much was compared."""

    def __init__(
        self, strategy: StrategyConfig, build: FeatureBuilder, labeler: Labeler, check: Callable[[], None]
    ) -> None:
        self._strategy = strategy
        self._build = build
        self._labeler = labeler
        self._check = check
        self.cuts = 0
        self.perturbations = 0

    def check_spans(self, labels: Labels, base: Bars) -> None:
        """Compare what labels say they have seen with their horizon."""
        bars_T = np.arange(len(labels.y), dtype=np.int64)
        is_wrong_T = np.where(
            labels.y == NO_LABEL,
            labels.ends != -1,
            (labels.ends < bars_T) | (labels.ends > bars_T + labels.horizon_bars) | (labels.ends >= len(bars_T)),
        )
        if is_wrong_T.any():
            bar = int(np.argmax(is_wrong_T))
            raise LeakageError(
                f"the label of bar {bar} ({time_text(int(base.times[bar]))}) says it has seen bar {labels.ends[bar]}, "
                f"which is not within its horizon of {labels.horizon_bars} bars; declare the true horizon",
                metadata={"feature": "label", "bar": str(bar)},
            )

    def check_prefix(self, bars: SymbolBars, features: FeatureMatrix, labels: Labels, rng: np.random.Generator) -> None:
        """Compare the matrix and the labels that are trained on with those of a prefix."""
        first = min(max(features.warm_up_bars + 1, len(bars) // 4), len(bars) - 1)
        cut = int(rng.integers(first, max(first + 1, 3 * len(bars) // 4)))
        prefix = bars.head(cut)
        self._check()
        _compare(features, self._build(prefix, self._strategy), cut, 0, prefix.base)
        self._check()
        _compare_labels(labels, self._labels(prefix.base), _settled(labels, cut), cut, 0, bars.base)
        self.cuts += 1

    def check_window(self, window: _Window, rng: np.random.Generator) -> None:
        """Compare a window with itself without, and with another, future."""
        bars, start = window.bars, window.start
        self._check()
        features, labels = self._build(bars, self._strategy), self._labels(bars.base)
        for cut in _cuts(bars, features.warm_up_bars, window.num_cuts, rng):
            self._check()
            prefix = bars.head(cut)
            _compare(features, self._build(prefix, self._strategy), cut, start, bars.base)
            _compare_labels(labels, self._labels(prefix.base), _settled(labels, cut), cut, start, bars.base)
            self._check()
            other = _with_other_future(bars, cut, rng)
            _compare(features, self._build(other, self._strategy), cut, start, bars.base)
            is_seen_T = _settled(labels, cut) | ((labels.ends >= 0) & (labels.ends < cut))
            _compare_labels(labels, self._labels(other.base), is_seen_T, cut, start, bars.base)
            self.cuts += 1
            self.perturbations += 1

    def _labels(self, base: Bars) -> Labels:
        return self._labeler(base, self._strategy.training.labels)


@dataclass(frozen=True, slots=True)
class _Window:
    """Bars of a window, the bar of the series at which it begins, and how many random cuts it gets."""

    bars: SymbolBars
    start: int
    num_cuts: int


def _windows(
    bars: SymbolBars, features: FeatureMatrix, strategy: StrategyConfig, rng: np.random.Generator
) -> Iterator[_Window]:
    """Yield windows that begin at random bars; a single one of all bars if there are not more.

    A window has eight times its warm-up, and of each higher timeframe twice the bars before it that the warm-up needs.
    """
    history = [
        2 * indicator_warm_up_bars(indicators) + 2 if indicators else 1
        for own in bars.higher
        for indicators in [timeframe_indicators(strategy.indicators, strategy.fuzzy_sets, own.timeframe)]
    ]
    base_indicators = timeframe_indicators(strategy.indicators, strategy.fuzzy_sets, bars.base.timeframe)
    warm_up_bars = indicator_warm_up_bars(base_indicators) if base_indicators else 0
    warm_up_bars += strategy.model.features.lookback_periods
    size = max(WINDOW_BARS, 8 * warm_up_bars)
    size = min(size, len(bars))
    num_windows = min(NUM_WINDOWS, len(bars) // size)
    last_start = len(bars) - size
    # Before the first complete row there is nothing to compare.
    starts = rng.integers(min(features.warm_up_bars, last_start), last_start + 1, size=num_windows)
    for start in starts.tolist():
        yield _Window(bars.window(start, start + size, history), start, max(RANDOM_CUTS // num_windows, 2))


def _cuts(bars: SymbolBars, warm_up_bars: int, num_random: int, rng: np.random.Generator) -> list[int]:
    """Return bars at which the future of a window begins, each with complete rows before it if there are any."""
    first = min(warm_up_bars + 1, len(bars) - 1)
    if first < 1:
        return []
    cuts = set(rng.integers(first, len(bars), size=num_random).tolist())
    late = np.flatnonzero(np.diff(bars.base.times) > Timeframe.parse(bars.base.timeframe).duration_ns) + 1
    for telling in (late, *(np.flatnonzero(np.diff(last_closed(bars.base, own))) + 1 for own in bars.higher)):
        own_cuts = telling[telling >= first]
        if len(own_cuts):
            cuts.add(int(rng.choice(own_cuts)))
    return sorted(cuts)


def _with_other_future(bars: SymbolBars, cut: int, rng: np.random.Generator) -> SymbolBars:
    """Return bars that are the same as far as they have closed before base bar `cut`, and others from there on."""
    higher = tuple(_perturbed(own, num_closed(own, bars.base, cut), rng) for own in bars.higher)
    return SymbolBars(_perturbed(bars.base, cut, rng), higher)


def _perturbed(bars: Bars, first: int, rng: np.random.Generator) -> Bars:
    """Return bars of which those from `first` on are scaled, each by up to half or double, its prices together."""
    columns = {}
    price_factor, volume_factor = np.exp(rng.uniform(-0.7, 0.7, size=(2, len(bars) - first)))
    for name in BAR_COLUMNS:
        values = getattr(bars, name).copy()
        values[first:] *= volume_factor if name == "volume" else price_factor
        columns[name] = values
    return replace(bars, **columns)


def _compare(full: FeatureMatrix, other: FeatureMatrix, cut: int, start: int, base: Bars) -> None:
    """Compare the rows before `cut`; the last of them is where look-ahead shows first."""
    if full.names != other.names:
        differs = sorted(set(full.names) ^ set(other.names)) or ["their order"]
        raise LeakageError(
            f"the features change with later bars ({', '.join(differs)}, at bar {start + cut}); which features there "
            "are may not depend on the bars",
            metadata={"feature": differs[0], "bar": str(start + cut - 1)},
        )
    stop = min(cut, len(full.X))
    # From the end: there a look-ahead shows with the fewest rows compared.
    for first in range((stop - 1) // BLOCK_ROWS * BLOCK_ROWS if stop else -1, -1, -BLOCK_ROWS):
        expected, actual = full.X[first : min(first + BLOCK_ROWS, stop)], other.X[first : min(first + BLOCK_ROWS, stop)]
        if np.array_equal(expected.view(np.int32), actual.view(np.int32)):  # the usual case, and the cheap one
            continue
        is_equal = np.isclose(actual, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True)
        if not is_equal.all():
            row, column = (int(index) for index in np.argwhere(~is_equal)[-1])
            name, bar = full.names[column], first + row
            raise LeakageError(
                f"feature {name} of bar {start + bar} ({time_text(int(base.times[bar]))}) changes when bars from "
                f"{start + cut} on change: it sees the future; compute it from closed bars only",
                metadata={"feature": name, "bar": str(start + bar)},
            )


def _settled(labels: Labels, cut: int) -> NDArray[np.bool_]:
    """Return which bars have their whole horizon before `cut`, so that a label or its absence is final."""
    return np.arange(len(labels.y)) + labels.horizon_bars < cut


def _compare_labels(
    full: Labels, other: Labels, is_compared_T: NDArray[np.bool_], cut: int, start: int, base: Bars
) -> None:
    """Compare the labels that say they have seen nothing from `cut` on."""
    compared: IntArray = np.flatnonzero(is_compared_T)
    is_wrong = (full.y[compared] != other.y[compared]) | (full.ends[compared] != other.ends[compared])
    if full.targets is not None and other.targets is not None:
        is_wrong |= ~np.isclose(full.targets[compared], other.targets[compared], rtol=1e-6, atol=1e-9, equal_nan=True)
    if is_wrong.any():
        bar = int(compared[np.flatnonzero(is_wrong)[-1]])
        raise LeakageError(
            f"the label of bar {start + bar} ({time_text(int(base.times[bar]))}) changes when bars from {start + cut} "
            f"on change: it looks further ahead than its horizon of {full.horizon_bars} bars, or than the bar it says "
            "it ends at; declare the true horizon and end",
            metadata={"feature": "label", "bar": str(start + bar)},
        )
