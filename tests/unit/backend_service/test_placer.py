"""Who gets which place, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field

import pytest

from backend_service.operations.patience import Patience
from backend_service.operations.records import LOST, Placement, SessionRow, TrainingRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.orchestration.placer import Placer
from backend_service.orchestration.run import Run
from backend_service.orchestration.selector import NoTrainerYetError
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import ProgressEvent, StateDetail
from ktrdr_core.domain.scheduling import Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import ExecutionModeError, TrainerLostError
from tests.kit.eventually import eventually


@dataclass
class Trainers:
    """One trainer, "gpu:1"."""

    num_slots: int = 0
    num_taken: int = 0
    lease_s: float = 10.0
    on_change: Callable[[], None] = field(default=lambda: None)

    @property
    def num_free_slots(self) -> int:
        return self.num_slots - self.num_taken

    def free_slots(self, address: str) -> int:
        return self.num_free_slots

    def reserve(self, address: str) -> None:
        self.num_taken += 1

    def release(self, address: str) -> None:
        self.num_taken -= 1


class Selector:
    """Local for "local", the trainer for "host"; `error` refuses all."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[bool] = []

    def effective_mode(self, mode: str | None) -> ExecutionMode:
        return ExecutionMode(mode or "local")

    def may_use_trainer(self, mode: str | None, *, require_gpu: bool) -> bool:
        return mode == "host"

    async def select(
        self,
        mode: str | None,
        *,
        require_gpu: bool,
        num_gpus: int,
        may_fall_back: bool = True,
        excluded: Collection[str] = (),
    ) -> Placement:
        self.asked.append(may_fall_back)
        if self.error is not None:
            raise self.error
        if mode == "host":
            return Placement(mode=ExecutionMode.HOST, trainer="gpu:1", reasons=("gpu:1 is healthy",))
        return Placement(mode=ExecutionMode.LOCAL)


class World:
    def __init__(self, *, local_slots: int = 1, trainer_slots: int = 0, retry_wait_s: float = 60.0) -> None:
        self.selector, self.trainers = Selector(), Trainers(num_slots=trainer_slots)
        self.placer = Placer(
            self.selector,  # type: ignore[arg-type]
            self.trainers,  # type: ignore[arg-type]
            local_slots=local_slots,
            retry_wait_s=retry_wait_s,
        )
        self.order: list[str] = []
        self.places: dict[str, Placement] = {}
        self.tasks: dict[str, asyncio.Task[Placement]] = {}
        self.runs: dict[str, Run] = {}

    def ask(
        self, name: str, *, mode: ExecutionMode | None = None, was_lost: bool = False, **scheduling: object
    ) -> None:
        row = TrainingRow(
            training_id=name,
            content_digest="d",
            strategy_name="s",
            spec=TrainingSpec(strategy_yaml="name: s", execution_mode=mode),
            create_time=utc_now(),
            scheduling=Scheduling(**scheduling),  # type: ignore[arg-type]
        )
        lost = SessionRow(session_id="s", training_id=name, attempt=1, trainer="gpu:1", outcome=LOST)
        queued = ProgressEvent(sequence=1, create_time=utc_now(), detail=StateDetail(state=TrainingState.QUEUED))
        record = TrainingRecord(
            None,  # type: ignore[arg-type]
            row,
            Patience(),
            sessions=[lost] if was_lost else [],
            events=[queued],
        )
        run = self.runs[name] = Run(record, position=len(self.runs))

        async def acquire() -> Placement:
            placement = await self.placer.acquire(run)
            self.order.append(name)
            self.places[name] = placement
            return placement

        self.tasks[name] = asyncio.create_task(acquire())

    def release(self, name: str, *, has_run: bool = False) -> None:
        self.placer.release(self.runs[name], self.places[name], has_run=has_run)

    async def until(self, *names: str) -> None:
        await eventually(lambda: len(self.order) >= len(names), what=f"places for {names}")
        assert tuple(self.order) == names


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.placer.close()
    for task in made.tasks.values():
        task.cancel()
    await asyncio.gather(*made.tasks.values(), return_exceptions=True)


async def test_places_go_by_priority_then_fair_share_then_arrival() -> None:
    world = World(local_slots=2)
    for name, user, priority in (("a1", "ann", 0), ("a2", "ann", 0), ("b1", "bob", 0), ("urgent", "ann", 9)):
        world.ask(name, user=user, priority=priority)
    await asyncio.sleep(0)
    world.placer.start()
    await world.until("urgent", "b1")  # ann has one running, bob none
    world.release("b1")
    await world.until("urgent", "b1", "a1")
    world.release("urgent")
    await world.until("urgent", "b1", "a1", "a2")
    await world.placer.close()


