"""The one way a training is run, on the bars that ship with the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.domain.cancellation import LocalCancellationToken
from ktrdr_core.domain.labels import SignalClass
from ktrdr_core.domain.result import validate_training_result
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import (
    CancellationError,
    CorruptDataError,
    DegenerateLabelsError,
    InvalidStrategyError,
    SeriesNotFoundError,
)
from ktrdr_core.evaluation.forward import split_outputs
from ktrdr_core.evaluation.metrics import compute_test_metrics
from ktrdr_core.storage.artifact import load_tensors
from ktrdr_core.storage.artifact_files import artifact_digest
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.staging import StagedStorage
from ktrdr_core.storage.torch_files import derive_torch_files
from ktrdr_core.training.run_job import run_training
from ktrdr_core.training.trading_model import TradingModel
from tests.kit.builders import REPOSITORY, strategy_text
from tests.kit.eventually import PATIENCE_S
from tests.kit.splits import make_split
from tests.kit.training import Trained

RUN_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.training.run_job import run_training
spec = TrainingSpec.from_json(sys.stdin.read())
print(run_training(spec, bar_store=DirectoryBarStore(Path(sys.argv[1])), model_storage=None)["artifact_digest"])
"""


@pytest.fixture(scope="module")
def split(trained: Trained) -> DataSplit:
    """The rows of the training, made again step by step."""
    return make_split(trained)[0]


def test_result_is_complete_and_names_the_stored_version(trained: Trained) -> None:
    result = validate_training_result(trained.result)
    assert result["success"] is True
    assert UUID(result["model_id"])
    assert trained.path.name == "EURUSD_1h_v1"
    assert result["metadata"]["device"] == "cpu"
    assert result["metadata"]["symbols"] == ["EURUSD"]
    assert result["training_metrics"]["epochs"] == 2
    assert trained.model_storage.load("small_reversion").result == result


def test_same_job_gives_the_same_artifact(trained: Trained, tmp_path: Path) -> None:
    again = run_training(trained.spec, bar_store=trained.bar_store, model_storage=StagedStorage(tmp_path / "artifact"))
    for name in ("training_metrics", "test_metrics", "feature_importance", "artifact_digest"):
        assert again[name] == trained.result[name]
    assert again["model_id"] != trained.result["model_id"]
    for name, tensor in load_tensors(trained.path).items():
        assert tensor.tobytes() == load_tensors(tmp_path / "artifact")[name].tobytes()


def test_same_job_in_another_process_gives_the_same_artifact(trained: Trained) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN_IN_ANOTHER_PROCESS, str(REPOSITORY / "data")],
        input=trained.spec.to_json(),
        env={**os.environ, "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "2"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout.strip() == trained.result["artifact_digest"] == artifact_digest(trained.path)


def test_another_seed_gives_another_artifact(trained: Trained) -> None:
    other = run_training(trained.spec.with_seed(7), bar_store=trained.bar_store, model_storage=None)
    assert other["artifact_digest"] != trained.result["artifact_digest"]


def test_stored_model_answers_the_test_rows_bit_for_bit_as_training_saw_them(
    trained: Trained, split: DataSplit
) -> None:
    model = TradingModel.load(trained.path)
    predictions = model.predict(trained.bar_store.load("EURUSD", "1h"))
    places = np.searchsorted(predictions.times, split.test.times)
    np.testing.assert_array_equal(predictions.times[places], split.test.times)
    outputs = predictions.outputs[places]
    assert outputs.tobytes() == split_outputs(model.network, split, split.test).tobytes()
    assert compute_test_metrics(outputs, split.test.y) == trained.result["test_metrics"]


def test_prediction_has_a_row_for_each_bar_after_warm_up(trained: Trained) -> None:
    bars = trained.bar_store.load("EURUSD", "1h").head(300)
    predictions = TradingModel.load(trained.path).predict(bars)
    assert predictions.times[-1] == bars.times[-1]
    assert 200 < len(predictions) < 300
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1)


def test_signal_below_the_confidence_threshold_is_hold(trained: Trained) -> None:
    bars = trained.bar_store.load("EURUSD", "1h").head(300)
    model = TradingModel.load(trained.path)
    unsure = model.predict(bars)
    threshold = float(np.median(unsure.probabilities.max(axis=1)))
    decisions = model.strategy.decisions.model_copy(update={"confidence_threshold": threshold})
    strict = replace(model, strategy=model.strategy.model_copy(update={"decisions": decisions})).predict(bars)
    is_sure = strict.probabilities.max(axis=1) >= threshold
    np.testing.assert_array_equal(strict.decisions[is_sure], strict.classes[is_sure])
    assert (strict.decisions[~is_sure] == SignalClass.HOLD).all()
    assert (strict.classes[~is_sure] != SignalClass.HOLD).any()


def test_last_prediction_does_not_change_when_bars_follow(trained: Trained) -> None:
    model, bars = TradingModel.load(trained.path), trained.bar_store.load("EURUSD", "1h")
    short, long = model.predict(bars.head(500)), model.predict(bars.head(800))
    np.testing.assert_array_equal(long.outputs[: len(short)], short.outputs)


