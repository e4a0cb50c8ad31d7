"""`ktrdr models compare`, `export` and `verify` on models that were trained, with bars that change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from ktrdr_client.cli.run import run

from tests.kit.cli import ROOT, Cli, Ran, embedded_cli
from tests.kit.documents import last_names
from tests.kit.eventually import PATIENCE_S

STRATEGY = str(ROOT / "strategies/neuro_mean_reversion.yaml")
MODEL = "neuro_mean_reversion/EURUSD_1h_v1"
OVERRIDES = ("--epochs", "2", "--batch-size", "128", "--seed", "7", "--start", "2017-02-01", "--end", "2017-11-30")
ASSIGNMENTS = ("--set", "model.training.learning_rate=0.00002", "--set", "model.features.lookback_periods=1")
Call = Callable[..., Ran]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A command with a backend whose bars are a copy that a test may change."""
    here = tmp_path_factory.mktemp("checks")
    (here / "data").mkdir()
    shutil.copy(ROOT / "data/EURUSD_1h.csv", here / "data")
    with embedded_cli(here / "state") as cli:
        with cli.start("config", "get", cwd=here) as first:
            assert first.wait(timeout=PATIENCE_S) == 0
        yield cli


@pytest.fixture
def call(world: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in this process, in the directory of `world`."""
    for name in ("KTRDR_BACKEND", "KTRDR_DATA_DIR", "KTRDR_BARS_DIR", "KTRDR_STRATEGIES_DIR", "KTRDR_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(world.data_dir.parent)

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = run(["--data-dir", str(world.data_dir), *arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def trained(call: Call) -> Path:
    """Return where the model is that was trained with overrides; it is trained by the first test that asks."""
    if call("models", "show", MODEL).code != 0:
        ran = call("train", STRATEGY, "--mode", "local", *OVERRIDES, *ASSIGNMENTS, "--json")
        assert ran.code == 0, ran.err
    return Path(call("models", "show", MODEL, "--json").lines[0]["path"])


def has_documented_fields(line: dict[str, Any]) -> bool:
    return list(line) == ["type", *last_names(ROOT / "docs/cli.md", line["type"])]


def names(call: Call) -> list[str]:
    return sorted(line["name"] for line in call("models", "list", "--json").lines)


def test_model_trained_again_elsewhere_is_the_same_and_its_copy_goes(call: Call, trained: Path) -> None:
    ran = call("models", "verify", "neuro_mean_reversion", "--retrain", "--mode", "host", "--json")
    assert ran.code == 0, ran.out[-2000:] + ran.err
    first, *events, last = ran.lines
    assert (first["type"], first["name"], first["is_sound"]) == ("model_verification", MODEL, True)
    assert {check["name"] for check in first["checks"]} >= {"model.safetensors", "config.json"}
    assert events[-1]["result"]["artifact_digest"] == first["artifact_digest"]
    assert events[-1]["placement"]["mode"] == "host"
    assert last["type"] == "model_retraining"
    assert has_documented_fields(first)
    assert has_documented_fields(last)
    assert (last["name"], last["is_identical"], last["is_kept"], last["causes"]) == (MODEL, True, False, [])
    assert names(call) == [MODEL]
    assert call("models", "verify", MODEL).code == 0


def test_keep_keeps_the_copy_which_compares_as_the_same(call: Call, trained: Path) -> None:
    ran = call("models", "verify", str(trained), "--retrain", "--keep", "--mode", "local")
    assert ran.code == 0, ran.err
    assert "trained again: bit for bit the same" in ran.out
    (copy,) = (name for name in names(call) if name != MODEL)
    assert f"{copy} is kept" in ran.out
    told = call("models", "compare", MODEL, copy)
    assert "the same model: weights, configuration, metrics and features are equal, bit for bit" in told.out
    assert call("models", "delete", copy, "--yes").code == 0
    assert names(call) == [MODEL]


def test_compare_tells_metrics_configuration_and_features(call: Call, trained: Path) -> None:
    ran = call("train", STRATEGY, "--mode", "local", *OVERRIDES, "--seed", "8", "--json")
    assert ran.code == 0, ran.err
    other = Path(ran.lines[-1]["result"]["model_path"])
    other_name = f"{other.parent.name}/{other.name}"
    (line,) = call("models", "compare", MODEL, str(other), "--json").lines
    assert (line["type"], line["first"], line["second"]) == ("model_comparison", MODEL, str(other))
    assert has_documented_fields(line)
    assert not line["is_identical"]
    config = {own["path"]: (own["first"], own["second"]) for own in line["config"]}
    assert config["strategy.model.features.lookback_periods"] == (1, 4)
    assert config["strategy.model.training.learning_rate"][0] == 0.00002
    assert not any(path.startswith("training.") for path in config)
    lineage = {own["path"]: (own["first"], own["second"]) for own in line["lineage"]}
    assert lineage["seed"] == (7, 8)
    assert {own["verdict"] for own in line["series"]} == {"same bars"}
    metrics = {(own["part"], own["name"]): own for own in line["metrics"]}
    accuracy = metrics["test", "accuracy"]
    assert accuracy["difference"] == accuracy["second"] - accuracy["first"]
    assert metrics["test", "majority_baseline_accuracy"]["first"] > 0
    assert line["features_added"]
    told = call("models", "compare", MODEL, str(other)).out
    for text in (
        "test majority baseline accuracy",
        "strategy.model.features.lookback_periods",
        "feature + ",
        "EURUSD 1h: same",
    ):
        assert text in told, text
    assert call("models", "delete", other_name, "--yes").code == 0


@pytest.mark.parametrize("export_format", ["pt", "full", "onnx"])
def test_export_writes_a_file_named_after_the_model(call: Call, trained: Path, export_format: str) -> None:
    ran = call("models", "export", MODEL, "--format", export_format, "--json")
    assert ran.code == 0, ran.err
    (line,) = ran.lines
    assert (line["type"], line["model"], line["format"]) == ("model_export", MODEL, export_format)
    assert has_documented_fields(line)
    (path,) = (Path(text) for text in line["files"])
    assert path.parent == Path.cwd()
    assert line["size_bytes"] == path.stat().st_size
    if export_format == "onnx":
        onnx.checker.check_model(path)
    else:
        assert torch.load(path, weights_only=True)
    again = call("models", "export", MODEL, "--format", export_format)
    assert (again.code, "--force" in again.err) == (2, True)
    moved = call("models", "export", str(trained), "--format", export_format, "--to", "other.file", "--force")
    assert (moved.code, moved.out.split(" (")[0]) == (0, str(Path.cwd() / "other.file"))
    if export_format != "onnx":  # whose metadata name the model
        assert Path("other.file").read_bytes() == path.read_bytes()
    assert {entry.name for entry in Path.cwd().iterdir()} >= {path.name, "other.file"}
    assert not list(Path.cwd().glob(".ktrdr*"))


def test_changed_bars_are_the_first_thing_said(call: Call, trained: Path) -> None:
    bars = Path("data/EURUSD_1h.csv")
    lines = bars.read_text().splitlines()
    row = next(index for index, line in enumerate(lines) if line.startswith("2017-06"))
    time, open_, high, low, _, volume = lines[row].split(",")
    lines[row] = ",".join((time, open_, high, low, low, volume))
    bars.with_suffix(".new").write_text("\n".join(lines) + "\n")
    os.replace(bars.with_suffix(".new"), bars)
    ran = call("models", "verify", MODEL, "--retrain", "--mode", "local", "--json")
    assert ran.code == 3, ran.out[-2000:] + ran.err
    last = ran.lines[-1]
    assert (last["is_identical"], last["has_same_bars"], last["is_kept"]) == (False, False, True)
    assert last["causes"][0].startswith("EURUSD 1h: same range, other bars (")
    assert last["retrained"] in names(call)
    told = call("models", "compare", MODEL, last["retrained"]).out
    assert "EURUSD 1h: same range, other bars" in told
    assert "the two were judged on different rows" in told


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_damaged_file_is_named_and_nothing_is_trained(call: Call, trained: Path) -> None:
    copy = Path.cwd() / "copy"
    shutil.copytree(trained, copy)
    flip_last_byte(copy / "model.safetensors")
    flip_last_byte(trained / "model.safetensors")
    try:
        for model in (str(copy), MODEL):
            ran = call("models", "verify", model, "--json")
            assert ran.code == 3
            (line,) = ran.lines
            assert not line["is_sound"]
            assert [check["name"] for check in line["checks"] if not check["is_sound"]] == ["model.safetensors"]
            told = call("models", "verify", model, "--retrain")
            assert (told.code, "not sound" in told.out, "training" in told.out) == (3, True, False)
    finally:
        flip_last_byte(trained / "model.safetensors")
    assert call("models", "verify", MODEL).code == 0


def test_directory_that_is_in_no_store_is_only_readable(call: Call, trained: Path) -> None:
    loose = Path.cwd() / "loose"
    loose.mkdir()
    for entry in trained.glob("*.*"):
        shutil.copyfile(entry, loose / entry.name)
    (loose / ".publication.json").unlink(missing_ok=True)
    ran = call("models", "verify", str(loose))
    assert (ran.code, "nothing published to compare with" in ran.out) == (0, True), ran.err
    (line,) = call("models", "export", str(loose), "--format", "pt", "--json").lines
    assert (line["model"], line["files"]) == ("loose", [str(Path.cwd() / "loose.pt")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "./nothing", MODEL), "no model directory"),
        (("compare", MODEL, "nothing"), "nothing"),
        (("export", MODEL), "Missing option"),
        (("export", MODEL, "--format", "tar"), "'onnx'"),
        (("export", MODEL, "--format", "pt", "--to", "nowhere/x.pt"), "there is no directory"),
        (("verify", MODEL, "--keep"), "belong to --retrain"),
        (("verify", "nothing"), "nothing"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    call: Call, trained: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = call("models", *arguments)
    assert ran.code == 2, ran.out + ran.err
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
