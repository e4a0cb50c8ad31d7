"""Each event is one line, and says in which training, attempt and trainer it happened."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_core.logging import LogFormat, configure_logging, get_logger, log_context


class Stderr:
    """What was written to stderr since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def lines(self) -> list[str]:
        text = self._capsys.readouterr().err
        assert text.endswith("\n") or not text
        return text.split("\n")[:-1]

    def line(self) -> str:
        (line,) = self.lines()
        return line

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.line())
        return record


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # basicConfig closes what it removes; pytest's own handlers go on being used.
    for handler in handlers:
        root.removeHandler(handler)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Stderr:
    return Stderr(capsys)


def test_a_line_of_any_logger_in_a_context_ends_with_it(stderr: Stderr) -> None:
    configure_logging(service="ktrdr-backend")

    with log_context(training_id="t1", attempt=2):
        logging.getLogger("some.library").warning("odd")

    assert stderr.line().endswith(" WARNING ktrdr-backend some.library odd training_id=t1 attempt=2")


def test_a_line_after_the_context_has_it_no_more(stderr: Stderr) -> None:
    configure_logging(service="s")
    with log_context(training_id="t1"):
        pass

    get_logger("x").info("later")

    assert stderr.line().endswith(" INFO s x later")


def test_contexts_nest_and_each_key_comes_once(stderr: Stderr) -> None:
    configure_logging(service="s")

    with log_context(training_id="t1", trainer="a:1"), log_context(trainer="b:2"):
        get_logger("x", {"training_id": "t1", "attempt": 1}).info("hello")

    assert stderr.line().endswith(" hello training_id=t1 trainer=b:2 attempt=1")


async def test_a_task_has_the_context_it_was_started_in_and_gives_it_to_nobody(stderr: Stderr) -> None:
    configure_logging(service="s")
    go_on = asyncio.Event()

    async def work(name: str) -> None:
        with log_context(trainer=name):
            await go_on.wait()
            await asyncio.to_thread(get_logger("x").info, "from %s", name)

    with log_context(training_id="t1"):
        first = asyncio.create_task(work("a"))
    with log_context(training_id="t2"):
        second = asyncio.create_task(work("b"))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(first, second)
    get_logger("x").info("outside")

    ends = sorted(line.partition(" x ")[2] for line in stderr.lines())
    assert ends == ["from a training_id=t1 trainer=a", "from b training_id=t2 trainer=b", "outside"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain-1.0:x", "plain-1.0:x"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("a\nb", r'"a\nb"'),
        ("a\u2028b", r'"a\u2028b"'),
        ("größer als", '"größer als"'),
        (Path("/tmp/x"), "/tmp/x"),  # noqa: S108  nothing is written there
        (None, "None"),
    ],
)
def test_values_are_quoted_where_they_must_be(stderr: Stderr, value: object, shown: str) -> None:
    configure_logging(service="s")

    get_logger("x", {"key": value}).info("m")

    assert stderr.line().endswith(f" m key={shown}")


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_newline_never_breaks_a_line(stderr: Stderr, format: LogFormat) -> None:
    configure_logging(service="s", format=format)

    with log_context(reason="first\r\n2026-01-01 ERROR forged"):
        get_logger("x").info("bad file %s", "name\n2026-01-01 ERROR forged\x1b[2J\x85\u2029")

    line = stderr.line()
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_lines_of_a_traceback_begin_with_a_tab(stderr: Stderr) -> None:
    configure_logging(service="s")

    with log_context(training_id="t1"):
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            get_logger("x").exception("failed")

    first, *others = stderr.lines()
    assert first.endswith(" ERROR s x failed training_id=t1")
    assert others[0] == "\tTraceback (most recent call last):"
    assert all(line.startswith("\t") for line in others)
    assert "second" in others[-1]


def test_json_is_one_object_a_line(stderr: Stderr) -> None:
    configure_logging(service="ktrdr-trainer", format="json")

    with log_context(training_id="t1", attempt=1, trainer="gpu one"):
        get_logger("x.y").info("epoch %d", 3)

    record = stderr.record()
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "level": "INFO",
        "service": "ktrdr-trainer",
        "logger": "x.y",
        "message": "epoch 3",
        "training_id": "t1",
        "attempt": 1,
        "trainer": "gpu one",
    }


def test_json_takes_any_value_and_keeps_its_own_fields(stderr: Stderr) -> None:
    configure_logging(service="s", format="json")

    get_logger("x", {"message": "not this", "path": Path("/p"), "loss": float("nan"), "rate": 0.5}).info("this")

    record = stderr.record()
    assert (record["message"], record["path"], record["loss"], record["rate"]) == ("this", "/p", "nan", 0.5)


def test_json_has_the_traceback_in_its_line(stderr: Stderr) -> None:
    configure_logging(service="s", format="json")

    try:
        raise ValueError("no")
    except ValueError:
        get_logger("x").exception("failed")

    assert stderr.record()["exception"].startswith("Traceback (most recent call last):\n")


def test_a_level_below_the_configured_one_is_not_written(stderr: Stderr) -> None:
    configure_logging("WARNING", service="s")

    get_logger("x").info("quiet")
    get_logger("x").warning("loud")

    assert "loud" in stderr.line()


def test_the_last_configuration_counts(stderr: Stderr) -> None:
    configure_logging(service="one")
    configure_logging(service="two")

    get_logger("x").info("m")

    assert " two x m" in stderr.line()
