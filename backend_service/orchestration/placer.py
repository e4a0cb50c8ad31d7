"""Hands places out: one line of waiting trainings, one task that finds each a slot in its turn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass

from backend_service.operations.records import Placement
from backend_service.orchestration.run import Run
from backend_service.orchestration.selector import ExecutionModeSelector, NoTrainerYetError
from backend_service.orchestration.trainers import Trainers
from backend_service.orchestration.wait_estimate import WaitEstimate
from backend_service.orchestration.waiting_line import Waiting, WaitingLine
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import InternalError, KtrdrError, TrainerLostError
from ktrdr_core.logging import get_logger

LOOK_AGAIN_S = 2.0  # trainers tell of free slots; this is for what nobody tells
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a training needs of a place; those with equal needs compete for the same places."""

    mode: ExecutionMode
    require_gpu: bool
    num_gpus: int
    may_fall_back: bool
    excluded: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """Where a training is in the queue.

    Attributes:
        position: Trainings that go first, plus one.
        num_queued: Trainings in the queue.
        estimated_wait_s: None while unknown.
        waiting_for: One sentence.
    """

    position: int
    num_queued: int
    estimated_wait_s: float | None
    waiting_for: str


class _Place:
    """A training in the line and the place it will get."""

    def __init__(self, run: Run, needs: Needs, loop: asyncio.AbstractEventLoop) -> None:
        self.run = run
        self.needs = needs
        self.since = time.monotonic()
        self.granted: asyncio.Future[Placement] = loop.create_future()
        self.waiting_for = "its turn"

    @property
    def kind(self) -> tuple[ExecutionMode, bool, int]:
        """What kind of place it needs, whatever became of it before."""
        return (self.needs.mode, self.needs.require_gpu, self.needs.num_gpus)


