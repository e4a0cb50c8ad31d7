from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_core.errors import (
    AlreadyExistsError,
    CorruptDataError,
    InvalidInputError,
    ModelNotFoundError,
    QuotaExceededError,
)
from ktrdr_core.storage.model_query import ModelQuery
from tests.kit.model_shelf import Shelf, names


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def kept(shelf: Shelf) -> list[str]:
    return names(shelf.storage.query(ModelQuery(kept_aside=True), limit=10).models)


def test_kept_aside_is_listed_apart_and_is_no_version(shelf: Shelf) -> None:
    model = shelf.keep_aside("t1", 3)
    assert (model.name, model.version, model.is_kept_aside, model.aliases) == ("aside/t1-3", 0, True, ())
    assert (model.training_id, model.attempt, model.strategy_name) == ("t1", 3, "small")
    assert model == shelf.storage.get("aside/t1-3") == shelf.storage.load("aside/t1-3")
    assert model == shelf.storage.get(model.model_id)
    assert kept(shelf) == ["aside/t1-3"]
    assert shelf.storage.list() == []
    assert shelf.storage.find_by_training("t1") is None
    assert shelf.publish("t1", 4).version == 1
    assert not (shelf.root / "staged1").exists()


def test_same_again_is_the_same_and_another_is_refused(shelf: Shelf) -> None:
    first = shelf.keep_aside(seed=5)
    assert shelf.keep_aside(seed=5) == first
    with pytest.raises(AlreadyExistsError, match="aside/t1-1"):
        shelf.keep_aside(seed=6)
    assert kept(shelf) == ["aside/t1-1"]
    assert shelf.storage.get("aside/t1-1") == first
    assert sorted(path.name for path in shelf.root.iterdir()) == ["models", "staged3"]


def test_kept_aside_is_deleted_by_its_name(shelf: Shelf) -> None:
    shelf.keep_aside()
    shelf.storage.delete("aside/t1-1")
    assert kept(shelf) == []
    with pytest.raises(ModelNotFoundError):
        shelf.storage.get("aside/t1-1")
    assert shelf.keep_aside(seed=6).name == "aside/t1-1"


def test_strategy_of_that_name_keeps_its_models(shelf: Shelf) -> None:
    version = shelf.publish(name="aside")
    shelf.storage.set_alias("aside/EURUSD_1h", "champion", 1)
    aside = shelf.keep_aside("t1", 1, name="aside", seed=2)
    assert shelf.storage.get("aside/EURUSD_1h_v1").model_id == version.model_id
    assert shelf.storage.get("aside/EURUSD_1h_champion").model_id == version.model_id
    assert shelf.storage.get("aside").model_id == version.model_id
    assert shelf.storage.get("aside/t1-1").model_id == aside.model_id


@pytest.mark.parametrize(
    ("training_id", "attempt"), [("", 1), ("../x", 1), ("a/b", 1), ("t" * 127, 1), ("t1", -1), ("\ud800", 1)]
)
def test_origin_that_is_no_name_is_refused(shelf: Shelf, training_id: str, attempt: int) -> None:
    with pytest.raises(InvalidInputError):
        shelf.keep_aside(training_id, attempt)
    assert not shelf.storage.root.exists()


def test_damaged_artifact_is_refused_and_stays_where_it_is(shelf: Shelf) -> None:
    directory = shelf.stage()
    (directory / "metrics.json").write_text("{}")
    with pytest.raises(CorruptDataError):
        shelf.storage.keep_aside(directory, training_id="t1", attempt=1)
    assert directory.is_dir()
    assert kept(shelf) == []


def test_quota_counts_versions_and_what_is_kept_aside(tmp_path: Path) -> None:
    size = Shelf(tmp_path / "measure").publish().size_bytes
    shelf = Shelf(tmp_path, max_size_bytes=2 * size + size // 2)
    shelf.publish(seed=1)
    shelf.keep_aside(seed=2)
    assert 2 * size - 100 < shelf.storage.size_bytes() < 2 * size + 100
    with pytest.raises(QuotaExceededError, match="ktrdr models gc"):
        shelf.publish(seed=3)
    with pytest.raises(QuotaExceededError, match="ktrdr models gc"):
        shelf.keep_aside("t2", seed=3)
    with pytest.raises(QuotaExceededError):
        shelf.storage.check_room(size)
    shelf.storage.check_room(size // 4)
    assert len(shelf.storage.list()) == 1
    shelf.storage.delete("aside/t1-1")
    assert shelf.publish(seed=3).version == 2


def test_what_is_there_already_is_answered_also_when_the_store_is_full(tmp_path: Path) -> None:
    size = Shelf(tmp_path / "measure").publish().size_bytes
    shelf = Shelf(tmp_path, max_size_bytes=size + size // 2)
    first = shelf.publish("t1", 1, seed=1)
    assert shelf.publish("t1", 1, seed=1) == first
