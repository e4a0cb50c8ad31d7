"""What a failure's message tells of the worker's log."""

from __future__ import annotations

from pathlib import Path

from ktrdr_core.execution.last_words import read_last_words


def words_of(path: Path, text: str) -> str:
    path.write_text(text)
    return str(read_last_words(path))


def test_the_last_three_lines_are_told(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    assert words_of(path, "one\n\n two\nthree\n  four  \n\n") == f"see {path}, which ends: two | three | four"


def test_stacks_below_a_crash_are_left_out_of_the_sentence_and_stay_in_the_text(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    text = "said\nFatal Python error: Aborted\n\nThread 0x1:\n  File x\n"
    assert words_of(path, text).endswith("which ends: said | Fatal Python error: Aborted")
    assert "File x" in read_last_words(path).text


def test_a_log_that_is_empty_or_missing_is_named_alone(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    assert str(read_last_words(path)) == words_of(path, "\n") == f"see {path}"


def test_long_logs_and_long_lines_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    text = words_of(path, "x" * 100_000 + "\n" + "y" * 1_000)
    assert len(text) < 700
    assert len(read_last_words(path).text) == 16 * 1024
