from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktrdr_core.errors import CorruptDataError, InvalidInputError, ModelNotFoundError, NotFoundError
from tests.kit.model_shelf import Shelf, names


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_versions_count_up_and_latest_follows(shelf: Shelf) -> None:
    first, second = shelf.publish(seed=1), shelf.publish(seed=2)
    assert (first.name, second.name) == ("small/EURUSD_1h_v1", "small/EURUSD_1h_v2")
    assert os.readlink(shelf.storage.root / "small" / "EURUSD_1h_latest") == "EURUSD_1h_v2"
    assert shelf.storage.load("small/EURUSD_1h_latest").version == 2
    assert shelf.storage.load("small/EURUSD_1h_v1").aliases == ()
    assert shelf.storage.load("small/EURUSD_1h_v2").aliases == ("latest",)


def test_published_directory_has_moved(shelf: Shelf) -> None:
    directory = shelf.stage()
    model = shelf.storage.publish(directory)
    assert not directory.exists()
    assert model.path == shelf.storage.root / "small" / "EURUSD_1h_v1"
    assert model.result["model_path"] == str(model.path)


def test_each_symbol_set_has_versions_of_its_own(shelf: Shelf) -> None:
    names = {shelf.publish(symbols=symbols).name for symbols in (("EURUSD",), ("GBPUSD",), ("EURUSD", "GBPUSD"))}
    assert names == {"small/EURUSD_1h_v1", "small/GBPUSD_1h_v1", "small/EURUSD-GBPUSD_1h_v1"}


def test_model_is_found_by_every_kind_of_name(shelf: Shelf) -> None:
    shelf.publish(seed=1)
    newest = shelf.publish(seed=2)
    for name in ("small", "small/EURUSD_1h_latest", "small/EURUSD_1h_v2", newest.result["model_id"]):
        assert shelf.storage.load(name) == newest


@pytest.mark.parametrize(
    "name", ["small/EURUSD_1h_v9", "other", "small/nothing", "00000000-0000-0000-0000-000000000000"]
)
def test_unknown_model_is_not_found_and_known_ones_are_named(shelf: Shelf, name: str) -> None:
    shelf.publish()
    with pytest.raises(ModelNotFoundError, match="small/EURUSD_1h_v1"):
        shelf.storage.load(name)


@pytest.mark.parametrize("name", ["../small", "/etc", "small/../../x", "small/..", "", "small/a/b", "a\n"])
def test_path_in_a_model_name_is_refused(shelf: Shelf, name: str) -> None:
    shelf.publish()
    with pytest.raises(InvalidInputError):
        shelf.storage.load(name)


def test_path_as_strategy_name_writes_nothing_outside_the_store(shelf: Shelf) -> None:
    directory = shelf.stage(name="../../x")
    before = sorted(shelf.root.rglob("*"))
    with pytest.raises(InvalidInputError, match="strategy name"):
        shelf.storage.publish(directory)
    with pytest.raises(InvalidInputError, match="strategy name"):
        shelf.storage.keep_aside(directory, training_id="t1", attempt=1)
    assert sorted(shelf.root.rglob("*")) == before


def test_path_as_symbol_is_refused(shelf: Shelf) -> None:
    with pytest.raises(InvalidInputError, match="symbol"):
        shelf.publish(symbols=("../x",))


def test_same_digest_for_the_same_attempt_is_published_once(shelf: Shelf) -> None:
    first = shelf.publish("t1", 1, seed=5)
    again = shelf.publish("t1", 1, seed=5)
    assert again == first == shelf.storage.get(first.name)
    assert len(shelf.storage.list()) == 1
    assert [entry.name for entry in shelf.root.iterdir()] == ["models"]


def test_another_attempt_or_digest_is_another_version(shelf: Shelf) -> None:
    models = [shelf.publish("t1", 1, seed=5), shelf.publish("t1", 2, seed=5), shelf.publish("t2", 1, seed=6)]
    assert [model.version for model in models] == [1, 2, 3]
    found = shelf.storage.find_by_training("t1")
    assert found is not None
    assert (found.version, found.attempt) == (2, 2)
    assert shelf.storage.find_by_training("t3") is None


def test_incomplete_artifact_changes_nothing(shelf: Shelf) -> None:
    directory = shelf.stage()
    (directory / "features.json").unlink()
    with pytest.raises(NotFoundError, match=r"features\.json"):
        shelf.storage.publish(directory)
    assert directory.exists()
    assert shelf.storage.list() == []


def test_version_that_exists_is_never_replaced(shelf: Shelf) -> None:
    shelf.publish(seed=1)
    squatter = shelf.storage.root / "small" / "EURUSD_1h_v2"
    squatter.mkdir()
    (squatter / "note.txt").write_text("mine")
    assert shelf.publish(seed=2).version == 3
    assert (squatter / "note.txt").read_text() == "mine"


def test_damaged_version_does_not_hide_the_others(shelf: Shelf) -> None:
    broken, good = shelf.publish(seed=1), shelf.publish(seed=2)
    (broken.path / "metrics.json").write_text("{")
    (shelf.storage.root / ".index.sqlite").unlink()
    assert names(shelf.storage.list()) == [good.name]


def test_half_made_directories_are_not_listed(shelf: Shelf) -> None:
    model = shelf.publish()
    (shelf.storage.root / ".staging" / "abc").mkdir(parents=True)
    (shelf.storage.root / "small" / ".EURUSD_1h_v2.tmp").mkdir()
    (shelf.storage.root / "small" / "notes").mkdir()
    assert names(shelf.storage.list()) == [model.name]


def test_deleted_number_is_not_given_again_and_latest_moves_back(shelf: Shelf) -> None:
    shelf.publish(seed=1)
    shelf.publish(seed=2)
    shelf.storage.delete("small/EURUSD_1h_v2")
    assert shelf.storage.load("small/EURUSD_1h_latest").version == 1
    assert shelf.publish(seed=3).version == 3


def test_deleting_the_only_version_leaves_no_latest(shelf: Shelf) -> None:
    shelf.publish()
    shelf.storage.delete("small/EURUSD_1h_v1")
    assert shelf.storage.list() == []
    assert not (shelf.storage.root / "small" / "EURUSD_1h_latest").is_symlink()
    with pytest.raises(ModelNotFoundError):
        shelf.storage.load("small/EURUSD_1h_latest")


def test_flipped_bit_is_found_on_load(shelf: Shelf) -> None:
    model = shelf.publish()
    weights = model.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CorruptDataError, match=r"model\.safetensors"):
        shelf.storage.load(model.name)


def test_list_is_newest_first_and_filters_by_strategy(shelf: Shelf) -> None:
    shelf.publish(seed=1)
    shelf.publish(name="other", seed=2)
    shelf.publish(seed=3)
    assert names(shelf.storage.list()) == [
        "small/EURUSD_1h_v2",
        "other/EURUSD_1h_v1",
        "small/EURUSD_1h_v1",
    ]
    assert names(shelf.storage.list("other")) == ["other/EURUSD_1h_v1"]


def test_store_opened_again_knows_its_models(shelf: Shelf) -> None:
    model = shelf.publish("t1", 1)
    assert shelf.reopen().get(model.name) == model
    assert names(shelf.reopen().list()) == [model.name]


def test_long_symbol_lists_get_a_bounded_name(shelf: Shelf) -> None:
    symbols = tuple(f"SYMBOL{index}" for index in range(60))
    model = shelf.publish(symbols=symbols)
    assert len(model.path.name) < 128
    assert model.symbols == symbols
    assert shelf.storage.load(model.name) == model
