"""Notes of workers, and what a start removes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ktrdr_core.execution.left_workers import (
    NOTE_NAME,
    WorkerProcess,
    clear_up_after_worker,
    end_left_workers,
    note_worker,
)
from ktrdr_core.execution.process_group import has_live_member
from tests.kit.eventually import PATIENCE_S


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    path = tmp_path / "sessions" / "one"
    path.mkdir(parents=True)
    return path


def files_in(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


async def test_a_noted_worker_that_lives_is_ended(work_dir: Path, sleeper: subprocess.Popen[bytes]) -> None:
    note_worker(work_dir, sleeper.pid)
    assert await end_left_workers(work_dir.parent) == ["one"]
    assert not has_live_member(sleeper.pid)
    assert sleeper.wait(PATIENCE_S) == -9
    assert files_in(work_dir) == []


@pytest.mark.parametrize("other", [{"start_ticks": 1}, {"boot_id": "another start of the machine"}])
async def test_a_later_owner_of_the_pid_is_left_alone(
    work_dir: Path, sleeper: subprocess.Popen[bytes], other: dict[str, object]
) -> None:
    worker = WorkerProcess.of(sleeper.pid)
    assert worker is not None
    noted = replace(worker, **other)  # type: ignore[arg-type]
    (work_dir / NOTE_NAME).write_text(json.dumps(asdict(noted)))
    assert await end_left_workers(work_dir.parent) == []
    assert sleeper.poll() is None
    assert not (work_dir / NOTE_NAME).exists()


async def test_a_worker_that_is_forgotten_or_gone_is_nothing_to_end(
    work_dir: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    note_worker(work_dir, sleeper.pid)
    clear_up_after_worker(work_dir)
    clear_up_after_worker(work_dir)
    assert await end_left_workers(work_dir.parent) == []
    assert sleeper.poll() is None
    note_worker(work_dir, sleeper.pid)
    sleeper.kill()
    sleeper.wait(PATIENCE_S)
    assert WorkerProcess.of(sleeper.pid) is None
    assert await end_left_workers(work_dir.parent) == []
    note_worker(work_dir, sleeper.pid)
    assert files_in(work_dir) == []


@pytest.mark.parametrize("note", [b"", b"[]", b"{", b'{"pid": 1}', b'{"pid": 1, "start_ticks": 2, "more": 3}'])
async def test_a_note_that_cannot_be_read_ends_nothing(work_dir: Path, note: bytes) -> None:
    (work_dir / NOTE_NAME).write_bytes(note)
    assert await end_left_workers(work_dir.parent) == []


async def test_half_made_files_go_and_all_others_stay(work_dir: Path) -> None:
    mark = "0123456789abcdef" * 2
    kept = [work_dir / "journal.jsonl", work_dir / "checkpoints" / "timed_1.safetensors", work_dir / ".hidden"]
    half_made = [
        work_dir / f".worker.json.{mark}",
        work_dir / "checkpoints" / f".timed_2.safetensors.{mark}",
        work_dir / f".artifact.{mark}" / "model.safetensors",
        work_dir / "upload.tmp",
    ]
    outside = work_dir.parent / "one.tmp"
    for path in (*kept, *half_made, outside):
        path.parent.mkdir(exist_ok=True)
        path.write_text("content")
    assert await end_left_workers(work_dir.parent) == []
    assert files_in(work_dir) == sorted(kept)
    assert not (work_dir / f".artifact.{mark}").exists()
    assert outside.exists()


async def test_a_place_without_sessions_has_none(tmp_path: Path) -> None:
    assert await end_left_workers(tmp_path / "nowhere") == []


def test_a_process_is_told_from_another() -> None:
    own = WorkerProcess.of(os.getpid())
    assert own is not None
    assert own == WorkerProcess.of(os.getpid()) != WorkerProcess.of(os.getppid())
    assert own.boot_id
