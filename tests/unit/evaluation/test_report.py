from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.bars import Bars, time_text
from ktrdr_core.datasets.dataset import DatasetPart, SeriesRows
from ktrdr_core.domain.result import Evaluation, FoldMetrics
from ktrdr_core.errors import TrainingError
from ktrdr_core.evaluation.report import JudgedRows, PartEvaluation, evaluate, fold_metrics
from tests.kit.builders import make_bars, strategy

BARS = (make_bars(80, 1, symbol="EURUSD"), make_bars(90, 2, symbol="GBPUSD"))
FIRST_BARS = (40, 50)
ROWS_OF_EACH = 30
REGRESSION = {
    "decisions": {"output_format": "regression"},
    "model.architecture.output_activation": "linear",
    "training.labels": {
        "source": "forward_return",
        "label_lookahead": 1,
        "buy_threshold": 0.001,
        "sell_threshold": 0.001,
    },
}


def next_returns(bars: Bars, indices: np.ndarray) -> np.ndarray:
    return np.asarray(bars.close[indices + 1] / bars.close[indices] - 1)


def make_rows(outputs_of: Any = None, *, threshold: float = 0.0) -> JudgedRows:
    """Return rows of both symbols whose class is the direction of the next bar, and outputs (right unless given)."""
    indices = np.concatenate([np.arange(first, first + ROWS_OF_EACH) for first in FIRST_BARS])
    symbol_ids = np.repeat([0, 1], ROWS_OF_EACH)
    returns = np.concatenate([next_returns(bars, indices[symbol_ids == which]) for which, bars in enumerate(BARS)])
    y = np.where(returns > threshold, 0, np.where(returns < -threshold, 2, 1))
    outputs = 4 * np.eye(3)[y] if outputs_of is None else outputs_of(returns, y)
    return JudgedRows(
        outputs=np.asarray(outputs, dtype=np.float32),
        y=y,
        targets=returns.astype(np.float32),
        symbol_ids=symbol_ids,
        bar_indices=indices,
        times=np.concatenate([bars.times[indices[symbol_ids == which]] for which, bars in enumerate(BARS)]),
    )


def judge(rows: JudgedRows, config: StrategyConfig | None = None) -> tuple[Any, PartEvaluation]:
    return evaluate(
        rows,
        bars=BARS,
        train_class_counts=np.array([10, 30, 20]),
        seed=5,
        strategy=config or strategy(**{"decisions.cost_bps": 0.0}),
    )


def test_right_answers_are_right_everywhere_and_earn_every_move() -> None:
    metrics, found = judge(make_rows())
    rows = make_rows()
    assert metrics["accuracy"] == metrics["f1_score"] * 3 / 2 == 1.0  # no HOLD occurs
    assert (found["balanced_accuracy"], found["mcc"]) == (1.0, 1.0)
    assert found["per_class"]["HOLD"]["support"] == 0
    assert np.diag(found["confusion_matrix"]).sum() == len(rows) == 60
    certainty = math.exp(4) / (math.exp(4) + 2)
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(1 - certainty, rel=1e-6)
    earned = [np.prod(1 + np.abs(rows.targets[rows.symbol_ids == which])) - 1 for which in (0, 1)]
    assert found["signals"]["net_return"] == pytest.approx(np.mean(earned), rel=1e-5)
    assert found["signals"]["max_drawdown"] == 0.0
    assert found["signals"]["exposure"] == 1.0
    assert found["baselines"]["train_majority_accuracy"] == 0.0
    assert found["regression"] is None


