"""A journal gives back what was written, whatever a crash left at its end."""

from __future__ import annotations

import os
import resource
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ktrdr_core.domain.progress import ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CorruptDataError
from tests.kit.engine import build_result
from trainer_service.journal import Journal, ResumePoint, SessionOrder

ORDER = SessionOrder(
    session_id="s1",
    training_id="t1",
    attempt=2,
    spec=TrainingSpec(strategy_yaml="name: x\n# ünïcode", epochs=3),
    upload_target="127.0.0.1:50051",
    create_time=datetime(2026, 1, 1, tzinfo=UTC),
    resume_from=ResumePoint(epoch=7, sha256="ab" * 32),
)


def event(sequence: int, state: TrainingState | None = None) -> ProgressEvent:
    detail = WarningDetail(reason="R", message="line\nbreak") if state is None else StateDetail(state=state)
    return ProgressEvent(sequence=sequence, create_time=ORDER.create_time, attempt=2, detail=detail)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "sessions" / "s1"
    journal = Journal.create(directory, ORDER)
    journal.append_event(event(1, TrainingState.RUNNING))
    journal.append_event(event(2))
    journal.close()
    return directory


def test_everything_comes_back(directory: Path) -> None:
    journal, _ = Journal.open(directory)
    journal.append_artifact(directory / "artifact", build_result())
    journal.append_upload_target("127.0.0.1:6000")
    journal.close()

    journal, content = Journal.open(directory)
    journal.close()

    assert content.events == [event(1, TrainingState.RUNNING), event(2)]
    assert content.order.spec == ORDER.spec
    assert content.order.upload_target == "127.0.0.1:6000"
    assert content.order.resume_from == ORDER.resume_from
    assert content.artifact_path == directory / "artifact"
    assert content.result == build_result()


def test_a_journal_cut_at_any_byte_opens_and_goes_on(directory: Path) -> None:
    path = directory / "journal.jsonl"
    whole = path.read_bytes()
    header_size = whole.index(b"\n") + 1
    for size in [*range(header_size, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:size])
        journal, content = Journal.open(directory)
        journal.append_event(event(len(content.events) + 1))
        journal.close()

        journal, again = Journal.open(directory)
        journal.close()
        assert len(again.events) == len(content.events) + 1
        assert again.events[:-1] == [event(1, TrainingState.RUNNING), event(2)][: len(content.events)]


def test_zeros_that_a_machine_crash_left_are_cut_off(directory: Path) -> None:
    with (directory / "journal.jsonl").open("ab") as stream:
        stream.write(bytes(512) + b"\n")

    journal, content = Journal.open(directory)
    journal.close()

    assert len(content.events) == 2
    assert b"\0" not in (directory / "journal.jsonl").read_bytes()


def test_events_after_a_gap_are_not_trusted(directory: Path) -> None:
    journal, _ = Journal.open(directory)
    journal.append_event(event(4))
    journal.close()

    journal, content = Journal.open(directory)
    journal.close()

    assert [found.sequence for found in content.events] == [1, 2]


def test_a_journal_without_its_first_line_names_the_file(directory: Path) -> None:
    (directory / "journal.jsonl").write_bytes(b'{"session":{"vers')

    with pytest.raises(CorruptDataError, match=r"journal\.jsonl"):
        Journal.open(directory)


def test_a_directory_is_used_once(directory: Path) -> None:
    with pytest.raises(FileExistsError):
        Journal.create(directory, ORDER)


def test_a_line_the_disk_refuses_leaves_no_trace(directory: Path) -> None:
    journal, _ = Journal.open(directory)
    descriptor, journal._fd = journal._fd, os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        journal.append_event(event(3))
    os.close(journal._fd)
    journal._fd = descriptor
    os.write(descriptor, b'{"event":{"sequence":3,')  # what a disk that fills up within a line takes of it

    journal.append_event(event(3))
    journal.close()

    journal, content = Journal.open(directory)
    journal.close()
    assert [found.sequence for found in content.events] == [1, 2, 3]


def test_a_journal_that_version_0_1_wrote_is_read(directory: Path) -> None:
    path = directory / "journal.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    first = first.replace(b',"resume_from":{"epoch":7,"sha256":"' + b"ab" * 32 + b'","last_epoch_told":0}', b"")
    path.write_bytes(b"".join([first, b'{"worker":{"pid":4711,"start_ticks":99}}\n', *rest]))

    journal, content = Journal.open(directory)
    journal.close()

    assert content.order.resume_from is None
    assert b"resume_from" not in path.read_bytes()
    assert len(content.events) == 2


def test_a_new_journal_the_disk_does_not_take_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            Journal.create(tmp_path / "s1", ORDER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list(tmp_path.iterdir()) == []
