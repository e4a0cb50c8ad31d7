"""`ktrdr` as a person or a script runs it: real processes, an embedded backend and trainer, real bars."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.cli import STRATEGY, Cli, Ran
from tests.kit.eventually import PATIENCE_S
from tests.kit.terminal import Terminal

LONG = ("--epochs", "100000")
Here = Callable[..., Ran]


def _detached(cli: Cli) -> str:
    ran = cli.run("train", STRATEGY, "--mode", "local", *LONG, "--detach")
    assert ran.code == 0, ran.err
    return ran.out.strip()


# The embedded backend


def test_two_first_commands_at_once_share_one_embedded_backend(cli_and_first_runs: tuple[Cli, list[Ran]]) -> None:
    cli, runs = cli_and_first_runs
    assert [run.code for run in runs] == [0, 0], runs
    assert runs[0].lines == runs[1].lines
    assert runs[0].lines[0]["trainers"] == [cli.embedded["trainer"]]
    assert all("starting an embedded backend" in run.err for run in runs)
    log = (cli.data_dir / "logs" / "embedded.log").read_text()
    assert log.lower().count("serving on") == 2  # one backend, one trainer


def test_later_command_finds_the_embedded_backend_again(cli: Cli, here: Here) -> None:
    pid = cli.embedded["pid"]
    ran = here("list")
    assert ran.code == 0
    assert "starting" not in ran.err
    assert cli.embedded["pid"] == pid


# train, watch, show


@pytest.fixture(scope="package")
def trained(cli: Cli) -> Ran:
    return cli.run("train", STRATEGY, "--mode", "host", "--epochs", "2", "--json")


def test_json_training_streams_every_event_once_and_ends_with_the_result(trained: Ran) -> None:
    assert trained.code == 0, trained.err
    first, *events, last = trained.lines
    assert first["type"] == "training"
    assert first["state"] in ("QUEUED", "RUNNING")
    assert {event["type"] for event in events} == {"event"}
    durable = [event for event in events if event["kind"] != "batch"]
    assert [event["sequence"] for event in durable] == list(range(1, len(durable) + 1))
    assert [event["step"] for event in durable if event["kind"] == "step"] == list(range(1, 13))
    assert [event["epoch"] for event in durable if event["kind"] == "epoch"] == [1, 2]
    assert durable[-1]["state"] == "COMPLETED"
    overall = [event["overall"] for event in events]
    assert overall == sorted(overall)
    assert last["type"] == "result"
    assert last["training_id"] == first["training_id"]
    assert last["placement"]["mode"] == "host"
    assert 0 < last["result"]["test_metrics"]["majority_baseline_accuracy"] < 1
    assert Path(last["result"]["model_path"], "model.safetensors").is_file()


def test_plain_training_prints_lines_metrics_baseline_and_what_to_type_next(cli: Cli) -> None:
    ran = cli.run(
        "models", "train", STRATEGY, "--mode", "local", "--epochs", "2", "--set", "model.training.batch_size=64"
    )
    assert ran.code == 0, ran.err
    for text in ("step 7/12  Training model", "epoch 2/2", "rows/s", "baseline", "majority baseline", "\x1b"):
        assert (text in ran.out) == (text != "\x1b"), text
    assert f"next   ktrdr --data-dir {cli.data_dir} models predict neuro_mean_reversion/EURUSD_1h_v" in ran.out


def test_watch_and_show_of_an_ended_training_tell_its_end(here: Here, trained: Ran) -> None:
    training_id = trained.lines[-1]["training_id"]
    watched = here("watch", training_id[:8])
    assert watched.code == 0
    assert "step 12/12" in watched.out
    shown = here("show", training_id, "--json")
    assert shown.code == 0
    assert {**shown.lines[0], "type": "result"} == trained.lines[-1]
    assert training_id in here("list").out


def test_show_tells_the_story_of_a_training(here: Here, trained: Ran) -> None:
    result = trained.lines[-1]
    training_id = result["training_id"]
    (attempt,) = result["sessions"]
    assert (attempt["attempt"], attempt["outcome"], attempt["is_fenced"]) == (1, "COMPLETED", False)
    assert attempt["reasons"]
    assert attempt["start_time"] < attempt["end_time"]
    shown = here("show", training_id).out
    for text in (
        "asked for",
        "attempts",
        f"1  on {attempt['trainer']}",
        "history (UTC)",
        "result",
        "majority baseline",
    ):
        assert text in shown, text
    history = [line.split()[3:] for line in shown.partition("history (UTC)")[2].splitlines()[2:6]]
    assert [words[0].rstrip(":") for words in history[:3]] == ["queued", "running", "uploading"]
    events = here("show", training_id, "--events", "--json").lines[1:]
    durable = [line for line in trained.lines if line["type"] == "event" and line["kind"] != "batch"]
    assert events == durable


def test_training_cancelled_by_request_id_before_it_arrives_is_cancelled_as_it_does(here: Here) -> None:
    early = here("cancel", "--request-id", "cancelled-early")
    assert (early.code, "has arrived" in early.out) == (0, True), early.err
    ran = here("train", STRATEGY, "--detach", "--request-id", "cancelled-early")
    assert ran.code == 4, ran.err
    assert here("show", ran.out.strip(), "--json").lines[0]["state"] == "CANCELLED"


def test_same_request_id_again_is_the_same_training_and_other_content_is_refused(here: Here) -> None:
    words = ("train", STRATEGY, "--detach", "--epochs", "1", "--request-id", "twice")
    first, second = here(*words), here(*words)
    assert (first.code, second.out) == (0, first.out)
    other = here(*words, "--seed", "7")
    assert (other.code, "twice" in other.err) == (2, True)


def test_queued_trainings_tell_their_place_and_are_cancelled_together(cli: Cli, here: Here) -> None:
    slots = here("config", "get", "--json").lines[0]["local_slots"]
    running = [_detached(cli) for _ in range(slots)]
    words = ("train", STRATEGY, "--mode", "local", *LONG, "--detach", "--user", "alice")
    waiting = [here(*words).out.strip() for _ in range(3)]
    rows = {line["training_id"]: line for line in here("list", "--json").lines}
    places = [rows[each]["queue"]["position"] for each in waiting if rows[each]["queue"]]
    assert places
    assert places == sorted(set(places))
    assert {rows[each]["scheduling"]["user"] for each in waiting} == {"alice"}
    cancelled = here("cancel", "--queued", "--yes", "--json")
    assert cancelled.code == 0, cancelled.err
    several = here("cancel", *running, *(each for each in waiting if rows[each]["queue"] is None))
    assert several.code in (0, 2), several.err
    states = {line["training_id"]: line["state"] for line in here("list", "--json").lines}
    assert {states[each] for each in (*running, *waiting)} == {"CANCELLED"}


def test_training_that_fails_ends_with_code_3_and_its_reason(here: Here) -> None:
    ran = here("train", STRATEGY, "--mode", "local", "--epochs", "1", "--set", "training.labels.zigzag_threshold=0.9")
    assert ran.code == 3, ran.out + ran.err
    assert "failed (DEGENERATE_LABELS)" in ran.err


def test_validate_only_trains_nothing(here: Here) -> None:
    before = len(here("list", "--json").lines)
    ran = here("train", STRATEGY, "--validate-only")
    assert ran.code == 0, ran.err
    assert "is valid; nothing was trained" in ran.out
    assert len(here("list", "--json").lines) == before


# cancel and Ctrl-C


def test_cancelled_training_is_cancelled_for_its_watchers_and_cannot_be_cancelled_twice(cli: Cli, here: Here) -> None:
    training_id = _detached(cli)
    cancelled = cli.run("cancel", training_id)
    assert (cancelled.code, cancelled.out) == (0, f"training {training_id} cancelled\n")
    assert here("watch", training_id).code == 4
    again = here("cancel", training_id)
    assert again.code == 2
    assert "CANCELLED" in again.err


def test_interrupt_without_a_terminal_detaches_and_says_how_to_cancel(cli: Cli, here: Here) -> None:
    with cli.start("train", STRATEGY, "--mode", "local", *LONG) as process:
        assert process.stdout is not None
        seen = ""
        while "epoch 1/" not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    training_id = seen.split("training ", 1)[1].split()[0]
    assert f"cancel {training_id}" in err
    stopped = here("cancel", training_id, "--save-checkpoint", "--json")
    assert stopped.code == 0
    assert stopped.lines[0]["state"] == "STOPPED", stopped.lines[0]["message"]
    assert Path(stopped.lines[0]["checkpoint_path"]).is_file()


def test_ctrl_c_on_a_terminal_asks_and_a_second_one_detaches(cli: Cli, here: Here) -> None:
    terminal = Terminal(cli, "train", STRATEGY, "--mode", "local", *LONG)
    terminal.wait_for("rows/s")
    terminal.interrupt()
    terminal.wait_for("detach (d), stop with a checkpoint (s), cancel (c)")
    terminal.interrupt()
    terminal.wait_for("goes on")
    assert terminal.close() == 130
    running = [each for each in here("list", "--json").lines if each["state"] == "RUNNING"]
    assert len(running) == 1
    # Watch it, go on once, then cancel it from the terminal.
    terminal = Terminal(cli, "watch", running[0]["training_id"])
    terminal.wait_for("rows/s")
    terminal.interrupt()
    terminal.wait_for("go on watching (Enter)?")
    terminal.type("\n")
    terminal.wait_for("rows/s")
    terminal.interrupt()
    terminal.wait_for("go on watching (Enter)?")
    terminal.type("c\n")
    assert terminal.close() == 4
    assert "cancelled" in terminal.shown


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nope.yaml"), "no strategy file nope.yaml"),
        (("train", "../x"), "no strategy file ../x"),
        (("train", STRATEGY, "--symbols", "../x"), "'../x'"),
        (("train", STRATEGY, "--symbols", "XAUUSD"), "EURUSD"),
        (("train", STRATEGY, "--timeframes", "7x"), "7x"),
        (("train", STRATEGY, "--start", "2017-06-01", "--end", "2017-05-01"), "is after end_date"),
        (("train", STRATEGY, "--start", "1999-01-01"), "1999-01-01"),
        (("train", STRATEGY, "--start", "2017-12-28"), "bars"),
        (("train", STRATEGY, "--batch-size", "0"), "batch_size must be at least 1, was 0"),
        (("train", STRATEGY, "--set", "indicators[0].perod=3"), "period"),
        (("train", STRATEGY, "--set", "model.type=lstmx"), "'gru' or 'transformer', was 'lstmx'"),
        (("train", STRATEGY, "--mode", "moon"), "--mode must be one of 'auto', 'local', 'host', was 'moon'"),
        (("train", STRATEGY, "--batch-size", "x"), "--batch-size must be a whole number, was 'x'"),
        (("list", "--limit", "0"), "--limit must be at least 1, was '0'"),
        (("train",), "Missing argument"),
        (("train", STRATEGY, "--backend", "x:1"), "--backend goes before the command"),
        (("show", "00000000"), "no training 00000000"),
        (("cancel", "00000000-0000-4000-8000-000000000000"), "00000000-0000-4000-8000-000000000000"),
        (("models", "show", "nothing"), "nothing"),
        (("models", "predict", "./nothing"), "no model directory"),
        (("config", "set", "default_mode", "moon"), "auto, local, host"),
        (("strategies", "validate", "pyproject.toml"), "pyproject.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_sentence_and_code_2(here: Here, arguments: tuple[str, ...], message: str) -> None:
    ran = here(*arguments)
    assert ran.code == 2, ran.out + ran.err
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("ktrdr: ")
    assert ran.out == ""


def test_bad_input_with_json_is_also_an_error_object(here: Here) -> None:
    ran = here("train", STRATEGY, "--epochs", "0", "--json")
    assert ran.code == 2
    assert ran.lines == [
        {
            "type": "error",
            "reason": "INVALID_SPEC",
            "message": "epochs must be at least 1, was 0",
            "exit_code": 2,
            "metadata": {},
            "violations": [{"field": "spec.epochs", "description": "epochs must be at least 1, was 0"}],
        }
    ]


def test_wrong_usage_with_json_is_also_an_error_object(here: Here) -> None:
    ran = here("train", STRATEGY, "--batch-size", "x", "--json")
    assert ran.code == 2
    (line,) = ran.lines
    assert (line["type"], line["reason"], line["exit_code"]) == ("error", "INVALID_INPUT", 2)
    assert line["message"] == "--batch-size must be a whole number, was 'x'; see ktrdr train --help"


def test_unreachable_backend_is_code_5_and_says_what_to_do(here: Here) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = here("--backend", address, "list")
    assert ran.code == 5
    assert f"the backend at {address} cannot be reached" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_debug_shows_the_traceback(cli: Cli) -> None:
    ran = cli.run("--debug", "train", "nope.yaml")
    assert "Traceback" in ran.err
    assert "StrategyNotFoundError" in ran.err


# The other commands


def test_models_are_listed_shown_and_predict_by_name_and_by_path(here: Here, trained: Ran) -> None:
    path = trained.lines[-1]["result"]["model_path"]
    name = f"neuro_mean_reversion/{Path(path).name}"
    assert name in [line["name"] for line in here("models", "list", "--json").lines]
    shown = here("models", "show", name)
    assert shown.code == 0
    assert path in shown.out
    dates = ("--symbol", "EURUSD", "--start", "2017-12-29", "--end", "2017-12-29", "--json")
    by_name = here("models", "predict", name, *dates)
    assert by_name.code == 0, by_name.err
    assert len(by_name.lines) == 22
    for line in by_name.lines:
        assert line["time"].startswith("2017-12-29T")
        assert sum(line["probabilities"].values()) == pytest.approx(1.0)
        best = max(line["probabilities"], key=lambda key: line["probabilities"][key])
        assert set(line) == {"type", "symbol", "time", "decision", "class", "probabilities", "predicted_return"}
        assert line["predicted_return"] is None
        assert line["class"] == best
        assert line["decision"] == (best if line["probabilities"][best] >= 0.45 else "HOLD")
    outside = here("models", "predict", path, "--start", "2030-01-01")
    assert outside.code == 2
    assert "2017-12-29" in outside.err


def test_predict_begins_where_the_training_began(here: Here) -> None:
    """So that the test part gets the answers that were judged; days before the training have the bars before them."""
    trained = here("train", STRATEGY, "--start", "2017-03-01", "--epochs", "1", "--json")
    path = trained.lines[-1]["result"]["model_path"]
    first_days = here("models", "predict", path, "--start", "2017-03-01", "--end", "2017-03-02", "--json")
    warm_up_bars = 37
    assert len(first_days.lines) == 48 - warm_up_bars
    assert first_days.lines[0]["time"] == "2017-03-02T13:00:00Z"
    days_before = here("models", "predict", path, "--start", "2017-02-27", "--end", "2017-02-28", "--json")
    assert len(days_before.lines) == 48


def test_predict_away_from_the_bars_reads_those_of_the_backend(cli: Cli, trained: Ran, tmp_path: Path) -> None:
    name = f"neuro_mean_reversion/{Path(trained.lines[-1]['result']['model_path']).name}"
    with cli.start("models", "predict", name, "--json", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 24


def test_config_set_tells_the_mode_before_and_now(here: Here) -> None:
    assert here("config", "set", "default_mode", "local").out == "default_mode: auto -> local\n"
    assert here("config", "get", "--json").lines[0]["default_mode"] == "local"
    assert here("config", "set", "default_mode", "auto").out == "default_mode: local -> auto\n"


def test_trainers_and_strategies_are_listed_with_their_health_and_status(here: Here, trained: Ran) -> None:
    (trainer,) = here("trainers", "--json").lines
    assert trainer["is_healthy"] is True
    assert trainer["num_slots"] >= 1
    assert trainer["torch_version"]
    assert trainer["silence_s"] < 10
    strategies = {line["name"]: line for line in here("strategies", "list", "--json").lines}
    assert strategies["neuro_mean_reversion"]["status"] == "trained"


def test_drained_trainer_gets_no_sessions_until_it_is_undrained(here: Here) -> None:
    (trainer,) = here("trainers", "--json").lines
    drained = here("trainers", "drain", trainer["trainer_id"][:8])
    assert (drained.code, "gets no new sessions" in drained.out) == (0, True), drained.err
    assert "healthy, draining" in here("trainers").out
    undrained = here("trainers", "undrain", trainer["address"])
    assert undrained.out == f"{trainer['address']} gets sessions again\n"


def test_doctor_finds_the_embedded_pair_well(here: Here) -> None:
    ran = here("doctor", "--json")
    assert ran.code == 0, ran.out
    found = {line["name"].split()[0]: line for line in ran.lines}
    for name in (
        "client",
        "torch",
        "embedded",
        "backend",
        "version",
        "keepalive",
        "trainer",
        "clock",
        "strategies",
        "bars",
    ):
        assert found[name]["status"] == "ok", found[name]


def test_strategy_file_is_validated_without_a_backend(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "never made")
    ran = cli.run("strategies", "validate", STRATEGY)
    assert ran.code == 0, ran.err
    assert not cli.data_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], ["torch", "grpc", "google", "pandas", "numpy", "pydantic", "yaml"]),
        (["train", "--help"], ["torch", "grpc", "google", "pandas", "numpy", "yaml"]),  # typer itself loads pydantic
    ],
    ids=str,
)
def test_help_loads_nothing_heavy(arguments: list[str], heavy: list[str]) -> None:
    code = (
        "import sys, json; from ktrdr_client.__main__ import main; arguments, heavy = map(json.loads, sys.argv[1:]);"
        "sys.argv[1:] = arguments; main(); found = set(heavy) & set(sys.modules); sys.exit(repr(found) if found else 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments), json.dumps(heavy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_pipe_closed_by_its_reader_is_no_error(cli: Cli) -> None:
    with cli.start("train", "--help") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
