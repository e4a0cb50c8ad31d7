from __future__ import annotations

import io

from ktrdr_client.cli.evaluation_report import tell_evaluation
from ktrdr_client.cli.session import CliSession
from ktrdr_client.settings import ClientSettings
from rich.console import Console

from tests.kit.evaluations import make_evaluation


def told(*, is_regression: bool = False, with_folds: bool = True) -> str:
    written = io.StringIO()
    session = CliSession(settings=ClientSettings.load(environment={}))
    session._consoles = {"stdout": Console(file=written, width=200, highlight=False, soft_wrap=True)}
    tell_evaluation(session, make_evaluation(is_regression=is_regression, with_folds=with_folds))
    return written.getvalue()


def test_leakage_verdict_comes_first_with_what_was_checked() -> None:
    first = told().splitlines()[0]
    assert first.startswith(
        "leakage check passed: 2 features recomputed with the future cut off at 6 and changed from 5"
    )
    assert "90 label spans of up to 10 bars" in first


def test_rows_that_were_dropped_are_told() -> None:
    assert told().splitlines()[1] == (
        "1200 bars: 34 of warm-up, 5 without a whole window, 10 without a label, 21 purged, 3 embargoed; 790 rows of "
        "training, 168 of validation, 169 of test"
    )


def test_each_class_stands_beside_what_was_said_of_its_rows() -> None:
    line = next(line for line in told().splitlines() if line.startswith("BUY"))
    assert line.split() == ["BUY", "50.0", "%", "31.0", "%", "38.0", "%", "7", "2", "4", "1"]


def test_signals_are_told_with_cost_uncertainty_and_buy_and_hold() -> None:
    text = told()
    assert "it is no backtest of fills" in text
    assert "+1.10 % after 1.5 bps a side, +1.30 % before; buy and hold -2.00 %" in text
    assert "+0.80 +- 1.30" in text


def test_importance_has_groups_first_and_intervals() -> None:
    text = told()
    assert text.index("indicator rsi_14") < text.index("rsi_14.low")
    assert "+6.0 points to +14.0 points" in text


def test_folds_are_told_one_by_one_with_their_baseline() -> None:
    text = told()
    assert "validation by walk_forward" in text
    assert "2017-05-01 to 2017-05-02" in text
    assert "above the baseline in 1 of 1; mean +1.0 points" in text
    assert "validation by" not in told(with_folds=False)


def test_regression_tells_of_the_predicted_return_instead_of_calibration() -> None:
    text = told(is_regression=True)
    assert "information coefficient +0.030" in text
    assert "Brier" not in text
    assert "Brier" in told()
