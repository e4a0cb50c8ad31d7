"""The shipped strategies on the shipped bars: each trains, and its fuzzy sets fit what it sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_core.config.loader import parse_strategy
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.storage.artifact import load_result
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.run_job import run_training
from ktrdr_core.training.trading_model import TradingModel
from tests.kit.builders import REPOSITORY

FILES = sorted((REPOSITORY / "strategies").glob("*.yaml"))
BARS = DirectoryBarStore(REPOSITORY / "data")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_strategy_trains_without_a_word_about_its_fuzzy_sets(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    strategy = parse_strategy(text, source=path.name)
    assert strategy.name == path.stem
    told: list[tuple[str, str]] = []
    result = run_training(
        TrainingSpec(strategy_yaml=text),
        bar_store=BARS,
        model_storage=ModelStorage(tmp_path),
        warning_callback=lambda reason, message: told.append((reason, message)),
    )
    # A network of windows may be asked about a sample of the test part only.
    assert [message for _, message in told if not message.startswith("feature importance was measured on ")] == []
    evaluation = load_result(Path(result["model_path"]))["evaluation"]
    assert evaluation["leakage"]["passed"]
    assert len(evaluation["folds"]) == (strategy.validation.folds if strategy.validation else 0)
    assert {group["name"] for group in evaluation["group_importance"] if group["kind"] == "timeframe"} == set(
        strategy.timeframes
    )
    predictions = TradingModel.load(Path(result["model_path"])).predict(BARS.load("EURUSD", "1h"))
    assert len(predictions) > 5_000
    assert (predictions.returns is not None) == strategy.is_regression


def test_shipped_strategies_show_more_than_one_way() -> None:
    strategies = [parse_strategy(path.read_text(), source=path.name) for path in FILES]
    assert {strategy.is_regression for strategy in strategies} == {False, True}
    assert len({strategy.model.type for strategy in strategies}) > 1
    assert any(strategy.higher_timeframes for strategy in strategies)
