"""Signals are judged on every bar of the test stretch: a trader does not know which of them will have a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.datasets.split import split_series
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.evaluation.decisions import positions
from ktrdr_core.evaluation.signals import SymbolPositions, evaluate_signals
from ktrdr_core.labels.labels import NO_LABEL
from ktrdr_core.labels.registry import generate_labels
from ktrdr_core.storage.staging import StagedStorage
from ktrdr_core.training.run_job import run_training
from ktrdr_core.training.trading_model import TradingModel
from tests.kit.builders import make_bars, strategy_text, write_bars_csv


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_signals_of_labels_with_gaps_are_those_of_the_model_at_every_bar(tmp_path: Path, kind: str) -> None:
    labels = {"source": "zigzag_segments", "zigzag_threshold": 0.01, "label_lookahead": 40}
    text = strategy_text(**{"training.labels": labels, "model.type": kind, "decisions.confidence_threshold": 0.0})
    bars = make_bars(1_500)
    write_bars_csv(tmp_path / "bars", bars)
    artifact = tmp_path / "artifact"
    result = run_training(
        TrainingSpec(strategy_yaml=text, enable_gpu=False),
        bar_store=DirectoryBarStore(tmp_path / "bars"),
        model_storage=StagedStorage(artifact),
    )
    model = TradingModel.load(artifact)
    predictions = model.predict(bars)
    known = generate_labels(bars, model.strategy.training.labels)
    first = len(bars) - len(predictions)
    labelled = np.flatnonzero(known.y[first:] != NO_LABEL) + first
    shares = model.strategy.training.data_split
    assert shares is not None
    test = labelled[split_series(labelled, known.ends[labelled], shares).test]
    every = np.arange(test[0], test[-1] + 1)
    assert len(every) > len(test) + 10
    held = SymbolPositions(bars, every, positions(predictions.decisions[every - first], position_awareness=False))
    expected = evaluate_signals([held], cost_bps=model.strategy.decisions.cost_bps)
    assert result["evaluation"]["signals"] == expected
    assert sum(map(sum, result["evaluation"]["confusion_matrix"])) == len(test)
