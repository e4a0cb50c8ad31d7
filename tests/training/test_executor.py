from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.cancellation import LocalCancellationToken
from ktrdr_core.domain.progress import STEP_TITLES, TrainingStep
from ktrdr_core.domain.result import validate_training_result
from ktrdr_core.errors import (
    CancellationError,
    ExecutionModeError,
    InvalidInputError,
    NonFiniteLossError,
)
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.checkpoint import load_checkpoint
from ktrdr_core.training.executor import CONFIG_SECTIONS, TrainingExecutor
from ktrdr_core.versions import own_version
from tests.kit.builders import REPOSITORY, make_bars, strategy_dict, write_bars_csv

STRATEGY = strategy_dict()
CONFIG: dict[str, Any] = {
    "strategy_config": STRATEGY,
    "training_config": {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "seed": 1, "enable_gpu": False},
    "model_config": {"type": "mlp", "hidden_layers": [8], "dropout": 0.1},
}
# Two months of hours: enough rows for every part, and fast.
JOB: dict[str, Any] = {
    "symbols": ["EURUSD"],
    "timeframes": ["1h"],
    "start_date": "2017-03-01",
    "end_date": "2017-04-30",
    "validation_split": 0.15,
}


def change(section: str, **values: Any) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], **values}}


class Token(LocalCancellationToken):
    save_checkpoint = False


class SavingToken(LocalCancellationToken):
    save_checkpoint = True


@pytest.mark.parametrize("section", CONFIG_SECTIONS)
def test_missing_section_is_a_value_error_that_names_it(section: str) -> None:
    with pytest.raises(ValueError, match=section):
        TrainingExecutor({key: value for key, value in CONFIG.items() if key != section})


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("training_config", "epochs"),
        ("training_config", "batch_size"),
        ("training_config", "learning_rate"),
        ("model_config", "type"),
        ("model_config", "hidden_layers"),
        ("strategy_config", "indicators"),
    ],
)
def test_missing_key_is_a_value_error_that_names_it(section: str, key: str) -> None:
    left = {name: value for name, value in CONFIG[section].items() if name != key}
    with pytest.raises(ValueError, match=key):
        TrainingExecutor({**CONFIG, section: left})


def test_twelve_steps_are_told_in_order_and_logged(
    bar_store: DirectoryBarStore, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[TrainingStep] = []
    with caplog.at_level(logging.INFO, logger="ktrdr_core.training.executor"):
        result = TrainingExecutor(CONFIG, bar_store=bar_store, step_callback=steps.append).execute(**JOB)
    assert steps == list(TrainingStep)
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if line.startswith("Step ")] == [
        f"Step {step.value}: {title}" for step, title in STEP_TITLES.items()
    ]
    validate_training_result(result)
    assert result["model_path"] == ""
    assert result["metadata"]["start_date"] == "2017-03-01"


@pytest.mark.parametrize("step", [step for step in TrainingStep if step < TrainingStep.SAVING], ids=lambda s: s.name)
def test_cancel_in_any_step_ends_before_the_next_and_stores_nothing(
    bar_store: DirectoryBarStore, tmp_path: Path, step: TrainingStep
) -> None:
    token, steps = Token(), []

    def on_step(begun: TrainingStep) -> None:
        steps.append(begun)
        if begun is step:
            token.cancel("not needed any more")

    executor = TrainingExecutor(
        CONFIG, None, token, ModelStorage(tmp_path / "models"), step_callback=on_step, bar_store=bar_store
    )
    with pytest.raises(CancellationError, match="not needed any more"):
        executor.execute(**JOB)
    assert steps[-1] is step
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("step", "has_checkpoint"),
    [
        (TrainingStep.LABELS, False),
        (TrainingStep.EVALUATION, True),
        (TrainingStep.FEATURE_IMPORTANCE, True),
    ],
)
def test_stop_with_checkpoint_leaves_one_once_training_has_begun(
    bar_store: DirectoryBarStore, tmp_path: Path, step: TrainingStep, has_checkpoint: bool
) -> None:
    token = SavingToken()

    def on_step(begun: TrainingStep) -> None:
        if begun is step:
            token.cancel()

    executor = TrainingExecutor(
        CONFIG, None, token, None, step_callback=on_step, bar_store=bar_store, checkpoint_dir=tmp_path
    )
    with pytest.raises(CancellationError) as caught:
        executor.execute(**JOB)
    assert bool(caught.value.checkpoint_path) is has_checkpoint
    if has_checkpoint:
        assert load_checkpoint(Path(caught.value.checkpoint_path)).epoch == 2


