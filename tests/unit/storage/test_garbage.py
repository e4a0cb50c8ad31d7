from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_core.clock import utc_now
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.storage.garbage import Garbage
from ktrdr_core.storage.model_query import ModelQuery
from tests.kit.model_shelf import Shelf, names

SET = "small/EURUSD_1h"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path)
    for seed in range(1, 7):
        shelf.publish(seed=seed)
    shelf.publish(symbols=("GBPUSD",))
    shelf.keep_aside()
    return shelf


def in_days(days: float) -> datetime:
    return utc_now() + timedelta(days=days)


def collect(shelf: Shelf, **rules: Any) -> list[Garbage]:
    """Return what a dry run tells, and make sure that it changes nothing and that the real one removes just that."""
    everything = sorted(shelf.storage.root.rglob("*"))
    told = shelf.storage.collect_garbage(**{"keep_versions": None} | rules, dry_run=True)
    assert [path for path in everything if not path.exists() and not path.is_symlink()] == []
    removed = shelf.storage.collect_garbage(**{"keep_versions": None} | rules, dry_run=False)
    assert removed == told
    left = {*names(shelf.storage.list()), *names(shelf.storage.query(ModelQuery(kept_aside=True), limit=9).models)}
    assert not left & {garbage.name for garbage in removed}
    return removed


def collected(shelf: Shelf, **rules: Any) -> list[str]:
    return [garbage.name for garbage in collect(shelf, **rules)]


def test_nothing_is_garbage_of_itself(shelf: Shelf) -> None:
    assert collected(shelf) == []
    assert collected(shelf, now=in_days(29.9)) == []


def test_old_versions_go_only_if_asked_for(shelf: Shelf) -> None:
    sizes = {model.name: model.size_bytes for model in shelf.storage.list()}
    removed = collect(shelf, keep_versions=2)
    assert [garbage.name for garbage in removed] == [f"{SET}_v{version}" for version in (4, 3, 2, 1)]
    assert all(garbage.size_bytes == sizes[garbage.name] for garbage in removed)
    assert {garbage.cause for garbage in removed} == {"older than the 2 newest of its set"}
    assert shelf.storage.get(f"{SET}_latest").version == 6
    assert shelf.publish(seed=9).version == 7


def test_version_an_alias_points_at_stays(shelf: Shelf) -> None:
    shelf.storage.set_alias(SET, "champion", 2)
    assert collected(shelf, keep_versions=1) == [f"{SET}_v{version}" for version in (5, 4, 3, 1)]
    assert shelf.storage.load(f"{SET}_champion").version == 2


def test_protected_model_stays(shelf: Shelf) -> None:
    protected = {f"{SET}_v3", "aside/t1-1"}
    rules: dict[str, Any] = {"keep_versions": 1, "now": in_days(400)}
    removed = collected(shelf, **rules, is_protected=lambda model: model.name in protected)
    assert removed == [f"{SET}_v{version}" for version in (5, 4, 2, 1)]
    assert collected(shelf, **rules) == ["aside/t1-1", f"{SET}_v3"]


def test_version_that_is_read_stays(shelf: Shelf) -> None:
    with shelf.storage.open_file(f"{SET}_v1", "config.json"), shelf.reopen().open_file("aside/t1-1", "config.json"):
        assert collected(shelf, keep_versions=5, now=in_days(31)) == []
    assert collected(shelf, keep_versions=5, now=in_days(31)) == ["aside/t1-1", f"{SET}_v1"]


def test_newest_stays_although_a_damaged_one_is_newer(shelf: Shelf) -> None:
    (shelf.storage.root / "small" / "EURUSD_1h_v9").mkdir()
    assert f"{SET}_v6" not in collected(shelf, keep_versions=1)
    assert (shelf.storage.root / "small" / "EURUSD_1h_v9").is_dir()


def test_kept_aside_goes_after_its_days(shelf: Shelf) -> None:
    assert collected(shelf, now=in_days(6.9), kept_aside_days=7) == []
    (garbage,) = collect(shelf, now=in_days(7.1), kept_aside_days=7)
    assert (garbage.name, garbage.cause) == ("aside/t1-1", "kept aside for 7 days or more")


def test_leftovers_of_killed_writers_go_after_a_day(shelf: Shelf) -> None:
    root = shelf.storage.root
    grave, link, file = (
        root / ".staging" / "abc",
        root / "small" / ".EURUSD_1h_latest.0f0f",
        root / "small" / ".EURUSD_1h.versions.0f0f",
    )
    (grave / "inner").mkdir(parents=True)
    (grave / "inner" / "weights").write_bytes(b"x" * 1000)
    link.symlink_to("EURUSD_1h_v1")
    file.write_bytes(b"7")
    (root / ".aside" / ".t9.0f0f").write_bytes(b"7")
    assert collected(shelf, now=in_days(0.9)) == []
    removed = {garbage.name: garbage.size_bytes for garbage in collect(shelf, now=in_days(1.1))}
    assert set(removed) == {".staging/abc", f"small/{link.name}", f"small/{file.name}", ".aside/.t9.0f0f"}
    assert removed[".staging/abc"] == 1000
    assert not any(path.exists() or path.is_symlink() for path in (grave, link, file))
    assert len(shelf.storage.list()) == 7


@pytest.mark.parametrize("rules", [{"keep_versions": 0}, {"kept_aside_days": 0}, {"kept_aside_days": -3}])
def test_limit_below_1_is_refused(shelf: Shelf, rules: dict[str, int]) -> None:
    for dry_run in (True, False):
        with pytest.raises(InvalidInputError, match="must be at least 1"):
            shelf.storage.collect_garbage(**{"keep_versions": None, "dry_run": dry_run} | rules)  # type: ignore[arg-type]
    assert len(shelf.storage.list()) == 7


def test_many_days_are_never_over(shelf: Shelf) -> None:
    assert collected(shelf, kept_aside_days=2**31 - 1) == []
