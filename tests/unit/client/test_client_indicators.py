"""`ktrdr indicators`."""

from __future__ import annotations

import json

import pytest
from ktrdr_client.cli.run import run

from ktrdr_core.config.signatures import SIGNATURES
from tests.kit.builders import REPOSITORY


def test_list_has_every_indicator_with_parameters_outputs_and_other_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["indicators"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "outputs", "parameters,", "default", "[range]", "also"]
    assert [line.split()[0] for line in lines] == list(SIGNATURES)
    rows = {line.split()[0]: line for line in lines}
    assert "/middle, /upper, /lower, percent_b, width, level" in rows["bbands"]
    assert "period 20 [2, 10000], num_std 2 [0.1, 20]" in rows["bbands"]
    assert "bollinger_bands" in rows["bbands"]
    assert "adx, di_plus, di_minus" in rows["adx"]


def test_list_says_why_zigzag_is_not_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    run(["indicators"])
    assert "zigzag repaints" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bbands", "BollingerBands", "bollinger-bands"])
def test_one_indicator_is_shown_with_its_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["indicators", name]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("bbands: Bollinger bands. ")
    fields = {line[:23].strip(): line[23:].strip() for line in lines}
    assert fields["published in"] == "J. Bollinger, Bollinger on Bollinger Bands, 2001"
    assert fields["default feature_id"] == "bbands_20"
    assert fields["primary output middle"] == "the moving average; fuzzy sets see close divided by it"
    assert fields["output percent_b"] == "0 on the lower band, 1 on the upper one"
    assert fields["parameter period"].startswith("20 [2, 10000], whole number, also length")


def test_json_lines_have_what_a_program_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["indicators", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == list(SIGNATURES)
    page = (REPOSITORY / "docs" / "cli.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith("| `indicator` |"))
    assert ["type", *row.split("`")[-2].split(", ")] == list(lines[0])
    macd = next(line for line in lines if line["name"] == "macd")
    assert macd["type"] == "indicator"
    assert [output["name"] for output in macd["outputs"]] == ["line", "signal", "hist"]
    assert macd["parameters"][0] == {
        "name": "fast_period",
        "default": 12,
        "minimum": 2,
        "maximum": 10_000,
        "is_whole": True,
        "aliases": ["fast", "fastperiod", "fast_length"],
    }
    assert macd["warm_up_bars"] == 33


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("rsj", "unknown indicator 'rsj'; did you mean 'rsi'?"), ("ZigZag", "zigzag repaints: later bars move")],
)
def test_what_is_no_indicator_is_refused(name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["indicators", name, "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"ktrdr: {sentence}")
    assert json.loads(shown.out)["type"] == "error"
