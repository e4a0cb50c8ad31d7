"""What the fuzzing stands on: the campaign under atheris, and the watch over paths."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.campaign import has_atheris, run_campaign
from tests.fuzz.targets import TARGETS
from tests.fuzz.watched_paths import confined


@pytest.mark.skipif(not has_atheris(), reason="atheris is not installed here")
def test_campaign_tries_inputs_and_says_how_many() -> None:
    outcome = run_campaign("page_token", TARGETS["page_token"].seeds(), 1)
    assert outcome.defect == ""
    assert outcome.num_inputs > len(TARGETS["page_token"].seeds())


@pytest.mark.parametrize(
    "escape",
    [
        lambda inside, outside: (outside / "new").write_text(""),
        lambda inside, outside: (inside / ".." / "outside" / "file").read_bytes(),
        lambda inside, outside: (outside / "made").mkdir(),
        lambda inside, outside: (inside / "file").rename(outside / "moved"),
        lambda inside, outside: os.link(outside / "file", inside / "linked"),
        lambda inside, outside: (outside / "file").unlink(),
        lambda inside, outside: list(outside.iterdir()),
        lambda inside, outside: shutil.rmtree(outside),
        lambda inside, outside: (inside / "link").symlink_to("../outside"),
        lambda inside, outside: sqlite3.connect(f"file:{outside}/db?mode=rwc", uri=True).close(),
        lambda inside, outside: Path(f"{inside}-beside").write_text(""),
    ],
)
def test_what_is_touched_outside_is_seen(tmp_path: Path, escape: Callable[[Path, Path], object]) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for directory in (inside, outside):
        directory.mkdir()
        (directory / "file").write_text("")
    with pytest.raises(AssertionError, match="touched outside"), confined(inside):
        escape(inside, outside)


def test_what_is_touched_inside_passes(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    with confined(inside):
        (inside / "a").mkdir(parents=True)
        (inside / "a" / "file").write_text("")
        (inside / "a" / "link").symlink_to("file")
        (inside / "a").rename(inside / "b")
        sqlite3.connect(f"file:{inside}/db?mode=rwc", uri=True).close()
        shutil.rmtree(inside / "b")
    (tmp_path / "later").write_text("")  # nobody watches any more
