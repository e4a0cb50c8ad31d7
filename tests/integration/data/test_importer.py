"""Imports: what is understood, refused, repaired, merged, and that the store holds exactly the bars of the files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import BAR_COLUMNS, Bars, time_text
from ktrdr_core.data.column_roles import parse_columns, parse_scale
from ktrdr_core.data.directory_lock import DirectoryLock
from ktrdr_core.data.importer import LOCK_FILE, STAGING_PREFIX, IfExists, ImportRequest, StagedImport, stage_import
from ktrdr_core.data.time_formats import parse_time_format
from ktrdr_core.errors import AlreadyExistsError, IllegalStateError, InvalidBarsError, InvalidInputError
from tests.kit.builders import bars_csv, make_bars, write_bars_csv

BARS = make_bars(400)  # two weeks and more, from Sunday 2017-01-01 22:00


def request(store: Path, *files: Path, **changes: Any) -> ImportRequest:
    values: dict[str, Any] = {"symbol": "EURUSD", "timeframe": "1h"} | changes
    return ImportRequest(files=files, store=store, **values)


def run_import(store: Path, *files: Path, **changes: Any) -> StagedImport:
    with stage_import(request(store, *files, **changes)) as staged:
        staged.publish()
    return staged


def stored(store: Path, symbol: str = "EURUSD", timeframe: str = "1h") -> Bars:
    return DirectoryBarStore(store).load(symbol, timeframe)


def is_clean(store: Path) -> bool:
    """Whether an import left nothing behind but the store's own."""
    return not list(store.glob(f"{STAGING_PREFIX}*")) and not list(store.glob("*/.*"))


def rows_text(bars: Bars, row: Callable[[str, list[str]], str]) -> str:
    """Return a line for each bar, made of its time and its values as text."""
    columns = [getattr(bars, name).tolist() for name in BAR_COLUMNS]
    return "".join(
        row(time_text(time_ns), [repr(value) for value in values]) + "\n"
        for time_ns, *values in zip(bars.times.tolist(), *columns, strict=True)
    )


def iso_lines(bars: Bars = BARS) -> list[str]:
    return bars_csv(bars).splitlines()


def write(path: Path, text: str | list[str], encoding: str = "utf-8") -> Path:
    path.write_bytes(("\n".join(text) + "\n" if isinstance(text, list) else text).encode(encoding))
    return path


def metatrader(bars: Bars, *, header: bool = True) -> str:
    def row(time: str, values: list[str]) -> str:
        return "\t".join([time[:10].replace("-", "."), time[11:19], *values[:4], values[4], "0", "3"])

    names = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\n"
    return (names if header else "") + rows_text(bars, row)


