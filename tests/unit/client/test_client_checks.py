"""The checks of `ktrdr doctor`, each with what is well and what is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ktrdr_client.cli.checks import (
    MIN_FREE_BYTES,
    Status,
    check_bars,
    check_clock,
    check_disk,
    check_local_disk,
    check_places,
    check_trainer,
    check_version,
    is_here,
)
from ktrdr_client.types import BackendConfig, TrainerDevice, TrainerInfo, TrainerStatus

from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.versions import own_version
from tests.kit.cli import ROOT

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRAINER = TrainerStatus(
    address="gpu-1:50052",
    is_healthy=True,
    message="",
    version="0.1.7",
    devices=("H100",),
    has_gpu=True,
    num_slots=2,
    num_free_slots=1,
    latency_s=0.001,
    torch_version="2.13.0",
    device_details=(TrainerDevice(device_type="cuda", name="H100", memory_available_gb=79.5),),
)
INFO = TrainerInfo(
    version="0.1.7",
    python_version="3.11",
    torch_version="2.13.0",
    devices=(),
    num_slots=2,
    num_free_slots=1,
    is_draining=False,
    unavailable_reason="",
    start_time=NOW,
    trainer_id="t",
    current_time=NOW,
)
CONFIG = BackendConfig(
    default_mode=ExecutionMode.AUTO,
    version="0.1.0",
    models_path="",
    bars_path="",
    strategies_path="",
    trainers=(),
    local_slots=0,
)


@pytest.mark.parametrize(
    ("changes", "status", "says", "advises"),
    [
        ({}, Status.OK, "ktrdr 0.1.7, H100 (79.5 GiB free), 1 of 2 slots free", ""),
        ({"device_details": ()}, Status.OK, "0.1.7, H100, 1", ""),
        ({"version": "0.2.0"}, Status.PROBLEM, "trainer 0.2.0 and backend 0.1.0", "install the same version"),
        ({"is_healthy": False, "message": "refused"}, Status.PROBLEM, "not healthy: refused", "check that it runs"),
        ({"is_healthy": False, "silence_s": 12.3}, Status.PROBLEM, "silent for 12 s", "check that it runs"),
        ({"is_healthy": False, "version": ""}, Status.PROBLEM, "never heard of", "check that it runs"),
        ({"torch_version": ""}, Status.PROBLEM, "torch is not installed there", "pip install 'ktrdr[train]'"),
        ({"is_draining": True}, Status.NOTE, "draining", "ktrdr trainers undrain gpu-1:50052"),
    ],
)
def test_trainer_is_judged_as_the_backend_sees_it(
    changes: dict[str, object], status: Status, says: str, advises: str
) -> None:
    check = check_trainer(replace(TRAINER, **changes), backend_version="0.1.0")  # type: ignore[arg-type]
    assert check.name == "trainer gpu-1:50052"
    assert (check.status, says in check.message, advises in check.advice) == (status, True, True), check
    assert bool(check.advice) == bool(advises)


@pytest.mark.parametrize(
    ("offset_s", "took_s", "status", "says"),
    [
        (0.0, 0.0, Status.OK, "agrees"),
        (1.9, 0.0, Status.OK, "agrees"),
        (-1.9, 0.0, Status.OK, "agrees"),
        (2.5, 0.0, Status.WARNING, "2.5 s ahead of"),
        (-2.5, 0.0, Status.WARNING, "2.5 s behind"),
        (2.5, 1.0, Status.OK, "agrees"),  # read at the end of a slow call it may be 1.5 s
        (3600.0, 1.0, Status.WARNING, "3599.0 s ahead of"),
    ],
)
def test_clock_is_judged_with_the_time_the_answer_took(
    offset_s: float, took_s: float, status: Status, says: str
) -> None:
    info = replace(INFO, current_time=NOW + timedelta(seconds=offset_s))
    check = check_clock("clock", info, asked_at=NOW, answered_at=NOW + timedelta(seconds=took_s))
    assert (check.status, says in check.message) == (status, True), check


def test_clock_that_is_not_told_is_a_note() -> None:
    check = check_clock("clock", replace(INFO, current_time=None), asked_at=NOW, answered_at=NOW)
    assert check.status is Status.NOTE


def test_disk_below_the_limit_is_a_warning() -> None:
    assert check_disk("disk", MIN_FREE_BYTES, where="there").status is Status.OK
    low = check_disk("disk", MIN_FREE_BYTES - 1, where="there")
    assert (low.status, "free some" in low.advice) == (Status.WARNING, True)


def test_disk_of_a_directory_that_is_not_there_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    check = check_local_disk("disk", tmp_path / "not" / "yet")
    assert check.status in (Status.OK, Status.WARNING)
    assert str(tmp_path / "not" / "yet") in check.message


@pytest.mark.parametrize(
    ("trainers", "local_slots", "status", "says"),
    [
        ([TRAINER], 0, Status.OK, "1 trainers ready"),
        ([], 0, Status.PROBLEM, "nothing can train"),
        ([replace(TRAINER, is_healthy=False)], 0, Status.PROBLEM, "nothing can train"),
        ([replace(TRAINER, is_draining=True)], 0, Status.PROBLEM, "nothing can train"),
        ([], 1, Status.NOTE, "no trainer has a GPU"),
        ([replace(TRAINER, has_gpu=False)], 0, Status.NOTE, "no trainer has a GPU"),
    ],
)
def test_place_to_train_is_looked_for(
    trainers: list[TrainerStatus], local_slots: int, status: Status, says: str
) -> None:
    check = check_places(replace(CONFIG, local_slots=local_slots), trainers)
    assert (check.status, says in check.message) == (status, True), check


def test_version_of_the_backend_is_compared_with_ours() -> None:
    assert check_version(own_version()).status is Status.OK
    skewed = check_version("99.1.0")
    assert (skewed.status, "backend 99.1.0" in skewed.message) == (Status.PROBLEM, True)


def test_bars_are_counted_and_missing_ones_warned_of(tmp_path: Path) -> None:
    assert check_bars(ROOT / "data").status is Status.OK
    empty = check_bars(tmp_path)
    assert (empty.status, "ktrdr data import" in empty.advice) == (Status.WARNING, True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("gpu-1:50051", False),
        ("192.168.1.2:50051", False),
    ],
)
def test_address_of_this_machine_is_told_from_others(address: str, expected: bool) -> None:
    assert is_here(address) is expected
