from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore, SeriesInfo
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.errors import InvalidBarsError, InvalidInputError, SeriesNotFoundError
from tests.kit.builders import REPOSITORY, bars_csv, make_bars, write_bars_csv


def write_parquet(path: Path, bars: Bars, *, zone: str | None = "UTC") -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"time": pa.array(bars.times, pa.timestamp("ns", tz=zone))}
    columns |= {name: pa.array(getattr(bars, name)) for name in BAR_COLUMNS}
    parquet.write_table(pa.table(columns), path)


def changed_csv(directory: Path, row: int, old: str, new: str) -> DirectoryBarStore:
    """Write a file of bars in which the first `old` of data row `row` is `new`."""
    lines = bars_csv(make_bars(30)).splitlines()
    assert old in lines[row]
    lines[row] = lines[row].replace(old, new, 1)
    (directory / "EURUSD_1h.csv").write_text("\n".join(lines))
    return DirectoryBarStore(directory)


def test_csv_reads_back_bit_for_bit(tmp_path: Path) -> None:
    bars = make_bars(200)
    write_bars_csv(tmp_path, bars)
    assert DirectoryBarStore(tmp_path).load("EURUSD", "1h").digest() == bars.digest()


def test_parquet_reads_back_bit_for_bit(tmp_path: Path) -> None:
    bars = make_bars(200)
    write_parquet(tmp_path / "EURUSD_1h.parquet", bars)
    assert DirectoryBarStore(tmp_path).load("EURUSD", "1h").digest() == bars.digest()


def test_shipped_bars_are_what_they_were() -> None:
    bars = DirectoryBarStore(REPOSITORY / "data").load("EURUSD", "1h")
    assert len(bars) == 6225
    assert (str(bars.first_day), str(bars.last_day)) == ("2017-01-01", "2017-12-29")
    text = (REPOSITORY / "data" / "EURUSD_1h.csv").read_text().splitlines()
    rows = np.array([line.split(",")[1:] for line in text[1:]], dtype=np.float64)
    for index, name in enumerate(BAR_COLUMNS):
        assert np.array_equal(getattr(bars, name), rows[:, index])
    assert (
        hashlib.sha256("\n".join(text).encode()).hexdigest()
        == "3f74006bba380c6715f4efa9271ea8e38c1267f09c2c0da8a7181e537aa807b7"
    )


def test_series_are_listed_by_file_name(tmp_path: Path) -> None:
    write_bars_csv(tmp_path, make_bars(5, symbol="GBP_USD", timeframe="4h"))
    write_bars_csv(tmp_path, make_bars(5))
    for other in ("README.md", "notes.csv", "EURUSD_hourly.csv", "EURUSD_1h.txt", ".._1h.csv"):
        (tmp_path / other).write_text("")
    (tmp_path / "AUDUSD_1h.csv").mkdir()
    assert DirectoryBarStore(tmp_path).list_series() == [
        SeriesInfo("EURUSD", "1h", "csv"),
        SeriesInfo("GBP_USD", "4h", "csv"),
    ]


def test_unknown_series_says_which_exist(tmp_path: Path) -> None:
    store = DirectoryBarStore(tmp_path / "none")
    with pytest.raises(SeriesNotFoundError, match=r"it holds no series; put a file such as EURUSD_1h\.csv there"):
        store.load("EURUSD", "1h")
    write_bars_csv(tmp_path, make_bars(5))
    store = DirectoryBarStore(tmp_path)
    with pytest.raises(SeriesNotFoundError, match=r"no bars for EURUSD 4h .*EURUSD exists in 1h"):
        store.load("EURUSD", "4h")
    with pytest.raises(SeriesNotFoundError, match=r"no bars for GBPUSD 1h .*these exist: EURUSD 1h"):
        store.load("GBPUSD", "1h")