LAYOUTS: dict[str, Callable[[Bars], tuple[str, str]]] = {
    "iso": lambda bars: (bars_csv(bars), "utf-8"),
    "crlf and byte order mark": lambda bars: (bars_csv(bars).replace("\n", "\r\n"), "utf-8-sig"),
    "capitals, other order": lambda bars: (
        "Volume,Close,Low,High,Open,Date\n"
        + rows_text(bars, lambda time, v: ",".join([v[4], v[3], v[2], v[1], v[0], time[:19].replace("T", " ")])),
        "utf-8",
    ),
    "quoted": lambda bars: (bars_csv(bars).replace("timestamp", '"Open Time"').replace("volume", '"Vol"'), "utf-8"),
    "metatrader 5, utf-16": lambda bars: (metatrader(bars), "utf-16"),
    "metatrader 4, no header": lambda bars: (
        rows_text(bars, lambda time, v: ",".join([time[:10].replace("-", "."), time[11:16], *v])),
        "utf-8",
    ),
    "histdata": lambda bars: (
        rows_text(bars, lambda time, v: ";".join([time[:19].translate({45: None, 58: None}).replace("T", " "), *v])),
        "utf-8",
    ),
    "epoch seconds": lambda bars: (
        "t,o,h,l,c,v\n"
        + rows_text(bars, lambda time, v: ",".join([str(np.datetime64(time[:19], "s").astype(int)), *v])),
        "utf-8",
    ),
    "epoch milliseconds": lambda bars: (
        "open_time,open,high,low,close,volume,close_time\n"
        + rows_text(bars, lambda time, v: ",".join([str(np.datetime64(time[:19], "ms").astype(int)), *v, "0"])),
        "utf-8",
    ),
    "day first, decimal comma": lambda bars: (
        "Gmt time;Open;High;Low;Close;Volume\n"
        + rows_text(
            bars,
            lambda time, v: ";".join(
                [f"{time[8:10]}.{time[5:7]}.{time[:4]} {time[11:19]}.000", *(each.replace(".", ",") for each in v)]
            ),
        ),
        "utf-8",
    ),
    "month first, no leading zeros": lambda bars: (
        "date,time,open,high,low,close,volume\n"
        + rows_text(
            bars,
            lambda time, v: ",".join(
                [f"{int(time[5:7])}/{int(time[8:10])}/{time[:4]}", f"{int(time[11:13])}:{time[14:16]}", *v]
            ),
        ),
        "utf-8",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_usual_layout_is_understood_to_the_bit(tmp_path: Path, layout: str) -> None:
    text, encoding = LAYOUTS[layout](BARS)
    staged = run_import(tmp_path / "store", write(tmp_path / "bars.csv", text, encoding))
    assert stored(tmp_path / "store").digest() == BARS.digest()
    (series,) = staged.series
    assert (series.num_bars, series.num_stored_before, series.usual_step, series.repairs) == (400, 0, "1h", {})
    assert (series.first_time, series.last_time) == (time_text(int(BARS.times[0])), time_text(int(BARS.times[-1])))
    assert is_clean(tmp_path / "store")


def test_what_was_understood_is_told(tmp_path: Path) -> None:
    staged = run_import(tmp_path / "store", write(tmp_path / "mt5.csv", metatrader(BARS), "utf-16"))
    (file,) = staged.files
    assert file.layout == "CSV, tab, header, utf-16; times are %Y.%m.%d %H:%M:%S"
    assert file.columns["time"] == "<DATE>+<TIME>"
    assert file.columns["volume"] == "<TICKVOL>"
    assert file.notes == (
        "volume is taken from <TICKVOL>, not from <VOL> (--columns chooses)",
        "not read: <VOL>, <SPREAD>",
    )
    assert (file.num_rows, staged.timezone) == (400, "UTC")


def test_compressed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv.gz"
    path.write_bytes(gzip.compress(bars_csv(BARS).encode()))
    run_import(tmp_path / "store", path)
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_volume_may_be_missing_and_is_then_told_to_be_zero(tmp_path: Path) -> None:
    lines = [line.rpartition(",")[0] for line in iso_lines()]
    staged = run_import(tmp_path / "store", write(tmp_path / "bars.csv", lines))
    assert not stored(tmp_path / "store").volume.any()
    assert "there is no volume: it is 0 in every bar" in staged.files[0].notes[0]


def test_columns_are_named_by_hand(tmp_path: Path) -> None:
    lines = iso_lines()
    lines[0] = "wann,auf,hoch,tief,zu,menge"
    path = write(tmp_path / "bars.csv", lines)
    with pytest.raises(
        InvalidBarsError, match=r"no column for time, open, high, low, close; its columns are wann, auf"
    ):
        run_import(tmp_path / "store", path)
    columns = parse_columns("time=wann,open=auf,high=hoch,low=tief,close=zu,volume=menge")
    run_import(tmp_path / "store", path, columns=columns)
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_columns_of_a_file_without_header_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "bars.csv", [f"{line},7,8" for line in iso_lines()[1:]])
    with pytest.raises(InvalidBarsError, match=r"no header and 8 columns, .* --columns .* time=1,open=2"):
        run_import(tmp_path / "store", path)
    run_import(tmp_path / "store", path, columns=parse_columns("time=1,open=2,high=3,low=4,close=5,volume=6"))
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_scale_multiplies(tmp_path: Path) -> None:
    run_import(tmp_path / "store", write_bars_csv(tmp_path, BARS), scale=parse_scale("price=0.5,volume=1000"))
    bars = stored(tmp_path / "store")
    for name in BAR_COLUMNS:
        factor = 1000 if name == "volume" else 0.5
        assert np.array_equal(getattr(bars, name), getattr(BARS, name) * factor)


def test_local_times_become_utc(tmp_path: Path) -> None:
    text = "time,open,high,low,close,volume\n" + rows_text(BARS, lambda time, v: ",".join([time[:19], *v]))
    staged = run_import(tmp_path / "store", write(tmp_path / "bars.csv", text), timezone="Europe/Athens")
    assert staged.timezone == "Europe/Athens"
    assert np.array_equal(stored(tmp_path / "store").times, BARS.times - 2 * 3600 * 10**9)  # winter: UTC+2


def daylight_saving_file(path: Path, first: str, num_hours: int) -> Path:
    """Write hours as the clocks of New York show them, from `first` on, each once."""
    times = np.datetime64(first) + np.arange(num_hours) * np.timedelta64(1, "h")
    return write(path, ["time,open,high,low,close,volume", *(f"{time},1,1,1,1,1" for time in times.astype(str))])


def test_hour_that_clocks_skip_is_refused_or_dropped(tmp_path: Path) -> None:
    path = daylight_saving_file(tmp_path / "bars.csv", "2017-03-12T00:00:00", 20)
    with pytest.raises(InvalidBarsError, match=r"row 3: 2017-03-12T02:00:00 does not exist in America/New_York"):
        run_import(tmp_path / "store", path, timezone="America/New_York")
    staged = run_import(tmp_path / "store", path, timezone="America/New_York", is_repair=True)
    assert dict(staged.repairs) == {"rows in an hour that the clocks skipped were dropped": 1}
    times = stored(tmp_path / "store").times
    assert (np.diff(times) == 3600 * 10**9).all()
    assert time_text(int(times[2])) == "2017-03-12T07:00:00Z"  # 03:00 EDT


def test_hour_that_clocks_show_twice_is_refused_or_told_apart_by_order(tmp_path: Path) -> None:
    first = daylight_saving_file(tmp_path / "a.csv", "2017-11-05T00:00:00", 2).read_text()
    rest = daylight_saving_file(tmp_path / "b.csv", "2017-11-05T01:00:00", 20).read_text().partition("\n")[2]
    path = write(tmp_path / "bars.csv", first + rest)
    with pytest.raises(InvalidBarsError, match=r"row 2: 2017-11-05T01:00:00 is two instants in America/New_York"):
        run_import(tmp_path / "store", path, timezone="America/New_York")
    staged = run_import(tmp_path / "store", path, timezone="America/New_York", is_repair=True)
    assert dict(staged.repairs) == {"rows in an hour that the clocks showed twice were told apart by their order": 2}
    times = stored(tmp_path / "store").times
    assert len(times) == 22
    assert (np.diff(times) == 3600 * 10**9).all()


def test_day_and_month_that_cannot_be_told_apart_are_asked_for(tmp_path: Path) -> None:
    bars = make_bars(24)
    text = "time,open,high,low,close,volume\n" + rows_text(
        bars, lambda time, v: ",".join([f"{time[8:10]}/{time[5:7]}/{time[:4]} {time[11:16]}", *v])
    )
    path = write(tmp_path / "bars.csv", text)
    with pytest.raises(
        InvalidBarsError, match=r"the day or with the month first; say which with --time-format '%d/%m/%Y"
    ):
        run_import(tmp_path / "store", path)
    run_import(tmp_path / "store", path, time_format=parse_time_format("%d/%m/%Y %H:%M"))
    assert stored(tmp_path / "store").digest() == bars.digest()


# Several files, several symbols


def test_files_of_one_series_may_come_in_any_order(tmp_path: Path) -> None:
    lines = iso_lines()
    parts = [
        write(tmp_path / f"{index}.csv", [lines[0], *lines[1 + 100 * index : 101 + 100 * index]]) for index in range(4)
    ]
    run_import(tmp_path / "store", parts[2], parts[0], parts[3], parts[1])
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_files_that_overlap_are_refused_with_file_and_row(tmp_path: Path) -> None:
    lines = iso_lines()
    first = write(tmp_path / "a.csv", lines[:101])
    second = write(tmp_path / "b.csv", [lines[0], *lines[100:]])
    with pytest.raises(InvalidBarsError, match=r"b\.csv, row 1 \(.*\): time is that of the row before"):
        run_import(tmp_path / "store", first, second)
    staged = run_import(tmp_path / "store", first, second, is_repair=True)
    assert staged.series[0].repairs == {"rows equal to another of the same time were dropped": 1}
    assert stored(tmp_path / "store").digest() == BARS.digest()


def two_symbols(path: Path) -> tuple[Path, Bars, Bars]:
    eur, gbp = make_bars(50), make_bars(50, 8, symbol="GBPUSD")
    lines = [f"{line},{bars.symbol}" for bars in (gbp, eur) for line in iso_lines(bars)[1:]]
    return write(path, ["timestamp,open,high,low,close,volume,Ticker", *lines]), eur, gbp


def test_column_of_symbols_makes_a_series_of_each(tmp_path: Path) -> None:
    path, eur, gbp = two_symbols(tmp_path / "both.csv")
    staged = run_import(tmp_path / "store", path, symbol=None)
    assert [series.symbol for series in staged.series] == ["EURUSD", "GBPUSD"]
    assert stored(tmp_path / "store").digest() == eur.digest()
    assert stored(tmp_path / "store", "GBPUSD").digest() == gbp.digest()


def test_symbol_selects_from_a_column_of_symbols(tmp_path: Path) -> None:
    path, _, gbp = two_symbols(tmp_path / "both.csv")
    run_import(tmp_path / "store", path, symbol="GBPUSD")
    assert [info.symbol for info in DirectoryBarStore(tmp_path / "store").list_series()] == ["GBPUSD"]
    assert stored(tmp_path / "store", "GBPUSD").digest() == gbp.digest()
    with pytest.raises(InvalidBarsError, match="has no rows of XAUUSD"):
        run_import(tmp_path / "store", path, symbol="XAUUSD")


def test_symbol_that_is_a_path_is_refused(tmp_path: Path) -> None:
    path, *_ = two_symbols(tmp_path / "both.csv")
    path.write_text(path.read_text().replace("GBPUSD", "../GBPUSD"))
    with pytest.raises(InvalidBarsError, match=r"row 1: symbol must be .* was '\.\./GBPUSD'"):
        run_import(tmp_path / "store", path, symbol=None)
    with pytest.raises(InvalidInputError, match="--symbol must be"):
        run_import(tmp_path / "store", path, symbol="../x")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_parquet_timestamps_of_any_unit_and_zone(tmp_path: Path, unit: str, zone: str | None) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    times = pa.array(BARS.times, pa.timestamp("ns", tz="UTC"))
    column = times.cast(pa.timestamp(unit, tz=zone or "UTC"))
    column = column.cast(pa.timestamp(unit)) if zone is None else column
    prices = {name: pa.array(getattr(BARS, name)) for name in BAR_COLUMNS}
    parquet.write_table(pa.table({"Date": column, **prices}), tmp_path / "bars.parquet")
    run_import(tmp_path / "store", tmp_path / "bars.parquet")
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_parquet_of_text_whole_numbers_and_nulls(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        name: pa.array([1, 1, None, 1], pa.int32() if name == "volume" else pa.float32()) for name in BAR_COLUMNS
    }
    times = pa.array(["2017-01-02", "2017-01-03", "2017-01-04", "2017-01-05"]).dictionary_encode()
    parquet.write_table(pa.table({"time": times, **columns}), tmp_path / "bars.parquet")
    changes = {"symbol": "X", "timeframe": "1d"}
    with pytest.raises(InvalidBarsError, match=r"bars\.parquet, row 3: open must be a number, is missing"):
        run_import(tmp_path / "store", tmp_path / "bars.parquet", **changes)
    run_import(tmp_path / "store", tmp_path / "bars.parquet", **changes, is_repair=True)
    assert [time_text(time)[:10] for time in stored(tmp_path / "store", "X", "1d").times.tolist()] == [
        "2017-01-02",
        "2017-01-03",
        "2017-01-05",
    ]


# Refusals and repairs


@pytest.mark.parametrize(
    ("row", "old", "new", "reason", "repair"),
    [
        (4, ".", "x", "row 4: time must be|row 4: open must be a number", "rows that cannot be read were dropped"),
        (4, ",", ",,", "row 4: has 7 values, not 6", "rows that cannot be read were dropped"),
        (4, "2017", "3017", "row 4: time must be a time written as ISO 8601", "rows that cannot be read were dropped"),
        (4, "2017-01-02T01", "2017-01-32T01", "row 4: time must be", "rows that cannot be read were dropped"),
        (4, "2017-01-02T01", "1817-01-02T01", "row 4: time must be in 1900 to 2199", "rows that cannot be read"),
        (4, ",1.0", ",9.0", r"row 4 \(2017-01-02T01:00:00Z\): high is below open", "impossible bars were dropped"),
        (4, ",1.0", ",-1.0", "row 4 .*open must be above 0", "impossible bars were dropped"),
        (4, "T01:00", "T00:00", "row 4 .*time is that of the row before", "replaced by a later one of the same time"),
        (4, "T01:00", "T00:20", "row 4 .*opens before the 1h bar before it has closed", "open before the bar before"),
        (4, "2017-01-02T01", "2017-01-01T20", "row 4 .*time is before that of the row before", "were sorted"),
    ],
)
def test_broken_row_is_refused_with_its_number_or_repaired(
    tmp_path: Path, row: int, old: str, new: str, reason: str, repair: str
) -> None:
    lines = iso_lines()
    assert old in lines[row]
    lines[row] = lines[row].replace(old, new, 1)
    path = write(tmp_path / "bars.csv", lines)
    with pytest.raises(InvalidBarsError, match=rf"bars\.csv, ({reason})"):
        run_import(tmp_path / "store", path)
    assert DirectoryBarStore(tmp_path / "store").list_series() == []
    assert is_clean(tmp_path / "store")
    staged = run_import(tmp_path / "store", path, is_repair=True)
    ((text, count),) = {**staged.repairs, **staged.series[0].repairs}.items()
    assert repair in text
    assert count == 1
    bars = stored(tmp_path / "store")
    assert len(bars) == (400 if "sorted" in repair else 399)
    assert np.isin(bars.times, BARS.times).sum() >= 399


def test_newest_first_is_refused_and_sorted_by_repair(tmp_path: Path) -> None:
    lines = iso_lines()
    path = write(tmp_path / "bars.csv", [lines[0], *reversed(lines[1:])])
    with pytest.raises(InvalidBarsError, match=r"row 2 .*--repair sorts them"):
        run_import(tmp_path / "store", path)
    staged = run_import(tmp_path / "store", path, is_repair=True)
    assert staged.series[0].repairs == {"rows that were out of order were sorted": 399}
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_row_of_a_refusal_is_counted_without_the_header(tmp_path: Path) -> None:
    lines = iso_lines()
    lines.insert(5, "ragged")
    lines[20] = lines[20].replace(",", ",x", 1)
    with pytest.raises(InvalidBarsError, match="row 5: has 1 values, not 6"):
        run_import(tmp_path / "store", write(tmp_path / "bars.csv", lines))
    del lines[5]
    with pytest.raises(InvalidBarsError, match="row 19: open must be a number, was 'x1"):
        run_import(tmp_path / "store", write(tmp_path / "bars.csv", lines))


def test_too_many_unreadable_rows_are_not_repaired(tmp_path: Path) -> None:
    lines = iso_lines()
    lines += [line.replace(",", ",x", 1) for line in lines[1:]] * 4
    with pytest.raises(InvalidBarsError, match="more than 1000 rows cannot be read"):
        run_import(tmp_path / "store", write(tmp_path / "bars.csv", lines), is_repair=True)


def test_other_timeframe_than_the_bars_have_is_refused(tmp_path: Path) -> None:
    path = write_bars_csv(tmp_path, make_bars(50, timeframe="4h"))
    with pytest.raises(InvalidBarsError, match="the most common step between bars is 4h, not 1h; give the --timeframe"):
        run_import(tmp_path / "store", path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"hello", "is no table of bars"),
        (b"a,b,c,d,e\n", "has no row of 5 values"),
        (b"time,open,high,low,close\n", "has no row of 5 values"),
        (b"time,open,high,low,open\n1,1,1,1,1\n", "has two columns 'open'"),
        (b"\x00\x01\x02\x03" * 10, "holds NUL bytes"),
        (b"time,open,high,low,close\n2017-01-01,1,1,1,\xff\n", "is no utf-8 text"),
        (b"PAR1 and nothing", "is no readable Parquet file"),
        (b"\xff\xfea", "is no utf-16 text|is no table"),
        (b"time,open,high,low,close\nnoon,1,1,1,1\n", "no known way of writing times fits 'noon'"),
        (b"time,open,high,low,close\n2017-01-01T00:00Z,1,1,1,1\n2017-01-01T01:00,1,1,1,1\n", "some have none"),
    ],
)
def test_file_that_is_no_table_of_bars_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bars.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidBarsError, match=rf"bars\.csv: .*({reason})"):
        run_import(tmp_path / "store", path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timezone": "Mars/Olympus"}, "--timezone must be an IANA name"),
        ({"timezone": "../UTC"}, "--timezone must be an IANA name"),
        ({"timeframe": "1x"}, "a timeframe must be"),
        ({"symbol": None}, "--symbol is needed"),
    ],
)
def test_request_that_breaks_a_rule_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        run_import(tmp_path / "store", write_bars_csv(tmp_path, BARS), **changes)


