from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ktrdr_core.errors import CorruptDataError, ModelNotFoundError
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES
from ktrdr_core.storage.model_query import ModelQuery
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.store_lock import hold_lock
from tests.kit.artifacts import make_artifact
from tests.kit.model_shelf import Shelf, names

INDEX = ".index.sqlite"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A store of four models over two strategies, which nothing has changed for long."""
    shelf = Shelf(tmp_path)
    for strategy in ("a", "b"):
        for seed in (1, 2):
            shelf.publish(name=strategy, seed=seed)
    shelf.settle()
    shelf.storage.list()
    return shelf


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Turn the JSON files below `path` into directories, so that whoever reads one fails."""
    moved = [file for file in sorted(path.rglob("*.json")) if file.is_file()]
    for file in moved:
        file.rename(file.with_suffix(".away"))
        file.mkdir()
    try:
        yield
    finally:
        for file in moved:
            file.rmdir()
            file.with_suffix(".away").rename(file)


def damage_text(path: Path) -> None:
    path.write_text("this is no database, and long enough for SQLite to look at its first page" * 20)


def damage_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200:] = os.urandom(len(content) - 200)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def drop(table: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"DROP TABLE {table}")

    return damage


def other_version(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 77")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "no database": damage_text,
    "random pages": damage_pages,
    "truncated": truncate,
    "without models": drop("models"),
    "found damaged only while it is read from": drop("summaries"),
    "of another version": other_version,
}


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_index_that_is_damaged_is_made_anew(shelf: Shelf, damage: str, is_open: bool) -> None:
    wanted = names(shelf.storage.list())
    # Closed, so that what was written is in the file and not in its log.
    shelf.storage.close()
    with closing(sqlite3.connect(shelf.storage.root / INDEX)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()
    if is_open:
        assert len(shelf.storage.list("a")) == 2
    DAMAGES[damage](shelf.storage.root / INDEX)
    storage = shelf.storage if is_open else shelf.reopen()
    assert names(storage.list()) == wanted
    assert storage.get("a").name == "a/EURUSD_1h_v2"
    assert names(shelf.reopen().list()) == wanted
    with closing(sqlite3.connect(shelf.storage.root / INDEX)) as connection:
        assert connection.execute("SELECT count(*) FROM models").fetchone() == (len(wanted),)
        assert connection.execute("PRAGMA user_version").fetchone() == version


def test_log_that_a_deleted_index_left_is_not_taken_for_the_new_ones(shelf: Shelf) -> None:
    wanted = names(shelf.storage.list())
    copy = shelf.root / "log"
    shutil.copy(shelf.storage.root / f"{INDEX}-wal", copy)
    shelf.storage.close()
    (shelf.storage.root / INDEX).unlink()
    shutil.copy(copy, shelf.storage.root / f"{INDEX}-wal")
    assert names(shelf.reopen().list()) == wanted


def test_where_no_index_can_be_written_it_is_in_memory(shelf: Shelf) -> None:
    wanted = names(shelf.storage.list())
    shelf.storage.close()
    (shelf.storage.root / INDEX).unlink()
    (shelf.storage.root / INDEX).mkdir()
    storage = shelf.reopen()
    assert names(storage.list()) == wanted
    assert storage.publish(shelf.stage(name="a", seed=3)).name == "a/EURUSD_1h_v3"
    assert names(storage.list("a"))[0] == "a/EURUSD_1h_v3"


def test_version_copied_in_by_hand_is_noticed_and_latest_follows(shelf: Shelf) -> None:
    parent = shelf.storage.root / "a"
    shutil.copytree(parent / "EURUSD_1h_v1", parent / "EURUSD_1h_v7")
    assert set(names(shelf.storage.list("a"))) == {f"a/EURUSD_1h_v{version}" for version in (1, 2, 7)}
    assert shelf.storage.get("a/EURUSD_1h_latest").name == "a/EURUSD_1h_v7"
    assert shelf.publish(name="a", seed=8).version == 8


def test_version_that_is_being_copied_is_left_out_until_it_is_whole(shelf: Shelf) -> None:
    source, target = (shelf.storage.root / "a" / f"EURUSD_1h_v{version}" for version in (1, 7))
    target.mkdir()
    for name in (".publication.json", *TRAVELLING_FILES):
        assert len(shelf.storage.list("a")) == 2
        shelf.settle()  # its parent will not change again
        shutil.copy(source / name, target / name)
        if name == "config.json":
            (target / name).write_bytes((source / name).read_bytes()[:-1])
            assert len(shelf.storage.list("a")) == 2
            shutil.copy(source / name, target / name)
    assert len(shelf.storage.list("a")) == 3
    assert shelf.storage.get("a/EURUSD_1h_latest").version == 7


def test_version_removed_by_hand_is_noticed_and_latest_follows(shelf: Shelf) -> None:
    shutil.rmtree(shelf.storage.root / "a" / "EURUSD_1h_v2")
    assert names(shelf.storage.list("a")) == ["a/EURUSD_1h_v1"]
    assert shelf.storage.get("a/EURUSD_1h_latest").version == 1
    shutil.rmtree(shelf.storage.root / "a" / "EURUSD_1h_v1")
    assert shelf.storage.list("a") == []
    assert not (shelf.storage.root / "a" / "EURUSD_1h_latest").is_symlink()
    assert len(shelf.storage.list()) == 2


def test_strategy_removed_or_renamed_by_hand_is_noticed(shelf: Shelf) -> None:
    (shelf.storage.root / "a").rename(shelf.storage.root / "c")
    assert {model.strategy_name for model in shelf.storage.list()} == {"b", "c"}
    with pytest.raises(ModelNotFoundError):
        shelf.storage.get("a")
    shutil.rmtree(shelf.storage.root / "c")
    assert {model.strategy_name for model in shelf.storage.list()} == {"b"}


def test_version_replaced_by_another_under_its_name_is_read_again(shelf: Shelf) -> None:
    parent = shelf.storage.root / "a"
    first = shelf.storage.get("a/EURUSD_1h_v1")
    (parent / "EURUSD_1h_v1").rename(parent / "away")
    (parent / "EURUSD_1h_v2").rename(parent / "EURUSD_1h_v1")
    (parent / "away").rename(parent / "EURUSD_1h_v2")
    found = {model.name: model.model_id for model in shelf.storage.list("a")}
    assert found["a/EURUSD_1h_v2"] == first.model_id != found["a/EURUSD_1h_v1"]


def test_alias_made_by_hand_is_noticed(shelf: Shelf) -> None:
    (shelf.storage.root / "a" / "EURUSD_1h_best").symlink_to("EURUSD_1h_v1")
    assert shelf.storage.get("a/EURUSD_1h_best").aliases == ("best",)
    assert names(shelf.storage.query(ModelQuery(alias="best"), limit=5).models) == ["a/EURUSD_1h_v1"]


def test_list_and_filters_read_nothing_that_has_not_changed(shelf: Shelf) -> None:
    wanted = names(shelf.storage.list())
    shelf.settle()
    shelf.storage.list()
    with forbidden(shelf.storage.root):
        assert names(shelf.storage.list()) == wanted
        assert names(shelf.reopen().list()) == wanted


def test_only_what_is_new_is_read(shelf: Shelf) -> None:
    wanted = {*names(shelf.storage.list())}
    with forbidden(shelf.storage.root):
        shelf.publish(name="a", seed=9)
        assert {*names(shelf.storage.list())} == {*wanted, "a/EURUSD_1h_v3"}


def test_change_in_the_same_moment_as_a_look_is_not_missed(shelf: Shelf) -> None:
    """Coarse file times: what changes right after a look may leave the directory with the time it had then."""
    parent = shelf.storage.root / "a"
    shelf.publish(name="a", seed=9)
    assert len(shelf.storage.list("a")) == 3
    status = parent.stat()
    shutil.copytree(parent / "EURUSD_1h_v1", parent / "EURUSD_1h_v7")
    os.utime(parent, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(shelf.storage.list("a")) == 4


def test_damaged_version_is_told_once_and_named_by_verify(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    broken = shelf.storage.root / "a" / "EURUSD_1h_v2"
    (broken / "metrics.json").write_text("{")
    (broken / "features.json").unlink()
    shelf.storage.close()
    (shelf.storage.root / INDEX).unlink()
    for _ in range(3):
        assert names(shelf.storage.list("a")) == ["a/EURUSD_1h_v1"]
    assert len([record for record in caplog.records if "EURUSD_1h_v2" in record.message]) == 1
    assert shelf.storage.get("a/EURUSD_1h_latest").version == 1
    with pytest.raises(CorruptDataError, match=r"metrics\.json.*features\.json"):
        shelf.storage.verify("a/EURUSD_1h_v2")
    with pytest.raises(CorruptDataError, match=r"features\.json|metrics\.json"):
        shelf.storage.get("a/EURUSD_1h_v2")
    shelf.storage.delete("a/EURUSD_1h_v2")
    assert not broken.exists()


def test_file_that_is_shorter_than_published_damages_a_version(shelf: Shelf) -> None:
    weights = shelf.storage.root / "a" / "EURUSD_1h_v1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (shelf.storage.root / INDEX).unlink()
    assert names(shelf.storage.list("a")) == ["a/EURUSD_1h_v2"]
    _, checks = shelf.storage.verify("a/EURUSD_1h_v1")
    assert [check.name for check in checks if check.problem] == ["model.safetensors"]


def test_two_that_are_open_see_each_others_changes(shelf: Shelf) -> None:
    other = shelf.reopen()
    assert len(other.list()) == 4
    shelf.publish(name="a", seed=3)
    assert len(other.list()) == 5
    other.delete("a/EURUSD_1h_v3")
    assert len(shelf.storage.list()) == 4
    other.set_alias("b/EURUSD_1h", "champion", 1)
    assert shelf.storage.get("b/EURUSD_1h_champion").version == 1


def test_latest_is_put_right_once_who_holds_the_store_lets_go(shelf: Shelf) -> None:
    link = shelf.storage.root / "a" / "EURUSD_1h_latest"
    link.unlink()
    shelf.settle()
    with hold_lock(shelf.storage.root / ".lock"):
        assert len(shelf.storage.list()) == 4
        assert not link.is_symlink()
    assert len(shelf.storage.list()) == 4
    assert os.readlink(link) == "EURUSD_1h_v2"


def test_threads_that_publish_and_list_lose_nothing(shelf: Shelf) -> None:
    def work(seed: int) -> tuple[int, int]:
        directory = shelf.root / f"thread{seed}"
        write_artifact(directory, make_artifact(name="threads", seed=seed))
        version = shelf.storage.publish(directory).version
        return version, len(shelf.storage.list())

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(24)))
    assert sorted(version for version, _ in found) == list(range(1, 25))
    assert max(count for _, count in found) == len(ModelStorage(shelf.storage.root).list()) == 28