def test_execution_resumed_from_a_checkpoint_gives_the_same_artifact(
    bar_store: DirectoryBarStore, tmp_path: Path
) -> None:
    config = change("training_config", epochs=3)
    token = SavingToken()

    def stop(epoch: int, total_epochs: int, metrics: dict[str, Any]) -> None:
        if (epoch, metrics["progress_type"]) == (2, "batch") or epoch == 3:
            token.cancel()

    with pytest.raises(CancellationError) as caught:
        TrainingExecutor(config, stop, token, None, bar_store=bar_store, checkpoint_dir=tmp_path).execute(**JOB)
    executor = TrainingExecutor(config, bar_store=bar_store)
    resumed = executor.execute(**JOB, resume_from=caught.value.checkpoint_path)
    assert resumed["artifact_digest"] == executor.execute(**JOB)["artifact_digest"]


def test_where_the_bars_came_from_is_told_beside_the_model_and_changes_nothing_of_it(
    bar_store: DirectoryBarStore,
) -> None:
    executor = TrainingExecutor(CONFIG, bar_store=bar_store)
    results = {mode: executor.execute(**JOB, data_mode=mode) for mode in ("local", "backend", "csv")}
    assert {mode: dict(result["metadata"])["data_mode"] for mode, result in results.items()} == {
        mode: mode for mode in results
    }
    assert len({result["artifact_digest"] for result in results.values()}) == 1
    for result in results.values():
        assert "data_mode" not in repr(result["config"])
        assert dict(result["metadata"])["code_version"] == own_version()
    assert dict(executor.execute(**JOB)["metadata"])["data_mode"] == "local"


def test_learning_rate_of_1e30_fails_and_stores_nothing(bar_store: DirectoryBarStore, tmp_path: Path) -> None:
    storage = ModelStorage(tmp_path / "models")
    executor = TrainingExecutor(
        change("training_config", learning_rate=1e30), model_storage=storage, bar_store=bar_store
    )
    with pytest.raises(NonFiniteLossError, match="learning rate"):
        executor.execute(**JOB)
    assert storage.list() == []


def test_declared_input_size_that_differs_is_a_warning(bar_store: DirectoryBarStore) -> None:
    told: list[tuple[str, str]] = []
    executor = TrainingExecutor(
        change("model_config", input_size=99),
        bar_store=bar_store,
        warning_callback=lambda reason, message: told.append((reason, message)),
    )
    result = executor.execute(**JOB)
    assert [reason for reason, _ in told] == ["INPUT_SIZE_DIFFERS"]
    assert result["warnings"] == [message for _, message in told]
    assert "99" in result["warnings"][0]
    assert executor.execute(**JOB)["warnings"] == result["warnings"]


def test_mixed_precision_that_the_device_lacks_is_a_warning(bar_store: DirectoryBarStore) -> None:
    result = TrainingExecutor(change("training_config", mixed_precision=True), bar_store=bar_store).execute(**JOB)
    assert "mixed precision" in result["warnings"][0]


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 1), (None, 0)])
def test_memory_fraction_without_a_cuda_device_is_a_warning(
    bar_store: DirectoryBarStore, fraction: float | None, count: int
) -> None:
    config = change("training_config", memory_fraction=fraction)
    result = TrainingExecutor(config, bar_store=bar_store).execute(**JOB)
    assert len([text for text in result["warnings"] if "memory_fraction" in text]) == count


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU")
def test_required_gpu_without_one_fails(bar_store: DirectoryBarStore) -> None:
    config = change("training_config", enable_gpu=True, require_gpu=True)
    with pytest.raises(ExecutionModeError, match="GPU"):
        TrainingExecutor(config, bar_store=bar_store).execute(**JOB)


