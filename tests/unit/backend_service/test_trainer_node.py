"""What a trainer's node makes of answers, renewals and time."""

from __future__ import annotations

from collections import Counter

from ktrdr.trainer.v1.trainer_info_pb2 import TrainerInfo

from backend_service.orchestration.trainer_channel import TrainerAnswer
from backend_service.orchestration.trainer_node import MAX_ADDRESSES, TrainerNode


def a_node(configured: str = "a:1") -> TrainerNode:
    return TrainerNode(
        address=configured or "r:1",
        backend_version="1.0.0",
        sessions=Counter(),
        created_at=0.0,
        configured_address=configured,
    )


def an_info(free: int = 2, slots: int = 2) -> TrainerInfo:
    return TrainerInfo(version="1.0.3", num_slots=slots, num_free_slots=free)


def answer(info: TrainerInfo | None = None, problem: str = "") -> TrainerAnswer:
    return TrainerAnswer(is_reached=True, problem=problem, latency_s=0.25, info=info)


def test_health_is_what_was_said_last() -> None:
    node = a_node()
    assert (node.health(5.0).is_healthy, node.health(5.0).silence_s) == (False, None)
    node.take_answer("a:1", answer(an_info(free=1)), 10.0, num_sessions=0)
    health = node.health(13.0)
    assert (health.is_healthy, health.silence_s, health.latency_s, health.num_free_slots) == (True, 3.0, 0.25, 1)
    node.take_failure("gone", 14.0)
    health = node.health(14.0)
    assert (health.is_healthy, health.message, health.silence_s) == (False, "gone", 4.0)


def test_renewal_is_heard_but_does_not_make_an_unreachable_trainer_healthy() -> None:
    node = a_node("")
    node.registered_address = "r:1"
    node.take_renewal(an_info(), 10.0)
    assert not node.health(10.0).is_healthy
    assert node.is_stale(10.0, max_age_s=60.0)
    node.take_answer("r:1", answer(an_info()), 11.0, num_sessions=0)
    node.take_renewal(an_info(), 50.0)
    assert node.health(50.0).is_healthy
    assert not node.is_stale(60.0, max_age_s=10.0)
    assert node.is_stale(60.1, max_age_s=10.0)


def test_free_slots_never_exceed_what_it_has_less_what_runs_from_here() -> None:
    node = a_node()
    node.sessions.update({"a:1": 2, "other:1": 7})
    node.take_answer("a:1", answer(an_info(free=3, slots=4)), 0.0, num_sessions=2)
    assert node.num_free_slots == 2
    node.sessions["a:1"] = 9
    assert node.num_free_slots == 0


def test_sessions_of_its_former_addresses_are_its_own_and_their_number_is_bounded() -> None:
    node = a_node("")
    for number in range(100):
        node.move_to(f"r{number}:1")
    node.sessions.update({f"r{number}:1": 1 for number in range(100)})
    assert node.num_sessions == MAX_ADDRESSES + 1


def test_targets_are_the_configured_address_and_the_announced_one_while_its_lease_lives() -> None:
    node = a_node()
    node.registered_address = "r:1"
    assert list(node.targets) == ["a:1"]
    node.take_renewal(an_info(), 0.0)
    assert list(node.targets) == ["a:1", "r:1"]
    node.move_to("r:1")
    assert list(node.targets) == ["r:1", "a:1"]
    node.renewed_at = None
    assert list(node.targets) == ["a:1"]


def test_announced_trainer_without_a_lease_is_asked_by_nobody() -> None:
    node = a_node("")
    node.registered_address = "r:1"
    assert list(node.targets) == []
    assert not node.is_stale(0.0, max_age_s=None)


def test_time_in_which_the_backend_stood_still_is_no_silence() -> None:
    node = a_node()
    node.take_renewal(an_info(), 10.0)
    node.shift(30.0)
    assert node.silence_s(41.0) == 1.0
    assert node.renewed_at == 40.0
    assert node.created_at == 30.0


def test_what_explains_itself_is_told_in_its_own_words() -> None:
    node = a_node()
    info = an_info()
    info.unavailable_reason = "torch is not installed"
    node.take_answer("a:1", answer(info, "answered NOT_SERVING"), 0.0, num_sessions=0)
    assert node.health(0.0).message == "torch is not installed"
    node.take_answer("a:1", answer(an_info(), "answered NOT_SERVING"), 0.0, num_sessions=0)
    assert node.health(0.0).message == "answered NOT_SERVING"
