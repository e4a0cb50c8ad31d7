"""The rules of the mode selector, one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from ktrdr.trainer.v1.trainer_info_pb2 import Device, TrainerInfo

from backend_service.orchestration.selector import ExecutionModeSelector
from backend_service.orchestration.trainers import TrainerHealth
from ktrdr_core.errors import ExecutionModeError, InvalidInputError


class Checks:
    """Trainers with a fixed health; counts how often it was asked."""

    def __init__(self, *found: TrainerHealth) -> None:
        self.found = list(found)
        self.asked = 0

    async def check_all(self, *, needs_devices: bool = False) -> list[TrainerHealth]:
        self.asked += 1
        return self.found


def healthy(address: str = "a:1", *, gpus: int = 0, free: int = 1) -> TrainerHealth:
    devices = [Device(device_type="cuda")] * gpus + [Device(device_type="cpu")]
    info = TrainerInfo(devices=devices, num_slots=2, num_free_slots=free)
    return TrainerHealth(address=address, is_healthy=True, message="SERVING", info=info)


SICK = TrainerHealth(address="a:1", is_healthy=False, message="did not answer within 2 s")


def gpus(number: int) -> Callable[[], Awaitable[int]]:
    async def count() -> int:
        return number

    return count


@pytest.mark.parametrize(
    ("requested", "require_gpu", "trainers", "local_gpus", "chosen"),
    [
        ("local", False, [healthy(gpus=1)], 0, "local"),
        ("host", False, [healthy()], 0, "host"),
        ("host", False, [SICK], 0, "local"),
        ("host", False, [], 0, "local"),
        ("host", True, [healthy(gpus=1)], 0, "host"),
        ("auto", False, [healthy(gpus=1)], 1, "local"),
        ("auto", True, [healthy(gpus=1)], 1, "host"),
        ("auto", True, [healthy()], 1, "local"),
        ("auto", True, [SICK], 1, "local"),
        ("local", True, [healthy(gpus=1)], 1, "local"),
    ],
)
async def test_rule(
    requested: str, require_gpu: bool, trainers: list[TrainerHealth], local_gpus: int, chosen: str
) -> None:
    selector = ExecutionModeSelector(trainers=Checks(*trainers), count_local_gpus=gpus(local_gpus))
    assert await selector.select_mode(requested, require_gpu) == chosen


@pytest.mark.parametrize(
    ("requested", "trainers"),
    [("host", [SICK]), ("host", [healthy()]), ("auto", [healthy()]), ("auto", []), ("local", [healthy(gpus=1)])],
)
async def test_required_gpu_that_nobody_has_is_an_error_with_every_reason(
    requested: str, trainers: list[TrainerHealth]
) -> None:
    selector = ExecutionModeSelector(trainers=Checks(*trainers))
    with pytest.raises(ExecutionModeError, match="GPU required"):
        await selector.select_mode(requested, require_gpu=True)


async def test_machine_that_cannot_train_sends_auto_to_a_trainer() -> None:
    selector = ExecutionModeSelector(trainers=Checks(healthy()), can_train_locally=False)
    assert await selector.select_mode("auto") == "host"
    for mode, trainers in (("auto", Checks(SICK)), ("local", Checks(healthy())), ("host", Checks(SICK))):
        with pytest.raises(ExecutionModeError, match="cannot train"):
            await ExecutionModeSelector(trainers=trainers, can_train_locally=False).select_mode(mode)


async def test_trainer_with_the_most_free_slots_is_chosen_the_first_among_equals() -> None:
    checks = Checks(healthy("a:1", free=0), healthy("b:1", free=2), healthy("c:1", free=2))
    placement = await ExecutionModeSelector(trainers=checks).select("host")
    assert placement.trainer == "b:1"
    assert len(placement.reasons) == 4


async def test_trainer_needs_as_many_gpus_as_are_asked_for() -> None:
    checks = Checks(healthy("a:1", gpus=1), healthy("b:1", gpus=4, free=0))
    assert (await ExecutionModeSelector(trainers=checks).select("host", num_gpus=4)).trainer == "b:1"


async def test_default_mode_serves_who_names_none_and_other_words_are_refused() -> None:
    checks = Checks(healthy())
    selector = ExecutionModeSelector(trainers=checks)
    assert await selector.select_mode() == "local"
    assert checks.asked == 0
    selector.set_default_mode("host")
    assert await selector.select_mode() == "host"
    for word in ("remote", "", "HOST"):
        with pytest.raises(ValueError, match="must be one of auto, local, host"):
            selector.set_default_mode(word)
    with pytest.raises(InvalidInputError):
        ExecutionModeSelector("gpu")
    assert selector.default_mode == "host"
