"""A whole evaluation in which every value differs, made without training."""

from __future__ import annotations

from ktrdr_core.domain.result import Evaluation


def make_evaluation(*, is_regression: bool = False, with_folds: bool = True) -> Evaluation:
    """Return an evaluation with every part; the numbers are made up, and none is another's."""
    return {
        "balanced_accuracy": 0.41,
        "mcc": 0.12,
        "per_class": {
            "BUY": {"precision": 0.5, "recall": 0.31, "f1_score": 0.38, "support": 7},
            "HOLD": {"precision": 0.61, "recall": 0.71, "f1_score": 0.66, "support": 9},
            "SELL": {"precision": 0.42, "recall": 0.22, "f1_score": 0.29, "support": 4},
        },
        "confusion_matrix": [[2, 4, 1], [1, 7, 1], [0, 3, 1]],
        "calibration": {
            "expected_calibration_error": 0.07,
            "brier_score": 0.62,
            "bins": [
                {"lower": 0.3, "upper": 0.4, "count": 5, "mean_confidence": 0.37, "accuracy": 0.4},
                {"lower": 0.4, "upper": 0.5, "count": 15, "mean_confidence": 0.45, "accuracy": 0.53},
            ],
        },
        "baselines": {
            "majority_class": "HOLD",
            "majority_accuracy": 0.45,
            "train_majority_accuracy": 0.44,
            "random_accuracy": 0.36,
            "random_balanced_accuracy": 0.34,
        },
        "signals": {
            "cost_bps": 1.5,
            "num_bars": 20,
            "num_trades": 6,
            "turnover": 0.55,
            "exposure": 0.45,
            "gross_return": 0.013,
            "net_return": 0.011,
            "buy_and_hold_return": -0.02,
            "sharpe": 0.8,
            "sharpe_standard_error": 1.3,
            "buy_and_hold_sharpe": -0.9,
            "max_drawdown": 0.017,
            "bars_per_year": 6_240.0,
        },
        "regression": {
            "mean_squared_error": 1e-6,
            "mean_absolute_error": 7e-4,
            "r_squared": -0.01,
            "information_coefficient": 0.03,
            "directional_accuracy": 0.515,
        }
        if is_regression
        else None,
        "importance": [
            {"name": "rsi_14.low", "mean": 0.1, "lower": 0.06, "upper": 0.14},
            {"name": "rsi_14.high", "mean": 0.0, "lower": -0.01, "upper": 0.015},
        ],
        "group_importance": [
            {"kind": "indicator", "name": "rsi_14", "mean": 0.11, "lower": 0.08, "upper": 0.16, "num_features": 2},
            {"kind": "timeframe", "name": "1h", "mean": 0.115, "lower": 0.09, "upper": 0.17, "num_features": 2},
        ],
        "validation_method": "walk_forward" if with_folds else "",
        "folds": [
            {
                "fold": 1,
                "seed": 2**63 - 1,
                "train_rows": 50,
                "judged_rows": 12,
                "judged_from": "2017-05-01T00:00:00Z",
                "judged_to": "2017-05-02T00:00:00Z",
                "best_epoch": 3,
                "loss": 1.05,
                "accuracy": 0.48,
                "balanced_accuracy": 0.39,
                "mcc": 0.09,
                "f1_score": 0.37,
                "majority_baseline_accuracy": 0.47,
            }
        ]
        if with_folds
        else [],
        "leakage": {
            "passed": True,
            "cuts": 6,
            "perturbations": 5,
            "label_spans": 90,
            "num_features": 2,
            "horizon_bars": 10,
            "purged_rows": 21,
            "embargoed_rows": 3,
        },
        "rows": {
            "bars": 1_200,
            "warm_up_rows": 34,
            "window_rows": 5,
            "unlabelled_rows": 10,
            "purged_rows": 21,
            "embargoed_rows": 3,
            "training_rows": 790,
            "validation_rows": 168,
            "test_rows": 169,
        },
    }