@pytest.mark.parametrize(
    ("symbol", "timeframe"), [("../EURUSD", "1h"), ("", "1h"), ("EURUSD", "../1h"), ("EURUSD", "1x")]
)
def test_symbol_that_is_a_path_is_refused(tmp_path: Path, symbol: str, timeframe: str) -> None:
    with pytest.raises(InvalidInputError):
        DirectoryBarStore(tmp_path).load(symbol, timeframe)


def test_two_files_for_one_series_are_refused(tmp_path: Path) -> None:
    bars = make_bars(5)
    write_bars_csv(tmp_path, bars)
    write_parquet(tmp_path / "EURUSD_1h.parquet", bars)
    with pytest.raises(
        InvalidBarsError, match=r"EURUSD_1h\.csv and EURUSD_1h\.parquet both hold EURUSD 1h; remove one"
    ):
        DirectoryBarStore(tmp_path).load("EURUSD", "1h")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (repr(float(make_bars(30).open[3])), "nan", "open must be a finite number"),
        (repr(float(make_bars(30).open[3])), "", "row 4: open must be a number, was ''"),
        (repr(float(make_bars(30).open[3])), "NA", "row 4: open must be a number, was 'NA'"),
        ("1.0", "1,0", "row 4: Expected 6 columns, got 7"),
        ("1.0", "-1.0", "must be above 0"),
        ("2017-01-02T01:00:00Z", "2017-01-02T00:00:00Z", "time is that of the row before"),
        ("2017-01-02T01:00:00Z", "2016-01-02T01:00:00Z", "time is before that of the row before"),
        ("2017-01-02T01:00:00Z", "2017-01-02T01:00:00", "row 4: "),
        ("2017-01-02T01:00:00Z", "2017-13-02T01:00:00Z", "row 4: "),
        ("2017-01-02T01:00:00Z", "1483318800", "row 4: timestamp must be an ISO 8601 time with its zone, such as"),
    ],
)
def test_broken_csv_is_refused_with_file_row_and_reason(tmp_path: Path, old: str, new: str, reason: str) -> None:
    store = changed_csv(tmp_path, 4, old, new)
    with pytest.raises(InvalidBarsError) as caught:
        store.load("EURUSD", "1h")
    assert caught.value.message.startswith("EURUSD_1h.csv, row 4")
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("volume", "vol", "has no column volume"),
        ("timestamp", "date", "has no column timestamp"),
        ("volume", "volume,extra", ""),
        ("open,high", "open,open", "has no column high"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, old: str, new: str, reason: str) -> None:
    store = changed_csv(tmp_path, 0, old, new)
    with pytest.raises(InvalidBarsError, match=f"EURUSD_1h.csv.*{reason}"):
        store.load("EURUSD", "1h")


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"PAR1 no", b"\xff\xfe\x00\x01", b"timestamp,open,high,low,close,volume\n"]
)
@pytest.mark.parametrize("name", ["EURUSD_1h.csv", "EURUSD_1h.parquet"])
def test_file_that_holds_no_bars_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidBarsError, match=name):
        DirectoryBarStore(tmp_path).load("EURUSD", "1h")


def test_empty_csv_says_what_its_first_line_must_be(tmp_path: Path) -> None:
    (tmp_path / "EURUSD_1h.csv").write_bytes(b"")
    with pytest.raises(InvalidBarsError, match="is empty; its first line must be timestamp,open,high,low,close,volume"):
        DirectoryBarStore(tmp_path).load("EURUSD", "1h")


def test_parquet_times_without_a_zone_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "EURUSD_1h.parquet", make_bars(5), zone=None)
    with pytest.raises(InvalidBarsError, match="column time must be times with a zone"):
        DirectoryBarStore(tmp_path).load("EURUSD", "1h")


def test_times_of_another_zone_are_the_same_instants(tmp_path: Path) -> None:
    store = changed_csv(tmp_path, 4, "2017-01-02T01:00:00Z", "2017-01-02T02:00:00+01:00")
    assert np.array_equal(store.load("EURUSD", "1h").times, make_bars(30).times)