def test_answers_of_one_symbol_never_move_the_other() -> None:
    """Only the first symbol's answers are signals: the second's capital rests."""

    def outputs_of(returns: np.ndarray, y: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = 4 * np.eye(3)[y]
        outputs[ROWS_OF_EACH:] = [0, 4, 0]
        return outputs

    _, found = judge(make_rows(outputs_of))
    rows = make_rows()
    earned = np.prod(1 + np.abs(rows.targets[:ROWS_OF_EACH].astype(np.float64))) - 1
    assert found["signals"]["net_return"] == pytest.approx(earned / 2, rel=1e-5)
    assert found["signals"]["exposure"] == 0.5


def test_decisions_of_the_strategy_count() -> None:
    unsure, sure = (strategy(**{"decisions.confidence_threshold": level}) for level in (0.999, 0.9))
    assert judge(make_rows(), unsure)[1]["signals"]["num_trades"] == 0
    assert judge(make_rows(), sure)[1]["signals"]["num_trades"] > 0


def test_sigmoid_outputs_are_judged_as_such() -> None:
    config = strategy(**{"model.architecture.output_activation": "sigmoid"})
    metrics, found = judge(make_rows(), config)
    # One right class at 4, two wrong ones at 0.
    assert metrics["loss"] == pytest.approx((math.log1p(math.exp(-4)) + 2 * math.log(2)) / 3, rel=1e-6)
    confidence = (1 / (1 + math.exp(-4))) / (1 / (1 + math.exp(-4)) + 1)
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(1 - confidence, rel=1e-6)


def test_regression_is_judged_by_returns_and_by_the_classes_of_its_thresholds() -> None:
    rows = make_rows(lambda returns, y: returns[:, None] * 0.5, threshold=0.001)
    metrics, found = judge(rows, strategy(**REGRESSION))
    halves = np.where(rows.targets * 0.5 >= 0.001, 0, np.where(rows.targets * 0.5 <= -0.001, 2, 1))
    assert metrics["accuracy"] == pytest.approx(np.mean(halves == rows.y))
    assert metrics["loss"] == pytest.approx(np.mean((rows.targets.astype(np.float64) * 0.5) ** 2), rel=1e-5)
    assert found["regression"] is not None
    assert found["regression"]["information_coefficient"] == pytest.approx(1.0)
    assert found["regression"]["directional_accuracy"] == 1.0
    # A regression states no doubt, so what it gets wrong it is wrong about for certain.
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(1 - metrics["accuracy"])


def test_every_field_of_the_result_is_there_and_finite() -> None:
    _, found = judge(make_rows())
    later = {"importance", "group_importance", "validation_method", "folds", "leakage", "rows"}
    assert set(found) == set(Evaluation.__annotations__) - later

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            for each in value.values():
                check(each)
        elif isinstance(value, list):
            for each in value:
                check(each)
        else:
            assert value is None or type(value) in (int, float, str)
            assert not isinstance(value, float) or math.isfinite(value)

    check(found)


def test_rows_of_a_part_find_their_bars() -> None:
    """Matrix rows 0 to 9 are bars 20 to 29 of the first symbol, 10 to 19 bars 50 to 59 of the second."""
    part = DatasetPart(
        matrix=np.zeros((20, 1), dtype=np.float32),
        rows=np.array([3, 4, 12, 19]),
        y=np.zeros(4, dtype=np.int64),
        times=np.arange(4),
        symbol_ids=np.array([0, 0, 1, 1]),
        targets=np.empty(0, dtype=np.float32),
    )
    series = (SeriesRows("EURUSD", 0, 10, 20), SeriesRows("GBPUSD", 10, 20, 50))
    found = JudgedRows.from_part(np.zeros((4, 3), dtype=np.float32), part, series)
    assert found.bar_indices.tolist() == [23, 24, 52, 59]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused_with_their_row(value: float) -> None:
    rows = make_rows()
    rows.outputs[7, 1] = value
    where = time_text(int(rows.times[7]))
    with pytest.raises(TrainingError, match=where):
        judge(rows)
    with pytest.raises(TrainingError, match=where):
        fold_metrics(rows, fold=0, seed=1, train_rows=5, best_epoch=2, strategy=strategy())


def test_fold_metrics_are_of_the_judged_rows() -> None:
    def outputs_of(returns: np.ndarray, y: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = 4 * np.eye(3)[y]
        outputs[:15] = [0, 4, 0]  # a quarter is wrong
        return outputs

    rows = make_rows(outputs_of)
    found = fold_metrics(rows, fold=3, seed=11, train_rows=500, best_epoch=4, strategy=strategy())
    assert set(found) == set(FoldMetrics.__annotations__)
    assert [found[key] for key in ("fold", "seed", "train_rows", "best_epoch")] == [3, 11, 500, 4]
    assert (found["judged_rows"], found["accuracy"]) == (60, 0.75)
    recalls = [np.mean(np.arange(60)[rows.y == which] >= 15) for which in (0, 2)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["judged_from"] == time_text(int(BARS[0].times[40]))
    assert found["judged_to"] == time_text(int(BARS[1].times[79]))
    assert 0 < found["mcc"] < 1
