"""The evaluation of a trained model, put together from its outputs on a part it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.bars import Bars, time_text
from ktrdr_core.datasets.dataset import DatasetPart, SeriesRows
from ktrdr_core.domain.result import (
    Baselines,
    Calibration,
    ClassMetrics,
    FoldMetrics,
    RegressionMetrics,
    SignalEvaluation,
    TestMetrics,
)
from ktrdr_core.errors import TrainingError
from ktrdr_core.evaluation.baselines import compute_baselines
from ktrdr_core.evaluation.calibration import compute_calibration
from ktrdr_core.evaluation.decisions import classes, decide, output_activation_of, positions, probabilities
from ktrdr_core.evaluation.metrics import (
    balanced_accuracy,
    compute_class_metrics,
    compute_test_metrics,
    confusion_matrix,
    matthews_correlation,
)
from ktrdr_core.evaluation.regression import compute_regression_metrics
from ktrdr_core.evaluation.signals import SymbolPositions, evaluate_signals


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedRows:
    """What a model answered on a part, and what was true.

    Attributes:
        outputs: The network's outputs, before any activation, (N, 3), or (N, 1) for a regression; finite.
        y: True classes, shape (N,).
        targets: True forward returns, shape (N,); empty for a classification.
        symbol_ids: Which of the series each row is of, shape (N,).
        bar_indices: Position of each row's bar in its series, shape (N,), increasing within a symbol.
        times: Open time of each row's bar, ns since 1970 UTC, shape (N,).
    """

    outputs: NDArray[np.float32]
    y: NDArray[np.int64]
    targets: NDArray[np.float32]
    symbol_ids: NDArray[np.int64]
    bar_indices: NDArray[np.int64]
    times: NDArray[np.int64]

    @classmethod
    def from_part(cls, outputs: NDArray[np.float32], part: DatasetPart, series: Sequence[SeriesRows]) -> Self:
        """Return the rows of a part, whose `symbol_ids` point into `series`."""
        offsets = np.array([one.first_bar - one.start for one in series], dtype=np.int64)
        return cls(
            outputs=outputs,
            y=part.y,
            targets=part.targets,
            symbol_ids=part.symbol_ids,
            bar_indices=part.rows + offsets[part.symbol_ids],
            times=part.times,
        )

    def __len__(self) -> int:
        return len(self.y)


class PartEvaluation(TypedDict):
    """`Evaluation` without importance, folds, leakage and rows, which need more than a part's outputs."""

    balanced_accuracy: float
    mcc: float
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]
    calibration: Calibration
    baselines: Baselines
    signals: SignalEvaluation
    regression: RegressionMetrics | None


def evaluate(
    rows: JudgedRows,
    *,
    every_row: JudgedRows | None = None,
    bars: Sequence[Bars],
    train_class_counts: NDArray[np.int64],
    seed: int,
    strategy: StrategyConfig,
) -> tuple[TestMetrics, PartEvaluation]:
    """Return everything that can be said of a model from its outputs on a part.

    Args:
        rows: The part, at least one row.
        every_row: The part with the bars between its rows that have no label, for the signals; None if all have one.
        bars: Base bars of each symbol, in the order of `rows.symbol_ids`.
        train_class_counts: Rows of each class in the training part, shape (3,).
        seed: Of the random baseline.
        strategy: Whose decisions, labels and output kind count.

    Raises:
        TrainingError: An output is NaN or infinite.
    """
    _check_finite(rows)
    if every_row is not None:
        _check_finite(every_row)
    activation, labels = output_activation_of(strategy), strategy.training.labels
    classes_N = classes(rows.outputs, activation, labels)
    probabilities_NC = probabilities(rows.outputs, activation, labels)
    counts_CC = confusion_matrix(rows.y, classes_N)
    test_metrics = compute_test_metrics(
        rows.outputs, rows.y, output_activation=activation, labels=labels, targets=rows.targets
    )
    evaluation: PartEvaluation = {
        "balanced_accuracy": balanced_accuracy(counts_CC),
        "mcc": matthews_correlation(counts_CC),
        "per_class": compute_class_metrics(counts_CC),
        "confusion_matrix": counts_CC.tolist(),
        "calibration": compute_calibration(probabilities_NC, classes_N, rows.y),
        "baselines": compute_baselines(rows.y, train_class_counts, seed=seed),
        "signals": _judge_signals(rows if every_row is None else every_row, bars, strategy),
        "regression": compute_regression_metrics(rows.outputs[:, 0], rows.targets) if strategy.is_regression else None,
    }
    return test_metrics, evaluation


def fold_metrics(
    rows: JudgedRows, *, fold: int, seed: int, train_rows: int, best_epoch: int, strategy: StrategyConfig
) -> FoldMetrics:
    """Return the metrics of one fold and seed on its judged rows.

    Args:
        rows: The judged stretch, at least one row.
        fold: Its number.
        seed: Of this training.
        train_rows: Rows it was trained on.
        best_epoch: Epoch whose weights answered.
        strategy: Whose labels and output kind count.

    Raises:
        TrainingError: An output is NaN or infinite.
    """
    _check_finite(rows)
    activation, labels = output_activation_of(strategy), strategy.training.labels
    metrics = compute_test_metrics(
        rows.outputs, rows.y, output_activation=activation, labels=labels, targets=rows.targets
    )
    counts_CC = confusion_matrix(rows.y, classes(rows.outputs, activation, labels))
    return {
        "fold": fold,
        "seed": seed,
        "train_rows": train_rows,
        "judged_rows": len(rows),
        "judged_from": time_text(int(rows.times.min())),
        "judged_to": time_text(int(rows.times.max())),
        "best_epoch": best_epoch,
        "loss": metrics["loss"],
        "accuracy": metrics["accuracy"],
        "balanced_accuracy": balanced_accuracy(counts_CC),
        "mcc": matthews_correlation(counts_CC),
        "f1_score": metrics["f1_score"],
        "majority_baseline_accuracy": metrics["majority_baseline_accuracy"],
    }


def _judge_signals(rows: JudgedRows, bars: Sequence[Bars], strategy: StrategyConfig) -> SignalEvaluation:
    config, labels, activation = strategy.decisions, strategy.training.labels, output_activation_of(strategy)
    classes_N = classes(rows.outputs, activation, labels)
    probabilities_NC = probabilities(rows.outputs, activation, labels)
    held: list[SymbolPositions] = []
    for symbol_id, series in enumerate(bars):
        own = np.flatnonzero(rows.symbol_ids == symbol_id)
        if len(own) == 0:
            continue
        bar_indices = rows.bar_indices[own]
        decisions = decide(classes_N[own], probabilities_NC[own], bars=series, bar_indices=bar_indices, config=config)
        held.append(SymbolPositions(series, bar_indices, positions(decisions, config.position_awareness)))
    return evaluate_signals(held, cost_bps=config.cost_bps)


def _check_finite(rows: JudgedRows) -> None:
    broken_N = ~np.isfinite(rows.outputs).all(axis=1)
    if broken_N.any():
        row = int(np.argmax(broken_N))
        raise TrainingError(
            f"the network's outputs must be finite, were {rows.outputs[row].tolist()} at the row of "
            f"{time_text(int(rows.times[row]))}; lower the learning rate or clip the gradient"
        )
