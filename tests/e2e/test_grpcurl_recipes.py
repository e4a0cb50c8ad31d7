"""Every block of docs/grpcurl.md, as written, with a real grpcurl against a real backend and trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_core.data.files import load_bars
from tests.kit.cli import ROOT, STRATEGY, Cli, embedded_cli
from tests.kit.documents import fenced_blocks
from tests.kit.eventually import PATIENCE_S

RECIPES = fenced_blocks(ROOT / "docs" / "grpcurl.md")
TESTED: set[str] = {"Recipes for grpcurl"}  # the block that says where the backend is


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    with embedded_cli(tmp_path_factory.mktemp("grpcurl") / "state") as cli:
        assert cli.run("config", "get").code == 0
        yield cli


def _type(cli: Cli, heading: str, **variables: str) -> subprocess.CompletedProcess[str]:
    TESTED.add(heading)
    (block,) = RECIPES[heading]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        env={**cli.environment(), "PATH": path, "BACKEND": cli.embedded["backend"], **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def _answers(ran: subprocess.CompletedProcess[str]) -> list[Any]:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    decoder, text, found = json.JSONDecoder(), ran.stdout.strip(), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    return found


def test_services_are_listed_described_and_healthy(cli: Cli) -> None:
    ran = _type(cli, "What is there")
    assert ran.returncode == 0, ran.stderr
    for service in ("training.v1.TrainingService", "models.v1.ModelService", "data.v1.MarketDataService"):
        assert f"ktrdr.{service}\n" in ran.stdout
    assert "rpc Train ( .ktrdr.training.v1.TrainRequest )" in ran.stdout
    assert "SERVING" in ran.stdout


@pytest.fixture(scope="module")
def training_id(cli: Cli) -> str:
    (first,) = _answers(_type(cli, "Train"))
    return str(first["training"]["training_id"])


def test_train_twice_with_the_same_request_id_is_one_training(cli: Cli, training_id: str) -> None:
    (again,) = _answers(_type(cli, "Train"))
    assert again["training"]["training_id"] == training_id


def test_stream_progress_goes_from_the_first_event_to_the_terminal_one(cli: Cli, training_id: str) -> None:
    responses = _answers(_type(cli, "StreamProgress", TRAINING_ID=training_id))
    events = [event for response in responses for event in response.get("events", [])]
    durable = [int(event["sequence"]) for event in events if "batch" not in event]
    assert durable == list(range(1, len(durable) + 1))
    assert events[-1]["state"]["state"] == "TRAINING_STATE_COMPLETED"


def test_get_training_answers_the_result(cli: Cli, training_id: str) -> None:
    _type(cli, "StreamProgress", TRAINING_ID=training_id)
    (answer,) = _answers(_type(cli, "GetTraining", TRAINING_ID=training_id))
    result = answer["training"]["result"]
    assert result["training_metrics"]["epochs"] == 3
    assert result["test_metrics"]["majority_baseline_accuracy"] > 0


def test_uploaded_directory_is_published_as_a_version(cli: Cli, training_id: str, tmp_path: Path) -> None:
    _type(cli, "StreamProgress", TRAINING_ID=training_id)
    (answer,) = _answers(_type(cli, "GetTraining", TRAINING_ID=training_id))
    directory = answer["training"]["result"]["model_path"]
    (uploaded,) = _answers(_type(cli, "Upload a model from a directory", MODEL_DIR=directory))
    assert uploaded["model"]["strategy_name"] == "neuro_mean_reversion"
    assert (Path(uploaded["model"]["path"]) / "model.safetensors").read_bytes() == (
        Path(directory) / "model.safetensors"
    ).read_bytes()
    assert uploaded["model"]["name"] in cli.run("models", "list").out


def test_train_from_a_file_is_accepted(cli: Cli) -> None:
    (answer,) = _answers(_type(cli, "Train from a file"))
    assert answer["training"]["state"] == "TRAINING_STATE_QUEUED"
    assert cli.run("watch", answer["training"]["training_id"]).code == 0


def test_cancel_ends_a_running_training(cli: Cli) -> None:
    started = cli.run("train", STRATEGY, "--epochs", "100000", "--detach").out.strip()
    (answer,) = _answers(_type(cli, "Cancel", TRAINING_ID=started))
    assert answer["training"]["state"] == "TRAINING_STATE_CANCELLED"


def test_events_of_a_training_are_listed(cli: Cli, training_id: str) -> None:
    _type(cli, "StreamProgress", TRAINING_ID=training_id)
    (answer,) = _answers(_type(cli, "ListTrainingEvents", TRAINING_ID=training_id))
    assert [int(event["sequence"]) for event in answer["events"]] == list(range(1, len(answer["events"]) + 1))
    assert answer["events"][-1]["state"]["state"] == "TRAINING_STATE_COMPLETED"


def test_cancel_by_request_id_may_come_before_its_train(cli: Cli) -> None:
    (answer,) = _answers(_type(cli, "Cancel by request_id"))
    assert "training" not in answer
    ran = cli.run("train", STRATEGY, "--epochs", "100000", "--request-id", "not-sent-yet", "--json")
    assert ran.code == 4, ran.err
    assert ran.lines[-1]["state"] == "CANCELLED"


def test_train_with_scheduling_is_kept_with_it(cli: Cli) -> None:
    (answer,) = _answers(_type(cli, "Train with a priority and retries"))
    assert answer["training"]["scheduling"]["user"] == "alice"
    shown = cli.run("show", answer["training"]["training_id"], "--json").lines[0]
    assert shown["scheduling"] == {
        "user": "alice",
        "priority": 10,
        "retry": "on_infrastructure_failure",
        "max_retries": 2,
    }
    assert cli.run("watch", answer["training"]["training_id"]).code == 0


def test_drained_trainer_is_listed_as_draining(cli: Cli) -> None:
    trainer = cli.embedded["trainer"]
    drained, listed = _answers(_type(cli, "Drain a trainer", TRAINER=trainer))
    assert drained["trainer"]["is_draining"] is True
    assert [each["is_draining"] for each in listed["trainers"]] == [True]
    assert cli.run("trainers", "undrain", trainer).code == 0


@pytest.fixture(scope="module")
def model_path(cli: Cli, training_id: str) -> Path:
    """The directory of the first training's model; its name in the store is the last two parts."""
    _type(cli, "StreamProgress", TRAINING_ID=training_id)
    (answer,) = _answers(_type(cli, "GetTraining", TRAINING_ID=training_id))
    return Path(answer["training"]["result"]["model_path"])


