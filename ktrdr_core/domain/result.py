"""TrainingResult: what every execution of a training answers, wherever it ran."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from ktrdr_core.errors import InvalidResultError


class TrainingMetrics(TypedDict):
    """Metrics of `best_epoch`, whose weights are the model's; losses are means per row, accuracies in [0, 1].

    `epochs` is how many were done.
    """

    epochs: int
    best_epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


class TestMetrics(TypedDict):
    """Metrics of the test part; precision, recall and F1 are macro averages over BUY, HOLD, SELL."""

    loss: float
    accuracy: float
    precision: float
    recall: float
    f1_score: float
    majority_baseline_accuracy: float


class ClassMetrics(TypedDict):
    """Of one class of the test part; `support` is its number of rows."""

    precision: float
    recall: float
    f1_score: float
    support: int


class CalibrationBin(TypedDict):
    """Rows whose largest probability is in [lower, upper): how sure the model is and how often it is right."""

    lower: float
    upper: float
    count: int
    mean_confidence: float
    accuracy: float


class Calibration(TypedDict):
    """Expected calibration error over equal-width bins (Guo et al., 2017), and the multi-class Brier score (1950)."""

    expected_calibration_error: float
    brier_score: float
    bins: list[CalibrationBin]


class Baselines(TypedDict):
    """What answers without a model score on the test part.

    `majority_accuracy`: its most frequent class, always. `train_majority_accuracy`: the training part's.
    `random_accuracy`: seeded draws by the training part's class shares.
    """

    majority_class: str
    majority_accuracy: float
    train_majority_accuracy: float
    random_accuracy: float
    random_balanced_accuracy: float


class SignalEvaluation(TypedDict):
    """The decisions on the test part as positions (+1, 0, -1) held from close to close, with a cost for each change.

    An evaluation of signals, not a backtest of fills: no spread, slippage, financing or size. Returns are fractions
    over symbols of equal weight; `sharpe` is annualised by `bars_per_year`, its standard error after Lo (2002).
    """

    cost_bps: float
    num_bars: int
    num_trades: int
    turnover: float
    exposure: float
    gross_return: float
    net_return: float
    buy_and_hold_return: float
    sharpe: float
    sharpe_standard_error: float
    buy_and_hold_sharpe: float
    max_drawdown: float
    bars_per_year: float


class ImportanceInterval(TypedDict):
    """Mean drop of test accuracy when a feature or a group of them is permuted, with its 95 % confidence interval."""

    name: str
    mean: float
    lower: float
    upper: float


class GroupImportance(ImportanceInterval):
    """`kind` is "indicator" or "timeframe"; all the group's columns are permuted together."""

    kind: str
    num_features: int


class RegressionMetrics(TypedDict):
    """Of predicted against true forward returns of the test part; `information_coefficient` is Spearman's."""

    mean_squared_error: float
    mean_absolute_error: float
    r_squared: float
    information_coefficient: float
    directional_accuracy: float


class FoldMetrics(TypedDict):
    """One fold of the strategy's `validation` with one seed, judged on rows it was not trained on."""

    fold: int
    seed: int
    train_rows: int
    judged_rows: int
    judged_from: str
    judged_to: str
    best_epoch: int
    loss: float
    accuracy: float
    balanced_accuracy: float
    mcc: float
    f1_score: float
    majority_baseline_accuracy: float


class RowReport(TypedDict):
    """What became of the base bars, over all symbols; all but `bars` sum to it.

    `warm_up_rows`: a feature was not known yet. `window_rows`: a window would have reached into the warm-up.
    `unlabelled_rows`: the label's horizon was not complete, or the source gives none. `purged_rows` and
    `embargoed_rows`: left out at the boundaries of the split.
    """

    bars: int
    warm_up_rows: int
    window_rows: int
    unlabelled_rows: int
    purged_rows: int
    embargoed_rows: int
    training_rows: int
    validation_rows: int
    test_rows: int