async def test_waiting_training_knows_its_position_and_what_it_waits_for(world: World) -> None:
    world.placer.start()
    for name in ("one", "two", "three"):
        world.ask(name)
        await asyncio.sleep(0)
    await world.until("one")

    def statuses() -> list[tuple[int, int, str]]:
        found = [world.placer.status(name) for name in ("two", "three")]
        return [(each.position, each.num_queued, each.waiting_for) for each in found if each is not None]

    await eventually(lambda: len(statuses()) == 2 and statuses()[0][2] != "its turn")
    assert statuses() == [(1, 2, "a slot of the backend's machine"), (2, 2, "its turn")]
    assert world.placer.status("one") is None


async def test_wait_is_estimated_once_some_have_run(world: World) -> None:
    world.placer.start()
    for number in range(3):
        world.ask(f"r{number}")
        await eventually(lambda: len(world.order) == number + 1)  # noqa: B023 - awaited within the round
        world.release(f"r{number}", has_run=True)
    for name in ("busy", "waits"):
        world.ask(name)
        await asyncio.sleep(0)
    status = await eventually(lambda: world.placer.status("waits"))
    assert status is not None
    assert status.estimated_wait_s is not None
    assert 0 <= status.estimated_wait_s < 60


async def test_those_who_need_another_place_are_not_held_up(world: World) -> None:
    world.trainers.num_slots = 1
    world.placer.start()
    for name, mode in (("l1", ExecutionMode.LOCAL), ("l2", ExecutionMode.LOCAL), ("h1", ExecutionMode.HOST)):
        world.ask(name, mode=mode)
        await asyncio.sleep(0)
    await eventually(lambda: set(world.order) == {"l1", "h1"})
    assert (world.trainers.num_taken, world.tasks["l2"].done()) == (1, False)
    world.release("h1")
    assert world.trainers.num_taken == 0


async def test_cancelled_wait_leaves_the_line_and_gives_back_what_it_was_just_granted(world: World) -> None:
    world.ask("one")
    await asyncio.sleep(0)
    world.placer.start()
    await eventually(lambda: world.runs["one"].is_placed)
    world.tasks["one"].cancel()
    await asyncio.gather(world.tasks["one"], return_exceptions=True)
    if world.tasks["one"].cancelled():
        world.ask("two")
        await world.until("two")


async def test_refused_place_is_the_waiter_s_error_and_others_go_on(world: World) -> None:
    world.selector.error = ExecutionModeError("no place")
    world.placer.start()
    world.ask("one", mode=ExecutionMode.HOST)
    with pytest.raises(ExecutionModeError):
        await world.tasks["one"]
    world.selector.error = None
    world.ask("two")
    await world.until("two")


async def test_next_attempt_of_a_trainer_s_training_may_not_fall_back(world: World) -> None:
    world.placer.start()
    world.selector.error = NoTrainerYetError("trainer gpu:1 is lost")
    world.ask("again", mode=ExecutionMode.HOST, was_lost=True)
    status = await eventually(lambda: _told(world, "again"))
    assert status == "trainer gpu:1 is lost"
    assert world.selector.asked[0] is False
    world.selector.error = None
    world.trainers.num_slots = 1
    world.trainers.on_change()
    await world.until("again")


def _told(world: World, name: str) -> str:
    status = world.placer.status(name)
    return "" if status is None or status.waiting_for == "its turn" else status.waiting_for


async def test_next_attempt_that_waits_too_long_is_lost() -> None:
    world = World(retry_wait_s=0.0)
    world.selector.error = NoTrainerYetError("trainer gpu:1 is lost")
    world.placer.start()
    world.ask("again", mode=ExecutionMode.HOST, was_lost=True)
    with pytest.raises(TrainerLostError):
        await world.tasks["again"]
    await world.placer.close()


async def test_training_that_waited_for_a_trainer_waits_on_when_that_goes_away(world: World) -> None:
    world.placer.start()
    world.ask("waits", mode=ExecutionMode.HOST)  # the trainer is there, and full
    await eventually(lambda: _told(world, "waits"))
    world.selector.error = NoTrainerYetError("trainer gpu:1 is lost")
    num_asked = len(world.selector.asked)
    world.trainers.on_change()
    await eventually(lambda: len(world.selector.asked) > num_asked)
    assert world.selector.asked[-1] is False
    world.ask("new", mode=ExecutionMode.HOST)  # it stands behind one that waits for the same
    await asyncio.sleep(0)
    assert not any(task.done() for task in world.tasks.values())
    world.selector.error = None
    world.trainers.num_slots = 2
    world.trainers.on_change()
    await eventually(lambda: set(world.order) == {"waits", "new"})