def _name(model_path: Path) -> str:
    return f"{model_path.parent.name}/{model_path.name}"


def test_models_are_listed_got_and_verified(cli: Cli, model_path: Path) -> None:
    listed, got, verified = _answers(_type(cli, "Models", MODEL=_name(model_path)))
    assert _name(model_path) in [model["name"] for model in listed["models"]]
    assert got["model"]["path"] == str(model_path)
    assert verified["is_sound"] is True


def test_alias_is_pointed_at_a_version_once(cli: Cli, model_path: Path) -> None:
    (answer,) = _answers(_type(cli, "Point an alias at a version"))
    assert answer["model"]["version"] == 1
    again = _type(cli, "Point an alias at a version")
    assert again.returncode != 0
    assert "Aborted" in again.stderr


def test_downloaded_file_is_the_one_in_the_store(cli: Cli, model_path: Path) -> None:
    ran = _type(cli, "Download a file of a model", MODEL=_name(model_path))
    assert ran.stdout.encode() == (model_path / "config.json").read_bytes()


def test_garbage_is_told_and_a_model_deleted(cli: Cli, model_path: Path) -> None:
    assert cli.run("models", "import", str(model_path)).code == 0
    newest = cli.run("models", "show", "neuro_mean_reversion", "--json").lines[0]["name"]
    told, deleted = _answers(_type(cli, "Collect garbage and delete", MODEL=newest))
    assert newest not in [each["name"] for each in told.get("removed", [])]
    assert deleted == {}
    assert newest not in cli.run("models", "list").out


def test_bars_are_listed_described_and_fetched(cli: Cli, tmp_path: Path) -> None:
    ran = _type(cli, "Bars", BARS_FILE=str(tmp_path / "june.parquet"))
    listed, series = _answers(ran)
    assert [each["timeframe"] for each in listed["series"]] == ["1h"]
    assert int(series["series"]["num_bars"]) == len(
        load_bars(ROOT / "data/EURUSD_1h.csv", symbol="EURUSD", timeframe="1h")
    )
    june = load_bars(tmp_path / "june.parquet", symbol="EURUSD", timeframe="1h")
    assert (str(june.first_day), str(june.last_day)) == ("2017-06-01", "2017-06-30")


def test_refused_call_shows_code_sentence_reason_and_field(cli: Cli) -> None:
    ran = _type(cli, "When a call is refused")
    assert ran.returncode != 0
    for text in ("InvalidArgument", "batch_size must be at least 1, was 0", "INVALID_SPEC", "spec.batch_size"):
        assert text in ran.stderr, ran.stderr


def test_every_recipe_is_run_by_a_test() -> None:
    assert set(RECIPES) == TESTED