class LeakageVerdict(TypedDict):
    """What was checked before training: `passed` is always true in a stored model, for a violation fails the training.

    `cuts`: points at which the future was cut off, over all symbols. `perturbations`: points from which on it was
    changed. `label_spans`: labels whose span was compared with the boundaries of the splits.
    """

    passed: bool
    cuts: int
    perturbations: int
    label_spans: int
    num_features: int
    horizon_bars: int
    purged_rows: int
    embargoed_rows: int


class Evaluation(TypedDict):
    """Everything known of a model beside `test_metrics`; all of the test part unless it says otherwise.

    `regression` is None for a classification.
    """

    balanced_accuracy: float
    mcc: float
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]
    calibration: Calibration
    baselines: Baselines
    signals: SignalEvaluation
    regression: RegressionMetrics | None
    importance: list[ImportanceInterval]
    group_importance: list[GroupImportance]
    validation_method: str
    folds: list[FoldMetrics]
    leakage: LeakageVerdict
    rows: RowReport


class ResultConfig(TypedDict):
    strategy_config: dict[str, Any]
    training_config: dict[str, Any]
    model_config: dict[str, Any]
    data_config: dict[str, Any]


class ResultMetadata(TypedDict):
    """Facts of one execution; times are ISO 8601, UTC."""

    start_time: str
    end_time: str
    duration_seconds: float
    device: str
    symbols: list[str]
    timeframes: list[str]
    start_date: str
    end_date: str
    total_samples: int
    training_samples: int
    test_samples: int


class _OptionalResult(TypedDict, total=False):
    error: str
    warnings: list[str]
    checkpoints: list[str]
    early_stopped: bool
    early_stop_epoch: int


class TrainingResult(_OptionalResult):
    """The contract; `warnings` and the rest of `_OptionalResult` may be absent."""

    success: bool
    model_path: str
    model_id: str
    training_metrics: TrainingMetrics
    test_metrics: TestMetrics
    feature_names: list[str]
    feature_importance: dict[str, float]
    config: ResultConfig
    metadata: ResultMetadata
    artifact_digest: str
    evaluation: Evaluation


_SECTIONS: dict[str, type] = {
    "training_metrics": TrainingMetrics,
    "test_metrics": TestMetrics,
    "evaluation": Evaluation,
    "config": ResultConfig,
    "metadata": ResultMetadata,
}


def validate_training_result(result: Mapping[str, Any]) -> TrainingResult:
    """Return `result` typed, or say what is wrong with it.

    Raises:
        InvalidResultError: (a ValueError) A key is missing, or a value has the wrong type or range.
    """

    def refuse(field: str, rule: str) -> None:
        raise InvalidResultError(f"training result: {field} {rule}", field=field)

    for key in TrainingResult.__required_keys__:
        if key not in result:
            refuse(key, "is missing")
    for name, section_type in _SECTIONS.items():
        section = result[name]
        if not isinstance(section, Mapping):
            refuse(name, f"must be a mapping, was {type(section).__name__}")
        for key in section_type.__annotations__:
            if key not in section:
                refuse(f"{name}.{key}", "is missing")
    if not isinstance(result["success"], bool):
        refuse("success", f"must be true or false, was {result['success']!r}")
    try:
        UUID(str(result["model_id"]))
    except ValueError:
        refuse("model_id", f"must be a UUID, was {result['model_id']!r}")
    for name in ("training_metrics", "test_metrics"):
        for key, value in result[name].items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                refuse(f"{name}.{key}", f"must be a finite number, was {value!r}")
    _check_finite(result["evaluation"], "evaluation", refuse)
    importance = result["feature_importance"]
    if set(importance) != set(result["feature_names"]):
        refuse("feature_importance", "must name the same features as feature_names")
    for key in ("start_time", "end_time"):
        try:
            datetime.fromisoformat(result["metadata"][key])
        except (TypeError, ValueError):
            refuse(f"metadata.{key}", f"must be ISO 8601, was {result['metadata'][key]!r}")
    return cast(TrainingResult, dict(result))


def _check_finite(value: Any, field: str, refuse: Callable[[str, str], None]) -> None:
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_finite(each, f"{field}.{key}", refuse)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_finite(each, f"{field}[{index}]", refuse)
    elif isinstance(value, float) and not math.isfinite(value):
        refuse(field, f"must be finite, was {value!r}")