@pytest.mark.parametrize("name", ["none.csv", "."])
def test_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidBarsError, match="is no file; give the path of a CSV or Parquet file"):
        run_import(tmp_path / "store", tmp_path / name)


def test_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written to"):
        run_import(tmp_path / "store", write_bars_csv(tmp_path, BARS))


# A series that exists


def test_stored_series_is_not_touched_unless_asked(tmp_path: Path) -> None:
    path = write_bars_csv(tmp_path, BARS)
    run_import(tmp_path / "store", path)
    with pytest.raises(AlreadyExistsError, match=r"EURUSD 1h is already stored .*; --merge adds .*, --replace puts"):
        run_import(tmp_path / "store", write_bars_csv(tmp_path, make_bars(30, 9)))
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_replace_leaves_only_the_new_bars(tmp_path: Path) -> None:
    run_import(tmp_path / "store", write_bars_csv(tmp_path, BARS))
    other = make_bars(30, 9)
    run_import(tmp_path / "store", write_bars_csv(tmp_path, other), if_exists=IfExists.REPLACE)
    assert stored(tmp_path / "store").digest() == other.digest()
    assert len(list((tmp_path / "store" / "EURUSD_1h").iterdir())) == 2


def test_merge_adds_what_is_new_and_keeps_other_years_untouched(tmp_path: Path) -> None:
    bars = make_bars(9000)  # into 2018
    lines = iso_lines(bars)
    run_import(tmp_path / "store", write(tmp_path / "a.csv", lines[:8900]))
    year = sorted((tmp_path / "store" / "EURUSD_1h").glob("2017-*"))
    before = year[0].stat().st_ino
    staged = run_import(
        tmp_path / "store", write(tmp_path / "b.csv", [lines[0], *lines[8880:]]), if_exists=IfExists.MERGE
    )
    assert (staged.series[0].num_stored_before, staged.series[0].num_bars) == (8899, 9000)
    assert stored(tmp_path / "store").digest() == bars.digest()
    assert [path.stat().st_ino for path in sorted((tmp_path / "store" / "EURUSD_1h").glob("2017-*"))] == [before]