def test_metrics_are_those_of_the_epoch_whose_weights_are_stored(trained: Trained, tmp_path: Path) -> None:
    overfitted = replace(trained.spec, epochs=6, learning_rate=0.05)
    result = run_training(overfitted, bar_store=trained.bar_store, model_storage=StagedStorage(tmp_path / "artifact"))
    history = json.loads((tmp_path / "artifact" / "metrics.json").read_text())["history"]
    best = min(history, key=lambda epoch: float(epoch["val_loss"]))
    assert best["epoch"] < len(history), "the best epoch must not be the last one, or this test shows nothing"
    metrics = result["training_metrics"]
    assert (metrics["best_epoch"], metrics["epochs"]) == (best["epoch"], len(history))
    assert (metrics["val_loss"], metrics["train_accuracy"]) == (best["val_loss"], best["train_accuracy"])


def test_baseline_is_reported_beside_the_accuracy(trained: Trained, split: DataSplit) -> None:
    shares = [float(np.mean(split.test.y == answer)) for answer in SignalClass]
    assert trained.result["test_metrics"]["majority_baseline_accuracy"] == max(shares)


def test_what_makes_a_result_trustworthy_is_stored_with_it(trained: Trained) -> None:
    config = json.loads((trained.path / "config.json").read_text())
    data = config["data_config"]
    leakage = trained.result["evaluation"]["leakage"]
    assert leakage["passed"] is True
    assert min(leakage["cuts"], leakage["perturbations"]) >= 2
    assert leakage["label_spans"] == sum(data["rows"].values())
    digest = trained.bar_store.load("EURUSD", "1h").digest()
    assert data["bars"]["EURUSD"] == [{"timeframe": "1h", "num_bars": 6225, "sha256": digest}]
    assert data["horizon_bars"] == 10
    assert data["purged_rows"] == 2 * 10
    (counts,) = data["row_counts"]
    assert counts["unlabelled_bars"] == 10
    assert counts["warm_up_bars"] > 0
    assert counts["rows"] == trained.result["metadata"]["total_samples"]
    assert sum(data["rows"].values()) + data["purged_rows"] == trained.result["metadata"]["total_samples"]
    assert config["training_config"]["seed"] == 42
    assert len(config["strategy_digest"]) == 64
    environment = json.loads((trained.path / "metadata.json").read_text())["environment"]
    assert environment["num_threads"] == 1
    assert environment["device"] == "cpu"
    assert environment["cpu_capability"]
    assert environment["versions"]["torch"] == torch.__version__


def test_derived_files_load_without_running_code(trained: Trained) -> None:
    weights = load_tensors(trained.path)
    state = torch.load(trained.path / "model.pt", weights_only=True)
    full = torch.load(trained.path / "model_full.pt", weights_only=True)
    for loaded in (state, full["state_dict"]):
        assert {name: tensor.numpy().tobytes() for name, tensor in loaded.items()} == {
            name: tensor.tobytes() for name, tensor in weights.items()
        }
    assert full["architecture"]["hidden_layers"] == [8]
    assert full["preprocessing"]["feature_names"] == trained.result["feature_names"]
    scaler = TradingModel.load(trained.path).scaler
    np.testing.assert_array_equal(full["preprocessing"]["scaler_centre"].numpy(), scaler.centre)


def test_artifact_without_derived_files_publishes_and_can_get_them_before(trained: Trained, tmp_path: Path) -> None:
    storage = ModelStorage(tmp_path / "models")
    published = []
    for name, derive in (("a", False), ("b", True)):
        run = StagedStorage(tmp_path / name)
        run_training(trained.spec, bar_store=trained.bar_store, model_storage=run)
        if derive:
            derive_torch_files(tmp_path / name)
        published.append(storage.publish(tmp_path / name, training_id=name, attempt=1))
    assert [len(model.files) for model in published] == [5, 7]
    assert published[0].digest == published[1].digest == trained.result["artifact_digest"]
    assert TradingModel.load(published[0].path).feature_names == TradingModel.load(published[1].path).feature_names


def test_stored_model_with_a_flipped_bit_does_not_predict(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained.path, copy)
    assert TradingModel.load(copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(CorruptDataError, match=r"model\.safetensors"):
        TradingModel.load(copy)


def test_weights_of_another_network_are_refused(trained: Trained, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("model.safetensors", "metrics.json", "features.json", "metadata.json"):
        (broken / name).write_bytes((trained.path / name).read_bytes())
    config = json.loads((trained.path / "config.json").read_text())
    config["model_config"]["network"]["hidden_layers"] = [9]
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptDataError, match="network"):
        TradingModel.load(broken)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"symbols": ("NOSUCH",)}, SeriesNotFoundError),
        ({"strategy_yaml": "name: x"}, InvalidStrategyError),
    ],
    ids=["unknown symbol", "malformed strategy"],
)
def test_bad_input_is_refused_before_any_step(
    trained: Trained, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    steps: list[object] = []
    with pytest.raises(error):
        run_training(
            replace(trained.spec, **change),
            bar_store=trained.bar_store,
            model_storage=ModelStorage(tmp_path / "models"),
            step_callback=steps.append,
        )
    assert steps == []
    assert list(tmp_path.iterdir()) == []


def test_labels_from_which_nothing_can_be_learned_fail_with_their_counts(bar_store: DirectoryBarStore) -> None:
    text = strategy_text(**{"training.labels.zigzag_threshold": 0.5})
    with pytest.raises(DegenerateLabelsError, match="HOLD 6215"):
        run_training(TrainingSpec(strategy_yaml=text), bar_store=bar_store, model_storage=None)


def test_token_cancelled_before_the_start_ends_at_once(trained: Trained) -> None:
    token = LocalCancellationToken()
    token.cancel("never mind")
    with pytest.raises(CancellationError, match="never mind"):
        run_training(trained.spec, bar_store=trained.bar_store, model_storage=None, cancellation_token=token)
