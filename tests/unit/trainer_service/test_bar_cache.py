"""Bars stay in the cache within its bound, those that are used last; a session gets whole ones or none."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import Bars
from ktrdr_core.data.partitions import Manifest, read_manifest
from ktrdr_core.errors import BarsMissingError, InvalidInputError, StorageError, UnavailableError
from tests.kit.bar_source import HOURS_OF_YEARS, store_bars
from tests.kit.builders import make_bars
from trainer_service.bar_cache import BarCache

BARS = make_bars(HOURS_OF_YEARS)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def manifest(store: Path) -> Manifest:
    return store_bars(store, BARS)


def put(store: Path, directory: Path, manifest: Manifest, *years: int) -> None:
    """Put parts into the cache as a fetch does; those of all years, or of some."""
    directory.mkdir(exist_ok=True)
    for part in manifest.parts:
        if part.year in years or not years:
            source = store / f"{manifest.symbol}_{manifest.timeframe}" / part.file
            shutil.copyfile(source, directory / f"{part.sha256}.parquet")


def age(directory: Path, sha256: str, by_s: float) -> None:
    path = directory / f"{sha256}.parquet"
    stat = path.stat()
    os.utime(path, (stat.st_atime - by_s, stat.st_mtime - by_s))


def same(left: Bars, right: Bars) -> bool:
    return left.digest() == right.digest() and np.array_equal(left.times, right.times)


async def fetch(cache: BarCache, store: Path, manifest: Manifest, index: int) -> None:
    part = manifest.parts[index]
    async with cache.room_for(part) as path:
        await asyncio.to_thread(shutil.copyfile, store / f"{manifest.symbol}_{manifest.timeframe}" / part.file, path)


def kept(directory: Path, manifest: Manifest) -> list[int]:
    """Return the indices of the parts that are kept."""
    return [index for index, part in enumerate(manifest.parts) if (directory / f"{part.sha256}.parquet").exists()]


async def test_taken_series_is_a_store_with_the_same_bars(
    store: Path, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    put(store, directory, manifest)
    cache = BarCache(directory)

    await cache.take([manifest], tmp_path / "session")

    assert same(DirectoryBarStore(tmp_path / "session").load("EURUSD", "1h"), BARS)
    assert read_manifest(tmp_path / "session" / "EURUSD_1h") == manifest
    first = tmp_path / "session" / "EURUSD_1h" / manifest.parts[0].file
    assert first.samefile(directory / f"{manifest.parts[0].sha256}.parquet")


async def test_files_are_copied_where_they_cannot_be_linked(
    store: Path, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    def refuse(source: Path, path: Path) -> None:
        raise OSError(errno.EXDEV, "other device")

    put(store, directory, manifest)
    cache = BarCache(directory, link=refuse)
    await cache.take([manifest], tmp_path / "session")
    assert same(DirectoryBarStore(tmp_path / "session").load("EURUSD", "1h"), BARS)


async def test_full_disk_leaves_nothing_and_says_so(
    store: Path, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    def refuse(source: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    put(store, directory, manifest)
    cache = BarCache(directory, link=refuse)
    with pytest.raises(StorageError, match="no space"):
        await cache.take([manifest], tmp_path / "session")
    assert not (tmp_path / "session").exists()
    assert kept(directory, manifest) == [0, 1, 2]


async def test_missing_part_names_its_series_and_leaves_nothing(
    store: Path, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    put(store, directory, manifest, 2017, 2018)
    with pytest.raises(BarsMissingError, match="EURUSD 1h are not in this trainer's cache"):
        await BarCache(directory).take([manifest], tmp_path / "session")
    assert not (tmp_path / "session").exists()


@pytest.mark.parametrize("damage", [b"X", b""], ids=["flipped", "truncated"])
async def test_damaged_part_is_removed_and_missing(
    store: Path, directory: Path, manifest: Manifest, tmp_path: Path, damage: bytes
) -> None:
    put(store, directory, manifest)
    path = directory / f"{manifest.parts[1].sha256}.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:1000] + damage + content[1000 + len(damage) : -1 if not damage else None])
    cache = BarCache(directory)

    with pytest.raises(BarsMissingError):
        await cache.take([manifest], tmp_path / "session")

    assert kept(directory, manifest) == [0, 2]
    assert not (tmp_path / "session").exists()
    path.write_bytes(b"not bars")
    assert not await cache.has(manifest.parts[1])
    assert not path.exists()
    assert await cache.has(manifest.parts[0])


async def test_least_recently_used_part_makes_room(
    store: Path, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    put(store, directory, manifest, 2017, 2018)
    for index, hours in ((0, 3), (1, 2)):
        age(directory, manifest.parts[index].sha256, hours * 3600)
    cache = BarCache(directory, max_size_bytes=sum(part.size_bytes for part in manifest.parts) - 1, hold_s=0)
    first = Manifest("EURUSD", "1h", manifest.parts[:1])
    await cache.take([first], tmp_path / "session")  # used: now the second is the oldest

    await fetch(cache, store, manifest, 2)

    assert kept(directory, manifest) == [0, 2]


async def test_part_in_use_stays_and_what_finds_no_room_is_told_to_come_back(
    store: Path, directory: Path, manifest: Manifest
) -> None:
    put(store, directory, manifest, 2017, 2018)
    cache = BarCache(directory, max_size_bytes=sum(part.size_bytes for part in manifest.parts) - 1, hold_s=0)
    used = Manifest("EURUSD", "1h", manifest.parts[:2])

    with cache.using([used]):
        with pytest.raises(UnavailableError, match="about to be used"):
            await fetch(cache, store, manifest, 2)
        assert kept(directory, manifest) == [0, 1]
    await fetch(cache, store, manifest, 2)
    assert 2 in kept(directory, manifest)
    assert len(kept(directory, manifest)) == 2


async def test_what_was_just_fetched_waits_for_its_train(store: Path, directory: Path, manifest: Manifest) -> None:
    put(store, directory, manifest, 2017, 2018)
    cache = BarCache(directory, max_size_bytes=sum(part.size_bytes for part in manifest.parts) - 1, hold_s=3600)
    with cache.using([Manifest("EURUSD", "1h", manifest.parts[:2])]):
        pass
    with pytest.raises(UnavailableError):
        await fetch(cache, store, manifest, 2)
    assert kept(directory, manifest) == [0, 1]


async def test_parts_that_are_on_their_way_count(store: Path, directory: Path, manifest: Manifest) -> None:
    put(store, directory, manifest, 1970)
    cache = BarCache(directory, max_size_bytes=manifest.parts[0].size_bytes + manifest.parts[1].size_bytes, hold_s=0)
    async with cache.room_for(manifest.parts[0]), cache.room_for(manifest.parts[1]):
        with pytest.raises(UnavailableError):
            await fetch(cache, store, manifest, 2)
    await fetch(cache, store, manifest, 2)


async def test_what_leaves_the_cache_stays_with_its_session(
    store: Path, directory: Path, manifest: Manifest, tmp_path: Path
) -> None:
    put(store, directory, manifest)
    cache = BarCache(directory)
    await cache.take([manifest], tmp_path / "session")
    for part in manifest.parts:
        (directory / f"{part.sha256}.parquet").unlink()
    assert same(DirectoryBarStore(tmp_path / "session").load("EURUSD", "1h"), BARS)


def test_series_larger_than_the_cache_are_refused(directory: Path, manifest: Manifest) -> None:
    size_bytes = sum(part.size_bytes for part in manifest.parts)
    BarCache(directory, max_size_bytes=size_bytes).check_size([manifest, manifest])  # the same content twice is once
    with pytest.raises(InvalidInputError, match=rf"the bars have {size_bytes} bytes .*--bar-cache-bytes"):
        BarCache(directory, max_size_bytes=size_bytes - 1).check_size([manifest])


def test_start_removes_what_a_killed_process_left_and_keeps_the_bound(
    store: Path, directory: Path, manifest: Manifest
) -> None:
    put(store, directory, manifest)
    (directory / f"{manifest.parts[0].sha256}.parquet.part").write_bytes(b"half")
    age(directory, manifest.parts[1].sha256, 3600)
    BarCache(directory, max_size_bytes=sum(part.size_bytes for part in manifest.parts) - 1).prepare()
    assert kept(directory, manifest) == [0, 2]
    assert len(list(directory.iterdir())) == 2