class Placer:
    """Grants slots on this machine and on trainers, in the order of the line.

    Args:
        selector: Decides on the place.
        trainers: Their slots.
        local_slots: Slots of this machine.
        retry_wait_s: How long a training that ran on a trainer waits for one before its next attempt is given up.
    """

    def __init__(
        self, selector: ExecutionModeSelector, trainers: Trainers, *, local_slots: int, retry_wait_s: float
    ) -> None:
        self._selector = selector
        self._trainers = trainers
        self._local_slots = local_slots
        self._retry_wait_s = retry_wait_s
        self._num_local = 0
        self._line = WaitingLine()
        self._places: dict[str, _Place] = {}
        self._running_by_user: Counter[str] = Counter()
        self._estimate = WaitEstimate()
        self._began: dict[str, float] = {}
        # When a trainer was last found for each kind of needs: who waited then waits on if it goes away.
        self._found_at: dict[tuple[ExecutionMode, bool, int], float] = {}
        self._started_at = 0.0
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to hand out places."""
        self._started_at = time.monotonic()
        self._trainers.on_change = self.wake
        self._task = asyncio.create_task(self._hand_out(), name="placer")

    async def close(self) -> None:
        """Hand out no more; those who wait keep waiting."""
        self._trainers.on_change = _do_nothing
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def wake(self) -> None:
        """Look again: something may have become free."""
        self._woken.set()

    async def acquire(self, run: Run) -> Placement:
        """Wait in the line for a place; `release` gives it back. Cancelled, the training leaves the line.

        Raises:
            ExecutionModeError: No place can ever satisfy the training, as things are now.
            TrainerLostError: No trainer came back for its next attempt within the limit.
        """
        place = _Place(run, self._needs_of(run), asyncio.get_running_loop())
        training_id = run.record.training_id
        scheduling = run.record.row.scheduling
        self._places[training_id] = place
        self._line.add(
            Waiting(
                training_id=training_id,
                user=scheduling.user,
                priority=scheduling.priority,
                position=run.position,
                needs=place.needs,
            )
        )
        self.wake()
        try:
            return await place.granted
        except asyncio.CancelledError:
            if place.granted.done() and not place.granted.cancelled() and place.granted.exception() is None:
                self.release(run, place.granted.result())
            raise
        finally:
            self._line.remove(training_id)
            self._places.pop(training_id, None)

    def adopt(self, run: Run, address: str) -> Placement:
        """Count a training that runs on a trainer already, since before the backend was restarted."""
        placement = Placement(mode=ExecutionMode.HOST, trainer=address)
        self._take(run, placement)
        return placement

    def release(self, run: Run, placement: Placement, *, has_run: bool = False) -> None:
        """Give a place back.

        Args:
            run: Whose it was.
            placement: What `acquire` or `adopt` gave.
            has_run: Its attempt ended by itself, so that its duration tells how long others may take.
        """
        run.placement = None
        user = run.record.row.scheduling.user
        self._running_by_user[user] -= 1
        if not self._running_by_user[user]:
            del self._running_by_user[user]
        if placement.mode is ExecutionMode.LOCAL:
            self._num_local -= 1
        else:
            self._trainers.release(placement.trainer)
        began = self._began.pop(run.record.training_id, None)
        if has_run and began is not None:
            self._estimate.record(self._needs_of(run), time.monotonic() - began)
        self.wake()

    def status(self, training_id: str) -> QueueStatus | None:
        """Return where a training is in the queue, None if it is not in it."""
        place = self._places.get(training_id)
        position = self._line.position_of(training_id)
        among_equals = self._line.position_among_equals(training_id)
        if place is None or position is None or among_equals is None:
            return None
        num_slots, num_busy = self._slots_for(place.needs)
        return QueueStatus(
            position=position,
            num_queued=len(self._line),
            estimated_wait_s=self._estimate.wait_s(among_equals, place.needs, num_slots=num_slots, num_busy=num_busy),
            waiting_for=place.waiting_for,
        )

    def _slots_for(self, needs: Needs) -> tuple[int, int]:
        """Return how many slots there are for a training, and how many of them are taken."""
        if self._selector.may_use_trainer(str(needs.mode), require_gpu=needs.require_gpu or needs.num_gpus > 0):
            num_slots = self._trainers.num_slots
            if num_slots:
                return num_slots, num_slots - self._trainers.num_free_slots
        return self._local_slots, self._num_local

    def _needs_of(self, run: Run) -> Needs:
        spec = run.record.row.spec
        mode = self._selector.effective_mode(None if spec.execution_mode is None else str(spec.execution_mode))
        # A training that was lost with its trainer goes on when there is a trainer, not on whatever machine this is.
        was_on_trainer = any(session.is_on_trainer and session.outcome for session in run.record.sessions)
        return Needs(
            mode=mode,
            require_gpu=spec.require_gpu,
            num_gpus=spec.num_gpus,
            may_fall_back=not was_on_trainer,
            excluded=run.unsuitable,
        )

    async def _hand_out(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._pass()
            except Exception:  # noqa: BLE001 - a defect costs this round, not the placing of everybody for ever
                _log.exception("A round of placing failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S if len(self._line) else None):
                    await self._woken.wait()

    async def _pass(self) -> None:
        """Walk the line once; where one training finds no place, those with equal needs are passed over."""
        blocked: set[Needs] = set()
        for waiting in self._line.walk(self._running_by_user, blocked):
            place = self._places[waiting.training_id]
            try:
                placement = await self._find(place)
            except KtrdrError as error:
                self._fail(waiting, place, error)
            except Exception as error:  # noqa: BLE001 - a defect ends this training, not the placing of all others
                _log.exception("Placing training %s failed", waiting.training_id)
                self._fail(waiting, place, InternalError(f"placing failed with {type(error).__name__}"))
            else:
                if placement is None:
                    blocked.add(place.needs)
                elif not place.granted.done():  # else it was cancelled meanwhile
                    self._take(place.run, placement)
                    self._line.remove(waiting.training_id)
                    place.granted.set_result(placement)
                else:
                    self._line.remove(waiting.training_id)

    def _fail(self, waiting: Waiting, place: _Place, error: KtrdrError) -> None:
        self._line.remove(waiting.training_id)
        if not place.granted.done():
            place.granted.set_exception(error)

    def _take(self, run: Run, placement: Placement) -> None:
        run.placement = placement
        self._running_by_user[run.record.row.scheduling.user] += 1
        self._began[run.record.training_id] = time.monotonic()
        if placement.mode is ExecutionMode.LOCAL:
            self._num_local += 1
        else:
            self._trainers.reserve(placement.trainer)

    def _may_wait(self, place: _Place) -> bool:
        """Return whether a training waits for a trainer that is away, rather than fail or run here.

        It does if there was one while it waited: trainers restart, and a poll may be missed. After a restart of the
        backend those left behind wait until trainers had time to register again.
        """
        found_at = self._found_at.get(place.kind)
        is_early = time.monotonic() - self._started_at < self._trainers.lease_s
        return (found_at is not None and place.since <= found_at) or (place.run.is_restored and is_early)

    async def _find(self, place: _Place) -> Placement | None:
        """Return a place with a free slot, None if there is none now."""
        needs = place.needs
        may_wait = self._may_wait(place)
        try:
            placement = await self._selector.select(
                str(needs.mode) if place.run.record.row.spec.execution_mode is not None else None,
                require_gpu=needs.require_gpu,
                num_gpus=needs.num_gpus,
                may_fall_back=needs.may_fall_back and not may_wait,
                excluded=needs.excluded,
            )
        except NoTrainerYetError as error:
            waited_s = time.monotonic() - place.since
            if waited_s > self._retry_wait_s:
                raise TrainerLostError(
                    f"no trainer came back within {self._retry_wait_s:g} s for the next attempt ({error.message}); "
                    "train again once there is one"
                ) from error
            place.waiting_for = error.message
            return None
        if placement.mode is ExecutionMode.LOCAL:
            place.waiting_for = "a slot of the backend's machine"
            return placement if self._num_local < self._local_slots else None
        self._found_at[place.kind] = time.monotonic()
        place.waiting_for = f"a slot of a trainer: {placement.reasons[-1]}"
        return placement if self._trainers.free_slots(placement.trainer) > 0 else None


def _do_nothing() -> None:
    """Nobody places any more."""
