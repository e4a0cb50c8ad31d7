"""The partitioned store: a range of days reads what it needs, damage is named, a reader survives a replacement."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore, SeriesInfo
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.data.parquet_bars import ROW_GROUP_BARS
from ktrdr_core.data.partitions import (
    MANIFEST,
    damaged_parts,
    read_manifest,
    remove_unnamed,
    write_manifest,
    write_part,
)
from ktrdr_core.errors import InvalidBarsError
from tests.kit.builders import make_bars, write_bars_csv
from tests.kit.series_files import write_series

BARS = make_bars(20_000)  # 2017, 2018 and some of 2019


def damage(path: Path, start: float = 0.0, stop: float = 0.9) -> None:
    """Overwrite a stretch of a file; its size stays."""
    raw = bytearray(path.read_bytes())
    first, last = 4 + int(start * len(raw)), int(stop * len(raw))
    raw[first:last] = b"\xa5" * (last - first)
    path.write_bytes(raw)


def test_whole_series_reads_back_bit_for_bit(tmp_path: Path) -> None:
    directory = write_series(tmp_path, BARS)
    assert DirectoryBarStore(tmp_path).load("EURUSD", "1h").digest() == BARS.digest()
    assert [path.name[:5] for path in sorted(directory.glob("*.parquet"))] == ["2017-", "2018-", "2019-"]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, None),
        (date(2017, 12, 31), date(2018, 1, 1)),
        (date(2018, 5, 1), date(2018, 5, 1)),
        (None, date(2017, 3, 1)),
        (date(2019, 2, 1), None),
        (date(2016, 1, 1), date(2016, 2, 1)),
        (date(2030, 1, 1), None),
        (date(2018, 5, 2), date(2018, 5, 1)),
    ],
)
@pytest.mark.parametrize("file_format", ["partitioned", "parquet", "csv"])
def test_range_of_days_is_that_of_the_whole(
    stores: dict[str, tuple[Path, Bars]], start: date | None, end: date | None, file_format: str
) -> None:
    directory, bars = stores[file_format]
    loaded = DirectoryBarStore(directory).load("EURUSD", "1h", start, end)
    assert loaded.digest() == bars.between(start, end).digest()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Bars]]:
    """Return a store of each format with what is in it; tests only read them."""
    directories = {name: tmp_path_factory.mktemp(name) for name in ("partitioned", "parquet", "csv")}
    few = BARS.head(1000)
    write_series(directories["partitioned"], BARS)
    write_one_file(directories["parquet"] / "EURUSD_1h.parquet", BARS)
    write_bars_csv(directories["csv"], few)
    return {name: (directory, few if name == "csv" else BARS) for name, directory in directories.items()}


def write_one_file(path: Path, bars: Bars, *, row_group_size: int = 1000) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"time": pa.array(bars.times, pa.timestamp("ns", tz="UTC"))}
    columns |= {name: pa.array(getattr(bars, name)) for name in BAR_COLUMNS}
    parquet.write_table(pa.table(columns), path, row_group_size=row_group_size, write_page_checksum=True)


def test_files_outside_the_range_are_not_opened(tmp_path: Path) -> None:
    directory = write_series(tmp_path, BARS)
    (first,), (last,) = list(directory.glob("2017-*")), list(directory.glob("2019-*"))
    damage(first)
    last.unlink()
    store = DirectoryBarStore(tmp_path)
    wanted = BARS.between(date(2018, 1, 1), date(2018, 12, 31))
    assert store.load("EURUSD", "1h", date(2018, 1, 1), date(2018, 12, 31)).digest() == wanted.digest()
    with pytest.raises(InvalidBarsError, match=rf"EURUSD_1h: {first.name} is damaged: .*; import the series again"):
        store.load("EURUSD", "1h", None, date(2018, 12, 31))
    with pytest.raises(InvalidBarsError, match=rf"EURUSD_1h: {last.name} is missing; import the series again"):
        store.load("EURUSD", "1h", date(2018, 1, 1))


def test_row_groups_outside_the_range_are_not_read(tmp_path: Path) -> None:
    bars = make_bars(3 * ROW_GROUP_BARS, timeframe="1m")
    directory = write_series(tmp_path, bars)
    (path,) = directory.glob("*.parquet")
    damage(path, 0.4, 0.6)  # inside the second of three groups
    store = DirectoryBarStore(tmp_path)
    first_day, last_day = bars.first_day, bars.last_day
    assert store.load("EURUSD", "1m", None, first_day).digest() == bars.between(None, first_day).digest()
    assert store.load("EURUSD", "1m", last_day).digest() == bars.between(last_day, None).digest()
    with pytest.raises(InvalidBarsError, match="is damaged"):
        store.load("EURUSD", "1m")


def test_row_groups_of_a_single_file_outside_the_range_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD_1h.parquet"
    write_one_file(path, BARS)
    damage(path, 0.3, 0.9)
    loaded = DirectoryBarStore(tmp_path).load("EURUSD", "1h", None, date(2017, 6, 1))
    assert loaded.digest() == BARS.between(None, date(2017, 6, 1)).digest()


def test_flipped_bit_is_noticed(tmp_path: Path) -> None:
    directory = write_series(tmp_path, BARS)
    (path,) = directory.glob("2018-*")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InvalidBarsError, match=rf"{path.name} is damaged"):
        DirectoryBarStore(tmp_path).load("EURUSD", "1h")
    assert damaged_parts(directory, read_manifest(directory)) == [path.name]


def test_listing_knows_bars_and_days_without_reading_them(tmp_path: Path) -> None:
    directory = write_series(tmp_path, BARS)
    for path in directory.glob("*.parquet"):
        path.unlink()
    write_one_file(tmp_path / "GBPUSD_1h.parquet", BARS)
    write_bars_csv(tmp_path, make_bars(5, symbol="XAUUSD"))
    infos = DirectoryBarStore(tmp_path).list_series()
    assert infos == [
        SeriesInfo("EURUSD", "1h", "partitioned"),
        SeriesInfo("GBPUSD", "1h", "parquet"),
        SeriesInfo("XAUUSD", "1h", "csv"),
    ]
    known = (20_000, BARS.first_day, BARS.last_day)
    assert [(info.num_bars, info.first_day, info.last_day) for info in infos] == [known, known, (None, None, None)]


def test_file_beside_the_series_of_the_same_name_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, BARS.head(10))
    write_bars_csv(tmp_path, BARS.head(10))
    with pytest.raises(InvalidBarsError, match=r"EURUSD_1h and EURUSD_1h\.csv both hold EURUSD 1h; remove one"):
        DirectoryBarStore(tmp_path).load("EURUSD", "1h")


def test_directory_without_a_manifest_is_no_series(tmp_path: Path) -> None:
    directory = write_series(tmp_path, BARS.head(10))
    (directory / MANIFEST).unlink()
    assert DirectoryBarStore(tmp_path).list_series() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\x00",
        b'{"format": 2}',
        b'{"format": 1, "symbol": "EURUSD", "timeframe": "1h", "parts": []}',
        b'{"format": 1, "symbol": "EURUSD", "timeframe": "1h", "parts": [{"file": "x"}]}',
        b'{"format": 1, "symbol": "EURUSD", "timeframe": "1h", "parts": 3}',
        b"[" * 100_000,
    ],
)
def test_damaged_manifest_is_refused_and_listed_without_facts(tmp_path: Path, content: bytes) -> None:
    directory = write_series(tmp_path, BARS.head(10))
    (directory / MANIFEST).write_bytes(content)
    store = DirectoryBarStore(tmp_path)
    with pytest.raises(
        InvalidBarsError, match=r"EURUSD_1h: manifest\.json is .*; import the series again with --replace"
    ):
        store.load("EURUSD", "1h")
    assert [info.num_bars for info in store.list_series()] == [None]


@pytest.mark.parametrize("name", ["../2017-000000000000.parquet", "/etc/passwd", "2017-x.parquet"])
def test_manifest_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    directory = write_series(tmp_path, BARS.head(10))
    raw = json.loads((directory / MANIFEST).read_text())
    raw["parts"][0]["file"] = name
    (directory / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(InvalidBarsError, match="is missing or damaged"):
        read_manifest(directory)


def test_files_that_the_manifest_does_not_name_are_removed_and_others_left(tmp_path: Path) -> None:
    directory = write_series(tmp_path, BARS.head(10))
    write_part(directory, BARS.times[:2], {name: getattr(BARS, name)[:2] for name in BAR_COLUMNS})
    (directory / ".manifest.json.1234").write_text("cut")
    (directory / "notes.txt").write_text("mine")
    remove_unnamed(directory, read_manifest(directory))
    assert sorted(path.name[:5] for path in directory.iterdir()) == ["2017-", "manif", "notes"]
    assert DirectoryBarStore(tmp_path).load("EURUSD", "1h").digest() == BARS.head(10).digest()


def test_reader_that_began_before_a_replacement_reads_the_new_series(tmp_path: Path) -> None:
    directory = write_series(tmp_path, BARS.head(10))
    old = read_manifest(directory)
    new = make_bars(20, 3)
    write_series(tmp_path, new)
    remove_unnamed(directory, read_manifest(directory))
    assert not (directory / old.parts[0].file).exists()

    class StaleFirst:
        """The series' directory, whose manifest is at first the one of before."""

        def __init__(self) -> None:
            self.num_reads = 0
            self.name = directory.name

        def __truediv__(self, name: str) -> Path:
            if name == MANIFEST:
                self.num_reads += 1
                if self.num_reads == 1:
                    stale = tmp_path / "stale" / directory.name
                    stale.mkdir(parents=True)
                    write_manifest(stale, old)
                    return stale / MANIFEST
            return directory / name

    from ktrdr_core.data.partitions import load_partitions

    stale = StaleFirst()
    bars = load_partitions(stale, symbol="EURUSD", timeframe="1h", start=None, end=None)  # type: ignore[arg-type]
    assert bars.digest() == new.digest()
    assert stale.num_reads == 2
