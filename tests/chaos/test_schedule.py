from __future__ import annotations

from tests.chaos.schedule import NETWORKS, SERVICES, TRAINERS, Kind, Recipe, draw_schedule

MANY = [draw_schedule(seed) for seed in range(300)]


def test_seed_decides_the_whole_schedule() -> None:
    assert [str(draw_schedule(seed)) for seed in range(300)] == list(map(str, MANY))
    assert len({str(schedule) for schedule in MANY}) == 300


def test_everything_that_can_go_wrong_does_in_some_schedule() -> None:
    actions = [action for schedule in MANY for action in schedule.actions]
    assert {action.kind for action in actions} == set(Kind)
    for kind, targets in (
        (Kind.KILL, SERVICES),
        (Kind.STOP, SERVICES),
        (Kind.FREEZE, SERVICES),
        (Kind.KILL_WORKER, SERVICES),
        (Kind.FILL_DISK, SERVICES),
        (Kind.CUT, NETWORKS),
        (Kind.PAUSE, NETWORKS),
        (Kind.SLOW, NETWORKS),
        (Kind.DRAIN, TRAINERS),
    ):
        assert {action.target for action in actions if action.kind is kind} == set(targets)
    assert all(3 <= len(schedule.actions) <= 8 for schedule in MANY)


def test_trainings_of_all_kinds_are_asked_for() -> None:
    trainings = [training for schedule in MANY for training in schedule.trainings]
    assert {training.recipe for training in trainings} == set(Recipe)
    assert {training.mode for training in trainings} == {"host", "local", "auto"}
    assert {training.may_retry for training in trainings} == {True, False}
    cancels = [training.cancel for training in trainings if training.cancel is not None]
    assert {cancel.save_checkpoint for cancel in cancels} == {True, False}
    assert {cancel.by_request_id for cancel in cancels} == {True, False}
    assert any(training.is_cancelled_before for training in trainings)
    assert any(training.num_stuck for training in trainings)
    assert any(watcher.stuck_after for training in trainings for watcher in training.watchers)
    assert max(training.num_requests for training in trainings) > 1


def test_schedule_is_told_as_text_with_its_seed() -> None:
    schedule = MANY[7]
    lines = str(schedule).splitlines()
    assert lines[0] == "seed=7"
    assert len(lines) == 1 + len(schedule.trainings) + len(schedule.actions)
    for action in schedule.actions:
        assert f"  {action}" in lines