def test_merge_of_other_values_is_refused_or_taken_by_repair(tmp_path: Path) -> None:
    run_import(tmp_path / "store", write_bars_csv(tmp_path, BARS))
    lines = iso_lines()
    lines[7] = lines[7].rpartition(",")[0] + ",12345.0"
    path = write(tmp_path / "b.csv", lines)
    with pytest.raises(AlreadyExistsError, match=r"b\.csv, row 7 .*differs from the stored one of the same time"):
        run_import(tmp_path / "store", path, if_exists=IfExists.MERGE)
    assert stored(tmp_path / "store").digest() == BARS.digest()
    run_import(tmp_path / "store", path, if_exists=IfExists.MERGE, is_repair=True)
    assert stored(tmp_path / "store").volume[6] == 12345.0
    assert len(stored(tmp_path / "store")) == 400


def test_file_that_someone_put_there_is_not_touched(tmp_path: Path) -> None:
    path = write_bars_csv(tmp_path / "store", BARS)
    for if_exists in IfExists:
        with pytest.raises(AlreadyExistsError, match="was put there by hand and an import does not touch it: move it"):
            run_import(tmp_path / "store", path, if_exists=if_exists)
    assert stored(tmp_path / "store").digest() == BARS.digest()


def test_nothing_is_stored_without_publication(tmp_path: Path) -> None:
    with stage_import(request(tmp_path / "store", write_bars_csv(tmp_path, BARS))):
        pass
    assert DirectoryBarStore(tmp_path / "store").list_series() == []
    assert is_clean(tmp_path / "store")


def test_second_import_at_the_same_time_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    lock = DirectoryLock(store / LOCK_FILE, owner="import")
    lock.acquire()
    try:
        with pytest.raises(IllegalStateError, match=r"another import uses .*; wait until it has ended"):
            run_import(store, write_bars_csv(tmp_path, BARS))
    finally:
        lock.release()


def test_error_in_one_symbol_stores_none(tmp_path: Path) -> None:
    path, *_ = two_symbols(tmp_path / "both.csv")
    lines = path.read_text().splitlines()
    lines[80] = lines[80].replace(",1.", ",-1.", 1)
    with pytest.raises(InvalidBarsError, match="row 80"):
        run_import(tmp_path / "store", write(path, lines), symbol=None)
    assert DirectoryBarStore(tmp_path / "store").list_series() == []
