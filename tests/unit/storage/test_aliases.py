from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktrdr_core.errors import (
    InvalidInputError,
    ModelNotFoundError,
    ModelReferencedError,
    WriteConflictError,
)
from ktrdr_core.storage.model_query import ModelQuery
from tests.kit.model_shelf import Shelf, names

SET = "small/EURUSD_1h"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path)
    for seed in (1, 2, 3):
        shelf.publish(seed=seed)
    return shelf


def test_alias_points_where_it_is_told_and_moves(shelf: Shelf) -> None:
    for version in (2, 1):
        model = shelf.storage.set_alias(SET, "champion", version)
        assert model is not None
        assert (model.version, model.aliases) == (version, ("champion",))
        assert shelf.storage.get(f"{SET}_champion") == model
        assert shelf.storage.load(f"{SET}_champion") == model
    assert os.readlink(shelf.storage.root / "small" / "EURUSD_1h_champion") == "EURUSD_1h_v1"
    assert shelf.storage.get(f"{SET}_v2").aliases == ()
    assert names(shelf.storage.query(ModelQuery(alias="champion"), limit=5).models) == [f"{SET}_v1"]


def test_latest_comes_first_among_aliases(shelf: Shelf) -> None:
    for alias in ("zebra", "best-one"):
        shelf.storage.set_alias(SET, alias, 3)
    assert shelf.storage.get(f"{SET}_v3").aliases == ("latest", "best-one", "zebra")
    assert shelf.storage.list()[0].aliases == ("latest", "best-one", "zebra")


def test_publishing_moves_latest_and_no_other_alias(shelf: Shelf) -> None:
    shelf.storage.set_alias(SET, "champion", 3)
    assert shelf.publish(seed=4).aliases == ("latest",)
    assert shelf.storage.get(f"{SET}_v3").aliases == ("champion",)


def test_compare_and_set(shelf: Shelf) -> None:
    assert shelf.storage.set_alias(SET, "champion", 1, expected=0) is not None
    with pytest.raises(WriteConflictError, match="points at version 1, expected was none") as refused:
        shelf.storage.set_alias(SET, "champion", 2, expected=0)
    assert refused.value.metadata == {"version": "1"}
    with pytest.raises(WriteConflictError, match="expected was 3"):
        shelf.storage.set_alias(SET, "champion", 0, expected=3)
    assert shelf.storage.get(f"{SET}_champion").version == 1
    assert shelf.storage.set_alias(SET, "champion", 2, expected=1) is not None
    assert shelf.storage.set_alias(SET, "champion", 0, expected=2) is None
    with pytest.raises(WriteConflictError, match="does not exist") as missing:
        shelf.storage.set_alias(SET, "champion", 2, expected=2)
    assert missing.value.metadata == {"version": "0"}


def test_removed_alias_is_gone_and_removing_it_again_is_nothing(shelf: Shelf) -> None:
    shelf.storage.set_alias(SET, "champion", 1)
    for _ in range(2):
        assert shelf.storage.set_alias(SET, "champion", 0) is None
        with pytest.raises(ModelNotFoundError):
            shelf.storage.get(f"{SET}_champion")
    assert shelf.storage.get(f"{SET}_v1").aliases == ()


@pytest.mark.parametrize(
    "alias",
    ["", "latest", "x_latest", "v3", "best_v3", "v0", "Champion", "a b", "a/b", "../x", "a.b", "-a", "_a", "x" * 41,
     "é", "a\n", "\x00"],
)  # fmt: skip
def test_name_that_is_no_alias_is_refused(shelf: Shelf, alias: str) -> None:
    before = sorted(shelf.storage.root.rglob("*"))
    with pytest.raises(InvalidInputError, match="alias must be"):
        shelf.storage.set_alias(SET, alias, 1)
    assert sorted(shelf.storage.root.rglob("*")) == before


@pytest.mark.parametrize("parent", ["", "small", "../small/x", "small/../x", "small/a/b", "small/", "/EURUSD_1h"])
def test_parent_that_is_no_set_is_refused(shelf: Shelf, parent: str) -> None:
    with pytest.raises(InvalidInputError):
        shelf.storage.set_alias(parent, "champion", 1)


@pytest.mark.parametrize(("parent", "version"), [(SET, 9), ("small/GBPUSD_1h", 1), ("other/EURUSD_1h", 1)])
def test_version_that_is_not_there_is_not_found(shelf: Shelf, parent: str, version: int) -> None:
    with pytest.raises(ModelNotFoundError):
        shelf.storage.set_alias(parent, "champion", version)
    assert names(shelf.storage.query(ModelQuery(alias="champion"), limit=5).models) == []


def test_alias_of_another_set_is_not_taken_over(shelf: Shelf) -> None:
    """The sets EURUSD_1h and EURUSD_1h_x share the name of a link: x_best of the one, best of the other."""
    shelf.publish(timeframes=["1h_x"])
    shelf.storage.set_alias(SET, "x_best", 1)
    with pytest.raises(InvalidInputError, match="no alias of small/EURUSD_1h_x"):
        shelf.storage.set_alias("small/EURUSD_1h_x", "best", 1)
    assert shelf.storage.get(f"{SET}_x_best").name == f"{SET}_v1"


def test_file_in_the_place_of_an_alias_is_left_alone(shelf: Shelf) -> None:
    note = shelf.storage.root / "small" / "EURUSD_1h_note"
    note.write_text("mine")
    with pytest.raises(InvalidInputError, match="EURUSD_1h_note"):
        shelf.storage.set_alias(SET, "note", 1)
    assert note.read_text() == "mine"


def test_model_an_alias_points_at_is_deleted_only_by_force(shelf: Shelf) -> None:
    shelf.storage.set_alias(SET, "champion", 3)
    shelf.storage.set_alias(SET, "best", 3)
    with pytest.raises(ModelReferencedError, match="best, champion") as refused:
        shelf.storage.delete(f"{SET}_v3")
    assert refused.value.metadata == {"aliases": "best, champion"}
    assert shelf.storage.get(f"{SET}_v3").aliases == ("latest", "best", "champion")
    shelf.storage.delete(f"{SET}_v3", force=True)
    assert names(shelf.storage.list()) == [f"{SET}_v2", f"{SET}_v1"]
    assert shelf.storage.get(f"{SET}_latest").version == 2
    for alias in ("best", "champion"):
        assert not (shelf.storage.root / "small" / f"EURUSD_1h_{alias}").is_symlink()


def test_latest_alone_does_not_hold_a_version(shelf: Shelf) -> None:
    shelf.storage.delete(f"{SET}_v3")
    shelf.storage.delete(f"{SET}_v1")
    assert shelf.storage.get(f"{SET}_latest").version == 2


@pytest.mark.parametrize("name", [f"{SET}_latest", f"{SET}_champion", "small", "MODEL_ID"])
def test_only_a_versions_own_name_deletes_it(shelf: Shelf, name: str) -> None:
    model = shelf.storage.set_alias(SET, "champion", 3)
    assert model is not None
    with pytest.raises(InvalidInputError, match="which is small/EURUSD_1h_v3 now"):
        shelf.storage.delete(name.replace("MODEL_ID", model.model_id), force=True)
    assert len(shelf.storage.list()) == 3


@pytest.mark.parametrize("name", [f"{SET}_v9", "other", "aside/t1-1", "small/nothing"])
def test_nothing_is_not_deleted(shelf: Shelf, name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        shelf.storage.delete(name)
