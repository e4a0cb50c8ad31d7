"""Snapshots of series: made once of a CSV file, made again when it changes or they are damaged, readable to the end."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.importer import IfExists, ImportRequest, stage_import
from ktrdr_core.data.parquet_bars import bars_digest
from ktrdr_core.data.partitions import MANIFEST, read_manifest
from ktrdr_core.data.series_parts import SOURCE_FILE, SeriesSnapshot, SeriesSnapshots
from ktrdr_core.errors import InvalidBarsError, InvalidInputError, SeriesNotFoundError
from tests.kit.builders import make_bars, write_bars_csv

BARS = make_bars(800, timeframe="1d")  # 2017, 2018 and some of 2019
OTHER = make_bars(800, seed=8, timeframe="1d")


def write_csv(store: Path, bars: Bars) -> Path:
    store.mkdir(exist_ok=True)
    return write_bars_csv(store, bars)


def import_bars(store: Path, source: Path, bars: Bars) -> None:
    source.mkdir(exist_ok=True)
    request = ImportRequest(
        files=(write_bars_csv(source, bars),),
        store=store,
        symbol=bars.symbol,
        timeframe=bars.timeframe,
        if_exists=IfExists.REPLACE,
    )
    with stage_import(request) as staged:
        staged.publish()


def snapshots_of(tmp_path: Path) -> SeriesSnapshots:
    return SeriesSnapshots(DirectoryBarStore(tmp_path / "bars"), tmp_path / "parts")


def digest_of(snapshots: SeriesSnapshots, snapshot: SeriesSnapshot) -> str:
    with snapshots.open(snapshot.symbol, snapshot.timeframe) as opened:
        assert opened.parts == snapshot.parts
        return bars_digest(snapshot.symbol, snapshot.timeframe, opened.files)


def stamps(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_csv_file_becomes_the_parts_that_an_import_of_it_makes(tmp_path: Path) -> None:
    write_csv(tmp_path / "bars", BARS)
    import_bars(tmp_path / "imported", tmp_path / "source", BARS)
    snapshots = snapshots_of(tmp_path)
    snapshot = snapshots.take("EURUSD", "1d")
    assert snapshot.directory == tmp_path / "parts" / "EURUSD_1d"
    assert snapshot.parts == read_manifest(tmp_path / "imported" / "EURUSD_1d").parts
    assert [part.year for part in snapshot.parts] == [2017, 2018, 2019]
    assert (snapshot.num_bars, snapshot.first_ns, snapshot.last_ns) == (800, BARS.times[0], BARS.times[-1])
    assert digest_of(snapshots, snapshot) == BARS.digest()


def test_parquet_file_becomes_the_same_parts(tmp_path: Path) -> None:
    write_csv(tmp_path / "bars", BARS)
    snapshots = snapshots_of(tmp_path)
    parts = snapshots.take("EURUSD", "1d").parts
    from_csv = tmp_path / "bars" / "EURUSD_1d.csv"
    with snapshots.open("EURUSD", "1d") as opened:
        from_csv.unlink()
        opened.files[0].seek(0)
        (tmp_path / "bars" / "GBPUSD_1d.parquet").write_bytes(opened.files[0].read())
    assert snapshots.take("GBPUSD", "1d").parts == parts[:1]


def test_imported_series_is_its_own_files(tmp_path: Path) -> None:
    import_bars(tmp_path / "bars", tmp_path / "source", BARS)
    snapshot = snapshots_of(tmp_path).take("EURUSD", "1d")
    assert snapshot.directory == tmp_path / "bars" / "EURUSD_1d"
    assert not (tmp_path / "parts").exists()


def test_parts_are_made_once(tmp_path: Path) -> None:
    write_csv(tmp_path / "bars", BARS)
    snapshots = snapshots_of(tmp_path)
    first = snapshots.take("EURUSD", "1d")
    before = stamps(first.directory)
    assert snapshots.take("EURUSD", "1d") == first
    assert snapshots_of(tmp_path).take("EURUSD", "1d") == first  # also by another process
    assert stamps(first.directory) == before


def test_parts_are_made_again_when_the_file_changes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bars", BARS)
    before = path.stat()
    snapshots = snapshots_of(tmp_path)
    old = snapshots.take("EURUSD", "1d")
    # Rewritten in place, of the same length and with the old time of change put back.
    text = path.read_text()
    at = text.rindex(",") + 1
    path.write_text(text[:at] + ("2" if text[at] != "2" else "3") + text[at + 1 :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    new = snapshots.take("EURUSD", "1d")
    assert new.parts[:-1] == old.parts[:-1]
    assert new.parts[-1].sha256 != old.parts[-1].sha256
    assert digest_of(snapshots, new) == DirectoryBarStore(tmp_path / "bars").load("EURUSD", "1d").digest()
    assert sorted(path.name for path in new.directory.glob("*.parquet")) == sorted(part.file for part in new.parts)


@pytest.mark.parametrize("is_restarted", [True, False])
@pytest.mark.parametrize("damage", ["bits", "cut", "missing", "source", "manifest"])
def test_damaged_or_half_made_parts_are_made_again(tmp_path: Path, damage: str, is_restarted: bool) -> None:
    write_csv(tmp_path / "bars", BARS)
    snapshots = snapshots_of(tmp_path)
    snapshot = snapshots.take("EURUSD", "1d")
    path = snapshot.directory / snapshot.parts[1].file
    content = path.read_bytes()
    match damage:
        case "bits":
            path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        case "cut":
            path.write_bytes(content[:-1])
        case "missing":
            path.unlink()
        case "source":
            (snapshot.directory / SOURCE_FILE).unlink()
        case "manifest":
            (snapshot.directory / MANIFEST).write_text("{")
    if is_restarted:
        snapshots = snapshots_of(tmp_path)
    with snapshots.open("EURUSD", "1d") as opened:
        assert opened.parts == snapshot.parts
        assert bars_digest("EURUSD", "1d", opened.files) == BARS.digest()
    assert path.read_bytes() == content


def test_parts_of_another_file_do_not_count_although_a_crash_left_their_source(tmp_path: Path) -> None:
    write_csv(tmp_path / "bars", BARS)
    snapshot = snapshots_of(tmp_path).take("EURUSD", "1d")
    source = json.loads((snapshot.directory / SOURCE_FILE).read_text())
    source["inode"] += 1
    (snapshot.directory / SOURCE_FILE).write_text(json.dumps(source))
    (snapshot.directory / snapshot.parts[0].file).write_bytes(b"other")
    snapshots = snapshots_of(tmp_path)
    assert digest_of(snapshots, snapshots.take("EURUSD", "1d")) == BARS.digest()


def test_open_parts_stay_readable_while_an_import_replaces_the_series(tmp_path: Path) -> None:
    import_bars(tmp_path / "bars", tmp_path / "source", BARS)
    snapshots = snapshots_of(tmp_path)
    with snapshots.open("EURUSD", "1d") as opened:
        import_bars(tmp_path / "bars", tmp_path / "source", OTHER)
        assert not (opened.snapshot.directory / opened.parts[0].file).exists()
        assert bars_digest("EURUSD", "1d", opened.files) == BARS.digest()
    assert digest_of(snapshots, snapshots.take("EURUSD", "1d")) == OTHER.digest()


def test_only_parts_of_the_range_are_opened(tmp_path: Path) -> None:
    write_csv(tmp_path / "bars", BARS)
    snapshots = snapshots_of(tmp_path)
    _, second, third = snapshots.take("EURUSD", "1d").parts
    with snapshots.open("EURUSD", "1d", second.last_ns, third.first_ns) as opened:
        assert opened.parts == (second, third)
    with snapshots.open("EURUSD", "1d", second.first_ns, second.last_ns) as opened:
        assert opened.parts == (second,)
        given = opened.give_away(0)
    assert not given.closed
    given.close()


def test_damaged_import_is_refused_with_a_way_out(tmp_path: Path) -> None:
    import_bars(tmp_path / "bars", tmp_path / "source", BARS)
    snapshots = snapshots_of(tmp_path)
    part = snapshots.take("EURUSD", "1d").parts[1]
    (tmp_path / "bars" / "EURUSD_1d" / part.file).write_bytes(b"x" * part.size_bytes)
    with pytest.raises(InvalidBarsError, match=rf"{part.file} differs from its digest; import the series again"):
        snapshots.open("EURUSD", "1d")
    snapshots.open("EURUSD", "1d", part.last_ns + 1).close()


def test_bars_that_break_a_rule_are_refused_and_leave_no_parts(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bars", BARS)
    lines = path.read_text().splitlines()
    lines[5] = lines[4]
    path.write_text("\n".join(lines))
    with pytest.raises(InvalidBarsError, match=r"EURUSD_1d\.csv, row 5"):
        snapshots_of(tmp_path).take("EURUSD", "1d")
    assert not (tmp_path / "parts").exists()


def test_unknown_series_and_names_that_are_none_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "bars", BARS)
    snapshots = snapshots_of(tmp_path)
    with pytest.raises(SeriesNotFoundError, match="EURUSD exists in 1d"):
        snapshots.take("EURUSD", "4h")
    for symbol, timeframe in [("../EURUSD", "1d"), ("EURUSD", "../1d"), ("", "1d"), ("a/b", "1d")]:
        with pytest.raises(InvalidInputError):
            snapshots.take(symbol, timeframe)


def test_parts_are_made_once_although_many_ask_at_once(tmp_path: Path) -> None:
    write_csv(tmp_path / "bars", BARS)
    snapshots = snapshots_of(tmp_path)
    found: list[SeriesSnapshot] = []
    inodes: list[int] = []

    def ask() -> None:
        snapshot = snapshots.take("EURUSD", "1d")
        inodes.append((snapshot.directory / snapshot.parts[0].file).stat().st_ino)
        found.append(snapshot)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(inodes)) == 1


def test_parts_of_files_that_are_gone_are_removed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "bars", BARS)
    write_csv(tmp_path / "bars", make_bars(100, symbol="GBPUSD", timeframe="1d"))
    snapshots = snapshots_of(tmp_path)
    for symbol in ("EURUSD", "GBPUSD"):
        snapshots.take(symbol, "1d")
    path.unlink()
    snapshots.remove_stale()
    assert [each.name for each in (tmp_path / "parts").iterdir()] == ["GBPUSD_1d"]