def test_failing_watchers_cost_nothing(bar_store: DirectoryBarStore) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the watcher broke")

    watched = TrainingExecutor(CONFIG, fail, bar_store=bar_store, step_callback=fail, warning_callback=fail)
    plain = TrainingExecutor(CONFIG, bar_store=bar_store)
    assert watched.execute(**JOB)["artifact_digest"] == plain.execute(**JOB)["artifact_digest"]


@pytest.mark.parametrize(
    ("change_of_job", "text"),
    [
        ({"start_date": "2017-05-01"}, "after end_date"),
        ({"start_date": "yesterday"}, "yesterday"),
        ({"symbols": []}, "at least one symbol"),
        ({"timeframes": ["4h", "6h"]}, "6h is no whole multiple of the base timeframe 4h"),
        ({"data_mode": "ib"}, "ib"),
        ({"data_mode": "ftp"}, "data_mode must be backend, local or csv, was 'ftp'"),
        ({"start_date": "2030-01-01", "end_date": "2030-02-01"}, "no bars"),
        ({"epochs": 3}, "epochs"),
    ],
    ids=lambda value: str(value),
)
def test_argument_that_breaks_a_rule_is_a_value_error(
    bar_store: DirectoryBarStore, change_of_job: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        TrainingExecutor(CONFIG, bar_store=bar_store).execute(**{**JOB, **change_of_job})


def test_split_the_strategy_declares_is_the_truth(bar_store: DirectoryBarStore) -> None:
    facts = TrainingExecutor(CONFIG, bar_store=bar_store).execute(**{**JOB, "validation_split": 0.3})
    assert facts["config"]["data_config"]["data_split"] == {
        "train": 0.7,
        "validation": 0.15,
        "test": 0.15,
        "embargo_bars": 0,
    }


def test_validation_split_holds_where_the_strategy_declares_none(bar_store: DirectoryBarStore) -> None:
    undeclared = {**STRATEGY, "training": {**STRATEGY["training"], "data_split": None}}
    executor = TrainingExecutor({**CONFIG, "strategy_config": undeclared}, bar_store=bar_store)
    facts = executor.execute(**{**JOB, "validation_split": 0.25})["config"]["data_config"]
    assert facts["data_split"] == {"train": 0.5, "validation": 0.25, "test": 0.25, "embargo_bars": 0}
    for share in (0.0, 0.5, 0.9):
        with pytest.raises(ValueError, match="validation_split"):
            executor.execute(**{**JOB, "validation_split": share})


def test_timeframes_of_the_call_replace_those_of_the_strategy(bar_store: DirectoryBarStore) -> None:
    result = TrainingExecutor(CONFIG, bar_store=bar_store).execute(**{**JOB, "timeframes": ["4h", "1h"]})
    assert result["metadata"]["timeframes"] == ["1h", "4h"]
    assert {"rsi_14.oversold", "rsi_14.oversold@4h"} < set(result["feature_names"])


def test_symbols_of_the_call_replace_those_of_the_strategy_in_the_network_too(tmp_path: Path) -> None:
    for symbol, seed in (("AAA", 1), ("BBB", 2)):
        write_bars_csv(tmp_path, make_bars(600, seed, symbol=symbol))
    known = {**STRATEGY, "model": {**STRATEGY["model"], "symbol_embedding_dim": 2}}
    bars = make_bars(600)
    result = TrainingExecutor({**CONFIG, "strategy_config": known}, bar_store=DirectoryBarStore(tmp_path)).execute(
        ["AAA", "BBB"], ["1h"], bars.first_day, bars.last_day
    )
    assert result["feature_names"][-2:] == ["symbol.AAA", "symbol.BBB"]
    assert result["config"]["model_config"]["network"]["num_symbols"] == 2
    assert result["config"]["training_config"]["num_symbols"] == 2


def test_bars_come_from_the_directory_data_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert TrainingExecutor(CONFIG, None, None, None).execute(**JOB)["success"]


def test_config_is_not_changed_by_execution(bar_store: DirectoryBarStore) -> None:
    before = repr(CONFIG)
    TrainingExecutor(CONFIG, bar_store=bar_store).execute(**JOB)
    assert repr(CONFIG) == before


def test_unknown_argument_is_named(bar_store: DirectoryBarStore) -> None:
    with pytest.raises(InvalidInputError, match="batch"):
        TrainingExecutor(CONFIG, bar_store=bar_store).execute(**JOB, batch=3)
