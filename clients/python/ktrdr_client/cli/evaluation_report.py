"""What `ktrdr models show` tells of a model beside its metrics: how far its result can be believed."""

from __future__ import annotations

from ktrdr_client.cli import formats
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_fields, say_table
from ktrdr_core.domain.labels import CLASS_NAMES
from ktrdr_core.domain.result import (
    Evaluation,
    FoldMetrics,
    ImportanceInterval,
    LeakageVerdict,
    RowReport,
    SignalEvaluation,
)

_MAX_FEATURES = 8


def tell_evaluation(session: CliSession, evaluation: Evaluation) -> None:
    """Print every part of an evaluation, the most doubtful first."""
    session.say(leakage_sentence(evaluation["leakage"]))
    session.say(rows_sentence(evaluation["rows"]))
    _tell_classes(session, evaluation)
    _tell_signals(session, evaluation["signals"])
    _tell_importance(session, evaluation)
    _tell_folds(session, evaluation)


def leakage_sentence(verdict: LeakageVerdict) -> str:
    """Return what was checked for look-ahead, and that it passed."""
    word = "passed" if verdict["passed"] else "FAILED"
    return (
        f"leakage check {word}: {verdict['num_features']} features recomputed with the future cut off at "
        f"{verdict['cuts']} and changed from {verdict['perturbations']} points; {verdict['label_spans']} label spans "
        f"of up to {verdict['horizon_bars']} bars clear of the next part"
    )


def rows_sentence(rows: RowReport) -> str:
    """Return what became of the bars."""
    window = f", {rows['window_rows']} without a whole window" if rows["window_rows"] else ""
    return (
        f"{rows['bars']} bars: {rows['warm_up_rows']} of warm-up{window}, {rows['unlabelled_rows']} without a label, "
        f"{rows['purged_rows']} purged, {rows['embargoed_rows']} embargoed; {rows['training_rows']} rows of training, "
        f"{rows['validation_rows']} of validation, {rows['test_rows']} of test"
    )


def signals_sentence(signals: SignalEvaluation) -> str:
    """Return the net return of the signals with what belongs beside it."""
    return (
        f"signals on the test part, {signals['cost_bps']:g} bps a side: net {_signed_percent(signals['net_return'])} "
        f"in {signals['num_trades']} trades, buy and hold {_signed_percent(signals['buy_and_hold_return'])}"
    )


def _tell_classes(session: CliSession, evaluation: Evaluation) -> None:
    session.say("")
    say_table(
        session,
        ("test part", "precision", "recall", "F1", "rows", *(f"said {name}" for name in CLASS_NAMES)),
        [
            (
                name,
                formats.percent(own["precision"]),
                formats.percent(own["recall"]),
                formats.percent(own["f1_score"]),
                str(own["support"]),
                *(str(count) for count in counts),
            )
            for name, counts in zip(CLASS_NAMES, evaluation["confusion_matrix"], strict=True)
            for own in [evaluation["per_class"][name]]
        ],
        empty="",
    )
    baselines, calibration = evaluation["baselines"], evaluation["calibration"]
    session.say("")
    fields = {
        "balanced accuracy": f"{formats.percent(evaluation['balanced_accuracy'])}, seeded random draws "
        f"{formats.percent(baselines['random_balanced_accuracy'])}",
        "MCC": f"{evaluation['mcc']:+.3f}, 0 is what chance gives",
        "baselines": f"always {baselines['majority_class']} {formats.percent(baselines['majority_accuracy'])}, the "
        f"training part's most frequent class {formats.percent(baselines['train_majority_accuracy'])}, random draws "
        f"{formats.percent(baselines['random_accuracy'])}",
        "calibration": f"expected error {formats.percent(calibration['expected_calibration_error'])}, Brier score "
        f"{calibration['brier_score']:.3f}",
    }
    regression = evaluation["regression"]
    if regression is not None:
        fields["predicted return"] = (
            f"information coefficient {regression['information_coefficient']:+.3f}, R2 {regression['r_squared']:+.4f}, "
            f"right sign {formats.percent(regression['directional_accuracy'])}"
        )
        del fields["calibration"]
    say_fields(session, fields)


def _tell_signals(session: CliSession, signals: SignalEvaluation) -> None:
    session.say("")
    session.say("Signals held from close to close on the test part. This judges signals; it is no backtest of fills.")
    say_fields(
        session,
        {
            "net return": f"{_signed_percent(signals['net_return'])} after {signals['cost_bps']:g} bps a side, "
            f"{_signed_percent(signals['gross_return'])} before; buy and hold "
            f"{_signed_percent(signals['buy_and_hold_return'])}",
            "Sharpe": f"{signals['sharpe']:+.2f} +- {signals['sharpe_standard_error']:.2f} (standard error, a year of "
            f"{signals['bars_per_year']:,.0f} bars); buy and hold {signals['buy_and_hold_sharpe']:+.2f}",
            "largest drawdown": formats.percent(signals["max_drawdown"]),
            "activity": f"{signals['num_trades']} trades in {signals['num_bars']} bars, in the market "
            f"{formats.percent(signals['exposure'])} of them, turnover {signals['turnover']:g} positions",
        },
    )


def _tell_importance(session: CliSession, evaluation: Evaluation) -> None:
    groups = [(f"{group['kind']} {group['name']}", group) for group in evaluation["group_importance"]]
    ranked = sorted(evaluation["importance"], key=lambda feature: (-feature["mean"], feature["name"]))
    rows: list[tuple[str, ImportanceInterval]] = [*groups, *((each["name"], each) for each in ranked[:_MAX_FEATURES])]
    if not rows:
        return
    session.say("")
    say_table(
        session,
        ("drop of test accuracy when permuted", "mean", "95 % interval"),
        [
            (name, formats.points(each["mean"]), f"{formats.points(each['lower'])} to {formats.points(each['upper'])}")
            for name, each in rows
        ],
        empty="",
    )
    if len(ranked) > _MAX_FEATURES:
        session.say(f"and {len(ranked) - _MAX_FEATURES} more features (--json has all)")


def _tell_folds(session: CliSession, evaluation: Evaluation) -> None:
    folds = evaluation["folds"]
    if not folds:
        return
    session.say("")
    session.say(f"validation by {evaluation['validation_method']}")
    has_seeds = len({fold["seed"] for fold in folds}) > 1
    rows = [_fold_row(fold, with_seed=has_seeds) for fold in folds]
    titles = ("fold", *(("seed",) if has_seeds else ()), "judged", "rows", "accuracy", "baseline", "balanced", "MCC")
    say_table(session, titles, rows, empty="")
    edges = [fold["accuracy"] - fold["majority_baseline_accuracy"] for fold in folds]
    session.say(
        f"above the baseline in {sum(edge > 0 for edge in edges)} of {len(edges)}; mean "
        f"{formats.points(sum(edges) / len(edges))}, from {formats.points(min(edges))} to {formats.points(max(edges))}"
    )


def _fold_row(fold: FoldMetrics, *, with_seed: bool) -> tuple[str, ...]:
    return (
        str(fold["fold"]),
        *((str(fold["seed"]),) if with_seed else ()),
        f"{fold['judged_from'][:10]} to {fold['judged_to'][:10]}",
        str(fold["judged_rows"]),
        formats.percent(fold["accuracy"]),
        formats.percent(fold["majority_baseline_accuracy"]),
        formats.percent(fold["balanced_accuracy"]),
        f"{fold['mcc']:+.3f}",
    )


def _signed_percent(fraction: float) -> str:
    return f"{fraction * 100:+.2f} %"
