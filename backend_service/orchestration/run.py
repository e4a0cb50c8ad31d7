"""One training on its way through its attempts: what the dispatcher, a place and a cancel share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from backend_service.operations.records import Placement
from backend_service.operations.training_record import TrainingRecord
from ktrdr_core.domain.states import TrainingState

DEFAULT_CANCEL_REASON = "Cancelled on request"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOrder:
    """How to end a run.

    Attributes:
        save_checkpoint: Stop at the next batch and keep a checkpoint.
        reason: One sentence for the record.
        is_drain: The backend stops: the attempt ends, the training does not.
    """

    save_checkpoint: bool = False
    reason: str = DEFAULT_CANCEL_REASON
    is_drain: bool = False

    @property
    def state_unbegun(self) -> TrainingState:
        """The state a training ends in that no worker has begun."""
        return TrainingState.STOPPED if self.save_checkpoint else TrainingState.CANCELLED

    @property
    def message_unbegun(self) -> str:
        """The sentence that goes with `state_unbegun`; a stop claims no checkpoint."""
        return f"{self.reason}; nothing had begun, so there is no checkpoint" if self.save_checkpoint else self.reason


class Run:
    """A training being placed, executed or followed.

    `placement` is None while it only waits: then it can be dropped without asking anyone. The placer sets it, without
    awaiting in between, as it hands a place out.

    Attributes:
        record: The training.
        position: Its place in the order of acceptance, which it keeps for every attempt.
        trainer_silence: What is known of a trainer that does not answer, "" while it does.
        has_model: A model of the training is known to be stored.
        placement: Where it is; None while it only waits.
        unsuitable: Trainers that lack its bars.
        is_restored: It was left behind by a restart of the backend.
        is_dropped: Its task was told that it need not wait any more.
    """

    def __init__(self, record: TrainingRecord, *, position: int, is_restored: bool = False) -> None:
        self.record = record
        self.position = position
        self.is_restored = is_restored
        self.placement: Placement | None = None
        self.unsuitable: frozenset[str] = frozenset()
        self.is_dropped = False
        self.trainer_silence = ""
        self.has_model = False
        self.task: asyncio.Task[None] | None = None
        self._order: CancelOrder | None = None
        self._ordered = asyncio.Event()

    @property
    def is_placed(self) -> bool:
        """Whether it has a place, so that ending it means asking that place."""
        return self.placement is not None

    @property
    def order(self) -> CancelOrder | None:
        return self._order

    def cancel(self, order: CancelOrder) -> None:
        """Ask the place to end the training; a kill overtakes a stop, a cancel a drain, nothing else the first."""
        known = self._order
        if (
            known is None
            or (known.is_drain and not order.is_drain)
            or (known.save_checkpoint and not order.save_checkpoint and (known.is_drain or not order.is_drain))
        ):
            self._order = order
            self._ordered.set()

    async def next_order(self, after: CancelOrder | None = None) -> CancelOrder:
        """Return the order once there is one other than `after`."""
        while self._order is None or self._order is after:
            self._ordered.clear()
            await self._ordered.wait()
        return self._order


@asynccontextmanager
async def obeying(run: Run, obey: Callable[[CancelOrder], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Have `obey` carry out each order, also one given before, while the block runs.

    A later order does not wait for an earlier one. What is not done when the block ends is dropped: by then there is
    nothing left to be ended.
    """

    async def pass_on() -> None:
        order: CancelOrder | None = None
        async with asyncio.TaskGroup() as calls:
            while True:
                order = await run.next_order(after=order)
                calls.create_task(obey(order))

    passing = asyncio.create_task(pass_on())
    try:
        yield
    finally:
        passing.cancel()
        await asyncio.wait([passing])
