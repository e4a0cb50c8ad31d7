"""Permutation importance: how much accuracy a model loses when the rows of a feature, or of a group, are shuffled.

A feature that has a near copy beside it loses little when it is shuffled alone: a model reads the other one. So groups
(all columns of an indicator, all of a timeframe) are shuffled together as well, and theirs is the better question.

Rows are shuffled over the whole part, symbols included: what a feature tells by its level in one symbol and in another
counts as information of the feature. Repeat r uses one order of the rows for every feature and group, so that an answer
depends on nothing but the seed, and features are compared with less noise. A window's column is shuffled as a whole.

Source: L. Breiman, Random Forests, 2001, section 10; A. Fisher et al., All Models are Wrong, but Many are Useful, 2019;
groups: B. Gregorutti et al., Grouped Variable Importance with Random Forests, 2015.

Shape suffixes: N rows, B rows of a block, R repeats, L bars of a window, F features, G features of a group, H units of
the first layer, C outputs, I things shuffled, S stretches of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ktrdr_core.config.training_sections import LabelsConfig
from ktrdr_core.datasets.dataset import DatasetPart, sliding_windows
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.domain.result import GroupImportance, ImportanceInterval
from ktrdr_core.evaluation.decisions import return_thresholds
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.intervals import NUM_STRETCHES, assign_stretches, mean_intervals
from ktrdr_core.features.engineer import FeatureColumn

DEFAULT_REPEATS = 5

# Rows times repeats that go through a network's tail at once: the first layer's outputs stay near the processor, and it
# bounds the time between checks.
_COLUMNS_AT_ONCE = 5_120
# Bars that go through a network of windows at once: some milliseconds.
_BARS_AT_ONCE = 8_192
# A network of windows is asked about no more rows than these.
_MOST_WINDOWS = 2_000
# Rows below which a part is not thinned out, whatever the training cost.
_FEWEST_ROWS = 10_000
_FEWEST_WINDOWS = 200
# Rows to answer for each row that was trained on, so that this takes at most half as long as the training: measured, a
# row of an mlp is answered in a twelfth of the time in which one is trained on, a window in a fifth (lstm) or less.
_ROWS_PER_TRAINED_ROW = 6
_WINDOWS_PER_TRAINED_ROW = 2

# Streams of the seed.
_SAMPLE_STREAM = 0
_ORDER_STREAM = 1


@runtime_checkable
class AffineFirst(Protocol):
    """A network over rows whose forward pass is `tail(x @ weight.T + bias)`."""

    def first_affine(self) -> tuple[Tensor, Tensor]: ...

    def tail(self, z_BH: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ImportanceReport:
    """Importance of every feature and group, and on what it was measured.

    Attributes:
        features: In the order of the columns.
        groups: Indicators, then timeframes, each in the order of their first columns.
        judged_rows: Rows that were shuffled and answered.
        part_rows: Rows of the part.
        repeats: Orders each was averaged over.
    """

    features: tuple[ImportanceInterval, ...]
    groups: tuple[GroupImportance, ...]
    judged_rows: int
    part_rows: int
    repeats: int


def permutation_importance(
    model: nn.Module,
    part: DatasetPart,
    columns: Sequence[FeatureColumn],
    *,
    seed: int,
    labels: LabelsConfig | None = None,
    device: str = "cpu",
    repeats: int = DEFAULT_REPEATS,
    trained_rows: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> ImportanceReport:
    """Return the mean drop of accuracy over `repeats` shuffles of each feature and group; negative if shuffling helps.

    Where the network's first map is affine, shuffling G columns changes its outputs by a product of rank G, and only
    that is computed, not the whole map again. A network of windows is asked about a sample of at most 2,000 rows.

    The 95 % intervals are Student's over stretches of time (`evaluation/intervals.py`): they cover the choice of the
    rows, alike as neighbours are, and of the shuffles.

    Args:
        model: Network on `device`; put into evaluation mode. With one output, a regression.
        part: Rows to judge on, at least one; not those trained on.
        columns: Columns of `part.matrix`.
        seed: The sample, and the order of each repeat, depend on nothing else but the number of rows.
        labels: Of a regression: thresholds that make its output a class.
        device: Where the model is.
        repeats: Shuffles, at least 1.
        trained_rows: Rows that the training went through, epochs times rows; the part is thinned out so that this
            takes less time than the training did. None: no such bound.
        check: Called some hundred times a second; may raise to end early.
    """
    was_training = model.training
    model.eval()
    try:
        with deterministic_torch(device), torch.inference_mode():
            return _Measurement(model, part, columns, seed, labels, device, repeats, trained_rows, check).run()
    finally:
        model.train(was_training)


class _Measurement:
    """One call's state."""

    def __init__(
        self,
        model: nn.Module,
        part: DatasetPart,
        columns: Sequence[FeatureColumn],
        seed: int,
        labels: LabelsConfig | None,
        device: str,
        repeats: int,
        trained_rows: int | None,
        check: Callable[[], None],
    ) -> None:
        self._model, self._part, self._columns = model, part, columns
        self._affine = model if part.window_bars == 1 and isinstance(model, AffineFirst) else None
        self._labels, self._device, self._repeats, self._check = labels, device, repeats, check
        self._groups = _groups(columns)
        features = [(index,) for index in range(len(columns))]
        # A group of one column is that feature: asked once.
        self._asked = tuple(dict.fromkeys([*features, *(members for _, _, members in self._groups)]))
        self._chosen_N = self._choose_rows(seed, trained_rows)
        num_rows = len(self._chosen_N)
        orders = []
        for repeat in range(repeats):
            check()
            orders.append(np.random.default_rng([seed, _ORDER_STREAM, repeat]).permutation(num_rows))
        self._orders_RN = np.stack(orders)
        self._stretch_N = assign_stretches(part.times[self._chosen_N])
        self._rows_S = np.bincount(self._stretch_N, minlength=NUM_STRETCHES)
        self._y_N = torch.from_numpy(part.y[self._chosen_N].astype(np.uint8))
        # Sums over a stretch of (right before) * R - (times right when shuffled).
        self._drops_IS = np.zeros((len(self._asked), NUM_STRETCHES))

    def run(self) -> ImportanceReport:
        if self._affine is not None:
            self._measure_rows(self._affine)
        else:
            self._measure_windows()
        mean_I, lower_I, upper_I = mean_intervals(self._drops_IS / self._repeats, self._rows_S)
        found: dict[tuple[int, ...], tuple[float, float, float]] = {
            asked: (float(mean_I[i]), max(float(lower_I[i]), -1.0), min(float(upper_I[i]), 1.0))
            for i, asked in enumerate(self._asked)
        }
        features: list[ImportanceInterval] = []
        for index, column in enumerate(self._columns):
            mean, lower, upper = found[(index,)]
            features.append({"name": column.name, "mean": mean, "lower": lower, "upper": upper})
        groups: list[GroupImportance] = []
        for kind, name, members in self._groups:
            mean, lower, upper = found[members]
            groups.append(
                {
                    "name": name,
                    "mean": mean,
                    "lower": lower,
                    "upper": upper,
                    "kind": kind,
                    "num_features": len(members),
                }
            )
        return ImportanceReport(tuple(features), tuple(groups), len(self._chosen_N), len(self._part), self._repeats)

    def _choose_rows(self, seed: int, trained_rows: int | None) -> NDArray[np.int64]:
        num_rows = len(self._part)
        most, fewest, per_trained_row = (
            (num_rows, _FEWEST_ROWS, _ROWS_PER_TRAINED_ROW)
            if self._affine is not None
            else (_MOST_WINDOWS, _FEWEST_WINDOWS, _WINDOWS_PER_TRAINED_ROW)
        )
        if trained_rows is not None:
            affordable = trained_rows * per_trained_row // (len(self._asked) * self._repeats)
            most = min(most, max(affordable, fewest))
        if num_rows <= most:
            return np.arange(num_rows)
        return np.sort(np.random.default_rng([seed, _SAMPLE_STREAM]).choice(num_rows, size=most, replace=False))

    def _measure_rows(self, model: AffineFirst) -> None:
        weight_HF, bias_H = model.first_affine()
        weights = [weight_HF[:, list(asked)].contiguous() for asked in self._asked]
        members = [torch.tensor(asked, device=self._device) for asked in self._asked]
        tail = _tail_of_columns(model)
        matrix, rows_N = self._part.matrix, self._part.rows[self._chosen_N]
        for rows in _blocks(len(rows_N), max(1, _COLUMNS_AT_ONCE // self._repeats)):
            self._check()
            x_FB = self._columns_of(matrix[rows_N[rows]])
            z_HB = torch.addmm(bias_H[:, None], weight_HF, x_FB)
            before_B = self._hits(tail(z_HB), rows, 1)
            # All repeats side by side: columns of repeat 0, of repeat 1, ...
            changes = []
            for order_N in self._orders_RN:
                self._check()
                changes.append(self._columns_of(matrix[rows_N[order_N[rows]]]) - x_FB)
            change_FRB = torch.cat(changes, dim=1)
            z_HRB = z_HB.repeat(1, self._repeats)
            for index, (asked, weight_HG, members_G) in enumerate(zip(self._asked, weights, members, strict=True)):
                self._check()
                changed_HRB = (
                    torch.addr(z_HRB, weight_HG[:, 0], change_FRB[asked[0]])
                    if len(asked) == 1
                    else torch.addmm(z_HRB, weight_HG, change_FRB[members_G])
                )
                self._count(index, rows, before_B, self._hits(tail(changed_HRB), rows, self._repeats))

    def _columns_of(self, x_BF: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x_BF.T)).to(self._device)

    def _measure_windows(self) -> None:
        window_bars = self._part.window_bars
        windows = sliding_windows(self._part.matrix, window_bars)
        first_N = self._part.rows[self._chosen_N] - window_bars + 1

        def outputs_of(x_BLF: NDArray[np.float32]) -> Tensor:
            self._check()
            x = torch.from_numpy(x_BLF).to(self._device)
            outputs_BC: Tensor = self._model(x if window_bars > 1 else x[:, 0])
            return outputs_BC.T

        for rows in _blocks(len(first_N), max(1, _BARS_AT_ONCE // window_bars)):
            x_BLF = windows[first_N[rows]]
            before_B = self._hits(outputs_of(x_BLF), rows, 1)
            for index, asked in enumerate(self._asked):
                hits_B = torch.zeros_like(before_B)
                shuffled_BLF = x_BLF.copy()
                for order_N in self._orders_RN:
                    from_B = first_N[order_N[rows]]
                    for column in asked:
                        shuffled_BLF[:, :, column] = windows[from_B, :, column]
                    hits_B += self._hits(outputs_of(shuffled_BLF), rows, 1)
                self._count(index, rows, before_B, hits_B)

    def _hits(self, outputs_CRB: Tensor, rows: slice, repeats: int) -> Tensor:
        """Return how often each row's class is answered, (B,), from outputs (C, R * B)."""
        # Compared by hand: argmax over the first dimension takes as long as the network.
        if len(outputs_CRB) == 1:
            buy_threshold, sell_threshold = return_thresholds(self._labels)
            predicted = outputs_CRB[0].double()
            answer = torch.full_like(predicted, SignalClass.HOLD, dtype=torch.uint8)
            answer.masked_fill_(predicted >= buy_threshold, SignalClass.BUY)
            answer.masked_fill_(predicted <= -sell_threshold, SignalClass.SELL)
        else:
            buy, hold, sell = outputs_CRB
            answer = (hold > buy).to(torch.uint8).masked_fill_(sell > torch.maximum(buy, hold), SignalClass.SELL)
        y_B = self._y_N[rows].to(answer.device)
        return (answer.view(repeats, -1) == y_B).sum(dim=0, dtype=torch.int32)

    def _count(self, index: int, rows: slice, before_B: Tensor, hits_B: Tensor) -> None:
        drop_B = (before_B * self._repeats - hits_B).cpu().numpy()
        self._drops_IS[index] += np.bincount(self._stretch_N[rows], weights=drop_B, minlength=NUM_STRETCHES)


def _groups(columns: Sequence[FeatureColumn]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (kind, name, positions of its columns) of each indicator, then of each timeframe."""
    members: dict[tuple[str, str], list[int]] = {}
    for kind in ("indicator", "timeframe"):
        for index, column in enumerate(columns):
            members.setdefault((kind, getattr(column, kind)), []).append(index)
    return [(kind, name, tuple(indices)) for (kind, name), indices in members.items()]


def _blocks(num_rows: int, block_rows: int) -> list[slice]:
    return [slice(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]


def _tail_of_columns(model: AffineFirst) -> Callable[[Tensor], Tensor]:
    """Return the network's tail from (H, B) to (C, B)."""
    tail_columns: Callable[[Tensor], Tensor] | None = getattr(model, "tail_columns", None)
    return tail_columns or (lambda z_HB: model.tail(z_HB.T).T)
