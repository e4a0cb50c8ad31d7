"""Brings every accepted training to a place, ends those that are cancelled, picks up those a restart left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backend_service.operations.records import LOCAL_TRAINER, Placement
from backend_service.operations.training_record import TrainingRecord, TrainingSnapshot
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.host import HostRunner, is_on_trainer
from backend_service.orchestration.local import LocalTrainingOrchestrator
from backend_service.orchestration.run import CancelOrder, Run
from backend_service.orchestration.selector import ExecutionModeSelector
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    DrainingError,
    InternalError,
    KtrdrError,
    NoSlotError,
    TrainerLostError,
)
from ktrdr_core.logging import get_logger

_log = get_logger(__name__)

MAX_RETRY_S = 1.0
KILL_LIMIT_S = 5.0


class Dispatcher:
    """One task per training that has not ended.

    Trainings that need a trainer queue in one line, the one at its head asks; local ones queue for local slots. So
    each line is first come, first served, and thousands of waiting trainings cost no polling.

    Args:
        trainings: Where trainings are found.
        selector: Decides on the place.
        local: The backend's machine; None if it cannot train.
        host: The trainers.
        kill_limit_s: Time a killed worker gets to be gone before a drain goes on without it.
    """

    def __init__(
        self,
        trainings: Trainings,
        selector: ExecutionModeSelector,
        *,
        local: LocalTrainingOrchestrator | None,
        host: HostRunner,
        kill_limit_s: float = KILL_LIMIT_S,
    ) -> None:
        self._trainings = trainings
        self._selector = selector
        self._local = local
        self._host = host
        self._kill_limit_s = kill_limit_s
        self._trainer_line = asyncio.Lock()
        self._runs: dict[str, Run] = {}

    def submit(self, record: TrainingRecord) -> None:
        """Take charge of a training, new or left behind by a restart, until it has ended."""
        run = Run(record)
        if record.row.cancel_save_checkpoint is not None:
            run.cancel(CancelOrder(save_checkpoint=record.row.cancel_save_checkpoint))
        self._runs[record.training_id] = run
        run.task = asyncio.create_task(self._drive(run), name=f"training-{record.training_id}")

    async def cancel(self, training_id: str, *, save_checkpoint: bool, reason: str) -> TrainingSnapshot:
        """End a training and return it once its end is verified; concurrent calls share one end.

        A trainer that cannot be reached is asked again until it answers or counts as lost.

        Raises:
            TrainingNotFoundError: There is no such training.
            IllegalStateError: It has already ended; the state is in the metadata.
            TrainerLostError: Its trainer is gone: the training FAILED, the end of its worker is not verified.
        """
        record = await self._trainings.require_active(training_id)
        run = self._runs.get(training_id)
        if run is None:
            raise DrainingError("the backend is stopping; cancel the training once it is back")
        order = (
            CancelOrder(save_checkpoint=save_checkpoint, reason=reason)
            if reason
            else CancelOrder(save_checkpoint=save_checkpoint)
        )
        accepting = record.accept_cancel(save_checkpoint=save_checkpoint, message=f"Cancelling: {order.reason}")
        if run.is_placed:
            run.cancel(order)  # the worker need not go on while CANCELLING is written; its end is stored after that
        await accepting
        run.cancel(order)
        if not run.is_placed and run.task is not None:
            run.task.cancel()
        state = await record.wait_ended()
        snapshot = record.snapshot()
        if state is TrainingState.FAILED and snapshot.summary.error_reason == TrainerLostError.reason:
            raise TrainerLostError(snapshot.summary.message, metadata={"training_id": training_id})
        return snapshot

    async def drain(self, limit_s: float, hurry: asyncio.Event) -> None:
        """Let trainings on this machine end within the limit or until `hurry`; those on trainers go on without us.

        Queued trainings stay QUEUED and are dispatched by the next start. A worker that SIGKILL does not end within
        `kill_limit_s` is left to the kernel; the next start ends its training.
        """
        runs = list(self._runs.values())
        local = [run for run in runs if run.is_placed and _is_local(run.record)]
        others = [run.task for run in runs if run not in local and run.task is not None]
        for task in others:
            task.cancel()
        tasks = [run.task for run in local if run.task is not None]
        if tasks:
            hurried = asyncio.create_task(hurry.wait())
            ended = asyncio.create_task(_wait_all(tasks))
            await asyncio.wait({hurried, ended}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            ended.cancel()
            late = [task for task in tasks if not task.done()]
            for run in local:
                if run.task in late:
                    run.cancel(CancelOrder(is_drain=True, reason="the backend stops"))
        if tasks or others:
            _, left = await asyncio.wait([*tasks, *others], timeout=self._kill_limit_s)
            for task in left:
                _log.error("%s does not end within %g s; stopping without it", task.get_name(), self._kill_limit_s)

    async def _drive(self, run: Run) -> None:
        record = run.record
        try:
            if is_on_trainer(record.last_session):
                await self._resume(run)
            elif record.state is not TrainingState.QUEUED:
                await self._end_waiting(run)
            if not record.is_ended:
                await self._place(run)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if run.order is None or run.is_placed or task is None:
                raise
            task.uncancel()  # the cancel of a training that only waited: nothing runs anywhere
            await self._end_waiting(run)
        except Exception as error:  # noqa: BLE001 - a defect must end the training, not leave it "running" for days
            _log.exception("training %s could not be driven", record.training_id)
            await self._end_failed(record, error)
        finally:
            self._runs.pop(record.training_id, None)

    async def _resume(self, run: Run) -> None:
        """Follow the session again; if it never began, hand it over again, to the same trainer."""
        session = run.record.last_session
        if session is None:
            return
        run.is_placed = True
        if run.record.state is not TrainingState.QUEUED:
            await self._host.follow(run, session, is_resumed=True)
            return
        try:
            accepted = await self._host.hand_over(run, session.trainer, session=session)
        except NoSlotError:
            run.is_placed = False
            return
        if accepted is not None:
            await self._host.follow(run, accepted)

    async def _place(self, run: Run) -> None:
        record = run.record
        spec = record.row.spec
        mode = None if spec.execution_mode is None else str(spec.execution_mode)
        needs_gpu = spec.require_gpu or spec.num_gpus > 0
        try:
            if self._selector.may_use_trainer(mode, require_gpu=needs_gpu):
                async with self._trainer_line:
                    accepted = await self._find_trainer(run, mode)
                if accepted is None:
                    return
                if accepted.mode is ExecutionMode.HOST and record.last_session is not None:
                    await self._host.follow(run, record.last_session)
                    return
            else:
                await record.place(await self._selector.select(mode))
        except KtrdrError as error:
            await self._end_failed(record, error)
            return
        if self._local is None:
            raise InternalError("the selector chose this machine, which cannot train")
        await self._local.run(run)

    async def _find_trainer(self, run: Run, mode: str | None) -> Placement | None:
        """Return where the training goes: a trainer that accepted it, or this machine; None if it ended instead."""
        record = run.record
        spec = record.row.spec
        while True:
            placement = await self._selector.select(mode, require_gpu=spec.require_gpu, num_gpus=spec.num_gpus)
            await record.place(placement)
            if placement.mode is ExecutionMode.LOCAL:
                if self._selector.effective_mode(mode) is ExecutionMode.HOST:
                    await record.warn("FALLBACK_TO_LOCAL", f"runs on the backend's machine: {placement.reasons[-1]}")
                return placement
            run.is_placed = True
            try:
                accepted = await self._host.hand_over(run, placement.trainer)
                return placement if accepted is not None else None
            except NoSlotError as error:
                run.is_placed = False
                if run.order is not None:
                    await self._end_waiting(run)
                    return None
                await asyncio.sleep(min(error.retry_after_s, MAX_RETRY_S))

    async def _end_waiting(self, run: Run) -> None:
        """End a training that nothing executes any more."""
        if run.record.is_ended:
            return
        order = run.order or CancelOrder()
        await run.record.move_to(order.state_unbegun, order.message_unbegun)

    async def _end_failed(self, record: TrainingRecord, error: Exception) -> None:
        if record.is_ended:
            return
        known = isinstance(error, KtrdrError) and not isinstance(error, InternalError)
        message = str(error) if known else "the backend failed in an unexpected way; its log has the details"
        reason = error.reason if isinstance(error, KtrdrError) else InternalError.reason
        await record.try_move_to(TrainingState.FAILED, message, error_reason=reason)


async def _wait_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _is_local(record: TrainingRecord) -> bool:
    return record.last_session is not None and record.last_session.trainer == LOCAL_TRAINER
