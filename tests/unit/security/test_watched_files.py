"""Values of files that change."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.security.watched_files import LOOK_EVERY_S, WatchedFiles


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """Two files whose value is their two texts, which must be equal."""

    def __init__(self, directory: Path) -> None:
        self.paths = (directory / "a", directory / "b")
        self.clock = Clock()
        self.num_loads = 0
        self.write("1", "1")
        self.files = WatchedFiles(self.paths, self._load, what="the pair", clock=self.clock)

    def write(self, *texts: str) -> None:
        for path, text in zip(self.paths, texts, strict=True):
            staging = path.with_suffix(".new")
            staging.write_text(text)
            staging.rename(path)

    def _load(self) -> str:
        self.num_loads += 1
        first, second = (path.read_text() for path in self.paths)
        if first != second:
            raise InvalidInputError("they do not belong together")
        return first

    def later(self) -> str:
        self.clock.now += LOOK_EVERY_S
        return self.files.get()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_changed_files_are_read_again_and_others_are_not(watched: Watched) -> None:
    assert (watched.later(), watched.num_loads) == ("1", 1)
    watched.write("2", "2")
    assert (watched.later(), watched.num_loads) == ("2", 2)
    assert (watched.later(), watched.num_loads) == ("2", 2)


def test_files_are_looked_at_once_a_second(watched: Watched) -> None:
    watched.later()
    watched.write("2", "2")
    watched.clock.now += LOOK_EVERY_S * 0.9
    assert not watched.files.is_due
    assert watched.files.get() == "1"
    watched.clock.now += LOOK_EVERY_S * 0.2
    assert watched.files.is_due
    assert watched.files.latest == "1"
    assert watched.files.get() == "2"


def test_generation_grows_with_each_new_value_only(watched: Watched) -> None:
    first, _ = watched.files.get_with_generation()
    watched.later()
    assert watched.files.get_with_generation()[0] == first
    watched.write("2", "2")
    watched.later()
    assert watched.files.get_with_generation() == (first + 1, "2")


def test_bad_change_keeps_the_old_value_and_is_told_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.write("2", "1")
    with caplog.at_level(logging.WARNING):
        assert [watched.later() for _ in range(3)] == ["1"] * 3
    assert len(caplog.records) == 1
    assert watched.num_loads == 2
    watched.write("2", "2")
    assert watched.later() == "2"


def test_missing_file_keeps_the_old_value(watched: Watched) -> None:
    watched.paths[0].unlink()
    assert watched.later() == "1"
    watched.write("3", "3")
    assert watched.later() == "3"


def test_change_within_one_tick_of_the_file_system_is_seen(watched: Watched) -> None:
    before = [path.stat() for path in watched.paths]
    watched.write("2", "2")
    for path, found in zip(watched.paths, before, strict=True):
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert watched.later() == "2"


def test_files_that_are_no_good_at_first_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="the pair cannot be read"):
        WatchedFiles([tmp_path / "a"], (tmp_path / "a").read_text, what="the pair")
