"""The rules of the mode selector, one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from ktrdr.trainer.v1.trainer_info_pb2 import Device, TrainerInfo

from backend_service.orchestration.selector import ExecutionModeSelector, NoTrainerYetError
from backend_service.orchestration.trainer_health import TrainerHealth
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import ExecutionModeError, InvalidInputError


class Checks:
    """Trainers with a fixed health; counts how often it was asked, and how old an answer would have done."""

    def __init__(self, *found: TrainerHealth) -> None:
        self.found = list(found)
        self.asked = 0
        self.max_ages_s: list[float | None] = []
        self.devices_needed: list[bool] = []

    async def check_all(self, *, needs_devices: bool = False, max_age_s: float | None = None) -> list[TrainerHealth]:
        self.asked += 1
        self.max_ages_s.append(max_age_s)
        self.devices_needed.append(needs_devices)
        return self.found


def healthy(
    address: str = "a:1", *, gpus: int = 0, free: int = 1, sessions: int = 0, memory_gb: float | None = None
) -> TrainerHealth:
    gpu = Device(device_type="cuda", memory_available_gb=memory_gb)
    info = TrainerInfo(devices=[*[gpu] * gpus, Device(device_type="cpu")], num_slots=2)
    return TrainerHealth(
        address=address, is_healthy=True, message="SERVING", info=info, num_free_slots=free, num_sessions=sessions
    )


SICK = TrainerHealth(address="a:1", is_healthy=False, message="did not answer within 2 s")
DRAINED = replace(healthy("d:1", gpus=8, free=9), is_draining=True, message="drained: it gets no new sessions")
LOST = replace(healthy("l:1", gpus=8, free=9), is_healthy=False, is_lost=True, silence_s=12.3, message="cut off")


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


async def test_trainer_with_the_most_free_slots_is_chosen_then_the_fewest_sessions_then_the_first() -> None:
    checks = Checks(
        healthy("a:1", free=0),
        healthy("b:1", free=2, sessions=3),
        healthy("c:1", free=2, sessions=1),
        healthy("d:1", free=2, sessions=1),
        healthy("e:1", free=1),
    )
    placement = await ExecutionModeSelector(trainers=checks).select("host")
    assert placement.trainer == "c:1"
    assert len(placement.reasons) == 7
    assert placement.reasons[-1] == "trainer c:1 has the most free slots"


async def test_trainer_needs_as_many_gpus_as_are_asked_for() -> None:
    checks = Checks(healthy("a:1", gpus=1), healthy("b:1", gpus=4, free=0, memory_gb=10.0))
    placement = await ExecutionModeSelector(trainers=checks).select("host", num_gpus=4)
    assert placement.trainer == "b:1"
    assert "trainer a:1 has 1 GPU" in placement.reasons
    assert any("4 GPU with 40.0 GiB free" in reason for reason in placement.reasons)
    assert "full" in placement.reasons[-1]


async def test_trainers_are_seen_at_most_so_old_and_devices_matter_only_to_who_needs_them() -> None:
    checks = Checks(healthy(gpus=1))
    selector = ExecutionModeSelector(trainers=checks)
    await selector.select("host")
    await selector.select("host", require_gpu=True)
    assert checks.max_ages_s == [2.5, 2.5]
    assert checks.devices_needed == [False, True]


async def test_drained_and_lost_trainers_get_nothing_and_are_reasons() -> None:
    checks = Checks(DRAINED, LOST, SICK, healthy("b:1", free=0))
    placement = await ExecutionModeSelector(trainers=checks).select("host")
    assert placement.trainer == "b:1"
    assert placement.reasons[1:4] == (
        "trainer d:1 is healthy, but drained: it gets no new sessions",
        "trainer l:1 is lost, silent for 12 s: cut off",
        "trainer a:1 is not healthy: did not answer within 2 s",
    )


async def test_trainer_that_has_not_told_its_devices_gets_nothing_that_needs_one() -> None:
    cold = TrainerHealth(address="a:1", is_healthy=True, message="SERVING")
    selector = ExecutionModeSelector(trainers=Checks(cold))
    assert (await selector.select("host")).trainer == "a:1"
    with pytest.raises(ExecutionModeError, match="has not told its devices"):
        await selector.select("host", require_gpu=True)


@pytest.mark.parametrize("found", [[], [SICK], [DRAINED], [LOST], [healthy()]])
@pytest.mark.parametrize(("mode", "can_train_locally"), [("host", True), ("host", False), ("auto", True)])
async def test_who_may_not_fall_back_waits_for_a_trainer(
    found: list[TrainerHealth], mode: str, can_train_locally: bool
) -> None:
    selector = ExecutionModeSelector(
        trainers=Checks(*found), can_train_locally=can_train_locally, count_local_gpus=gpus(1)
    )
    with pytest.raises(NoTrainerYetError) as caught:
        await selector.select(mode, require_gpu=True, may_fall_back=False)
    for health in found:
        assert health.address in caught.value.message


async def test_who_may_not_fall_back_goes_to_a_trainer_or_where_no_trainer_was_asked_for() -> None:
    selector = ExecutionModeSelector(trainers=Checks(healthy(free=0)))
    assert (await selector.select("host", may_fall_back=False)).trainer == "a:1"
    for mode in ("auto", "local"):
        assert (await selector.select(mode, may_fall_back=False)).mode is ExecutionMode.LOCAL


async def test_reasons_of_a_thousand_trainers_are_bounded() -> None:
    checks = Checks(*(healthy(f"t{number}:1", free=number) for number in range(1_000)))
    placement = await ExecutionModeSelector(trainers=checks).select("host")
    assert placement.trainer == "t999:1"
    assert len(placement.reasons) == 53
    assert placement.reasons[-2] == "950 more trainers were considered"


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
