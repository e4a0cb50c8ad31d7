"""`ktrdr data import`, `list` and `check` as they are typed; no backend is started."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ktrdr_client.cli.run import run

from ktrdr_core.data.bar_store import DirectoryBarStore
from tests.kit.builders import bars_csv, make_bars, write_bars_csv
from tests.kit.cli import Cli, Ran
from tests.kit.eventually import PATIENCE_S

BARS = make_bars(400)
Data = Callable[..., Ran]


@pytest.fixture
def data(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Data:
    """Run `ktrdr data ...` in this process, in a directory of its own, with its store in `bars`."""
    monkeypatch.setenv("KTRDR_BARS_DIR", "bars")
    monkeypatch.delenv("KTRDR_BACKEND", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = run(["--data-dir", str(tmp_path / "state"), "data", *arguments])
        captured = capsys.readouterr()
        assert not (tmp_path / "state").exists()
        return Ran(code, captured.out, captured.err)

    return call


def test_import_tells_what_it_understood_and_stores_it(data: Data, tmp_path: Path) -> None:
    write_bars_csv(tmp_path, BARS)
    ran = data("import", "EURUSD_1h.csv", "--symbol", "EURUSD", "--timeframe", "1h", "--yes")
    assert ran.code == 0, ran.err
    for part in ("CSV, comma, header; times are ISO 8601 with a zone", "time timestamp, open open", "EURUSD 1h   400"):
        assert part in ran.out
    assert f"imported EURUSD 1h into {tmp_path}/bars: 400 bars" in ran.out
    assert DirectoryBarStore(tmp_path / "bars").load("EURUSD", "1h").digest() == BARS.digest()


def test_json_of_an_import_is_one_object(data: Data, tmp_path: Path) -> None:
    lines = bars_csv(BARS).splitlines()
    (tmp_path / "x.csv").write_text("\n".join([*lines, lines[-1]]))
    ran = data("import", "x.csv", "--symbol", "EURUSD", "--timeframe", "1h", "--yes", "--repair", "--json")
    assert ran.code == 0, ran.err
    (line,) = ran.lines
    assert list(line) == ["type", "bars_dir", "files", "timezone", "repairs", "series"]
    assert line["type"] == "data_import"
    assert line["files"][0]["columns"]["close"] == "close"
    assert line["series"] == [
        {
            "symbol": "EURUSD",
            "timeframe": "1h",
            "num_bars": 400,
            "num_stored_before": 0,
            "first_time": "2017-01-01T22:00:00Z",
            "last_time": "2017-01-18T13:00:00Z",
            "usual_step": "1h",
            "repairs": {"rows equal to another of the same time were dropped": 1},
        }
    ]


def test_repairs_are_reported(data: Data, tmp_path: Path) -> None:
    lines = bars_csv(BARS).splitlines()
    lines[9] = lines[9].replace(",1.", ",x.", 1)
    lines[12] = lines[12].replace(",1.", ",-1.", 1)
    (tmp_path / "x.csv").write_text("\n".join(lines))
    ran = data("import", "x.csv", "--symbol", "EURUSD", "--timeframe", "1h", "--yes", "--repair")
    assert ran.code == 0, ran.err
    assert "repaired: 1 rows that cannot be read were dropped" in ran.out
    assert "repaired EURUSD: 1 impossible bars were dropped" in ran.out


def test_every_option_reaches_the_import(data: Data, tmp_path: Path) -> None:
    bars = make_bars(24)
    lines = [line.replace("Z,", ",", 1) for line in bars_csv(bars).splitlines()]
    lines[0] = "wann,o,h,l,c,menge"
    (tmp_path / "x.csv").write_text("\n".join(lines))
    arguments = [
        "import",
        "x.csv",
        "--symbol",
        "A",
        "--timeframe",
        "1h",
        "--yes",
        "--columns",
        "time=wann,volume=menge",
    ]
    options = ["--scale", "price=2,volume=1000", "--timezone", "Europe/Athens", "--time-format", "iso"]
    ran = data(*arguments, *options, "--bars-dir", "other")
    assert ran.code == 0, ran.err
    assert "times have no zone of their own and are taken as Europe/Athens" in ran.out
    stored = DirectoryBarStore(tmp_path / "other").load("A", "1h")
    assert stored.close.tolist() == (bars.close * 2).tolist()
    assert stored.volume.tolist() == (bars.volume * 1000).tolist()
    assert (stored.times == bars.times - 2 * 3600 * 10**9).all()
    assert data(*arguments, *options, "--bars-dir", "other", "--merge").code == 0
    assert data(*arguments, *options, "--bars-dir", "other", "--replace").code == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.csv", "--symbol", "A", "--timeframe", "1h"], "none.csv: is no file; give the path of a CSV or Parquet"),
        (["EURUSD_1h.csv", "--timeframe", "1h"], "--symbol is needed"),
        (["EURUSD_1h.csv", "--symbol", "A"], "Missing option '--timeframe'"),
        (["EURUSD_1h.csv", "--symbol", "../A", "--timeframe", "1h"], "--symbol must be 1 to 128 letters"),
        (["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1x"], "a timeframe must be a number and one of"),
        (
            ["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "4h"],
            "EURUSD_1h.csv, row 2 (2017-01-01T23:00:00Z): bar opens",
        ),
        (["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1h", "--timezone", "X"], "--timezone must be an IANA name"),
        (["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1h", "--columns", "x=y"], "--columns must be ROLE=COLUMN"),
        (["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1h", "--columns", "open=y"], "has no column 'y'"),
        (
            ["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1h", "--scale", "price=0"],
            "--scale must be COLUMN=FACTOR",
        ),
        (["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1h", "--scale", "size=1"], "--scale must be COLUMN=FACTOR"),
        (["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1h", "--time-format", "%Q"], "--time-format must be iso"),
        (
            ["EURUSD_1h.csv", "--symbol", "A", "--timeframe", "1h", "--merge", "--replace"],
            "exclude each other; give one",
        ),
    ],
)
def test_refused_import_is_one_sentence_and_stores_nothing(
    data: Data, tmp_path: Path, arguments: list[str], text: str
) -> None:
    write_bars_csv(tmp_path, BARS)
    ran = data("import", *arguments, "--yes")
    assert ran.code == 2
    assert text in ran.err
    assert ran.err.count("\n") == 1
    assert DirectoryBarStore(tmp_path / "bars").list_series() == []


def test_without_a_terminal_an_import_needs_yes(tmp_path: Path) -> None:
    write_bars_csv(tmp_path, BARS)
    cli = Cli(tmp_path / "state")
    words = ["data", "import", str(tmp_path / "EURUSD_1h.csv"), "--symbol", "EURUSD", "--timeframe", "1h"]
    ran = cli.run(*words, "--bars-dir", str(tmp_path / "bars"))
    assert ran.code == 2
    assert "EURUSD 1h" in ran.out
    assert "there is no terminal to confirm on; add --yes" in ran.err
    assert DirectoryBarStore(tmp_path / "bars").list_series() == []


@pytest.mark.parametrize(("answer", "code", "num_series"), [(b"y\n", 0, 1), (b"n\n", 4, 0)])
def test_on_a_terminal_an_import_asks(tmp_path: Path, answer: bytes, code: int, num_series: int) -> None:
    write_bars_csv(tmp_path, BARS)
    cli = Cli(tmp_path / "state")
    words = ["data", "import", str(tmp_path / "EURUSD_1h.csv"), "--symbol", "EURUSD", "--timeframe", "1h"]
    ours, theirs = pty.openpty()
    try:
        with cli.start(*words, "--bars-dir", str(tmp_path / "bars"), stdin=theirs) as process:
            os.write(ours, answer)
            out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == code, err
    assert "Import into" in out
    assert ("nothing was imported" in err) == (code == 4)
    assert len(DirectoryBarStore(tmp_path / "bars").list_series()) == num_series


def test_list_shows_what_each_series_holds(data: Data, tmp_path: Path) -> None:
    assert "no bars in " in data("list").out
    write_bars_csv(tmp_path, BARS)
    data("import", "EURUSD_1h.csv", "--symbol", "EURUSD", "--timeframe", "1h", "--yes")
    write_bars_csv(tmp_path / "bars", make_bars(30, symbol="XAUUSD"))
    (tmp_path / "bars" / "BROKEN_1h.csv").write_text("")
    ran = data("list")
    assert ran.code == 0
    assert "EURUSD   1h          partitioned   400    2017-01-01    2017-01-18" in ran.out
    assert "XAUUSD   1h          csv           30     2017-01-01    2017-01-03" in ran.out
    assert "BROKEN_1h.csv: is empty" in ran.out
    lines = data("list", "--json").lines
    assert [line["symbol"] for line in lines] == ["BROKEN", "EURUSD", "XAUUSD"]
    assert lines[1] == {
        "type": "series",
        "symbol": "EURUSD",
        "timeframe": "1h",
        "file_format": "partitioned",
        "num_bars": 400,
        "first_day": "2017-01-01",
        "last_day": "2017-01-18",
        "error": "",
    }


def test_check_tells_errors_by_its_exit_code_and_warnings_only_if_strict(data: Data, tmp_path: Path) -> None:
    store = tmp_path / "bars"
    write_bars_csv(store, make_bars(100))
    assert data("check").code == 0
    assert "nothing found" in data("check").out
    lines = bars_csv(make_bars(100, symbol="GAP")).splitlines()
    (store / "GAP_1h.csv").write_text("\n".join([*lines[:50], *lines[60:]]))
    ran = data("check", "GAP")
    assert ran.code == 0
    assert "warning  gap: 1" in ran.out
    assert "nothing for 10h" in ran.out
    assert data("check", "GAP", "--strict").code == 3
    assert data("check", "EURUSD", "1h", "--strict").code == 0
    (store / "BAD_1h.csv").write_text("\n".join(lines).replace(",1.", ",-1.", 1))
    ran = data("check")
    assert ran.code == 3
    assert "error  impossible_bar: 1" in ran.out
    by_symbol = {line["symbol"]: line for line in data("check", "--json").lines}
    assert by_symbol["BAD"]["findings"][0]["severity"] == "error"
    assert by_symbol["GAP"]["num_warnings"] == 1
    assert by_symbol["EURUSD"]["findings"] == []


@pytest.mark.parametrize("arguments", [["XAUUSD"], ["XAUUSD", "1h"], []])
def test_check_of_a_series_that_is_not_there_is_refused(data: Data, arguments: list[str]) -> None:
    ran = data("check", *arguments)
    assert ran.code == 2
    assert "no bars " in ran.err


def test_error_as_json(data: Data) -> None:
    ran = data("import", "none.csv", "--symbol", "A", "--timeframe", "1h", "--yes", "--json")
    assert json.loads(ran.out)["reason"] == "INVALID_BARS"


def test_data_commands_load_neither_grpc_nor_torch(tmp_path: Path) -> None:
    write_bars_csv(tmp_path, BARS)
    code = (
        "import sys; from ktrdr_client.cli.run import run; "
        f"run(['data', 'check', '--bars-dir', {str(tmp_path)!r}]); "
        "print(sorted({'grpc', 'torch', 'numba', 'talib', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
