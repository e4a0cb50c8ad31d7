"""Brings every accepted training to its end: a place, an attempt, after a loss the next one; cancels, drains."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from backend_service.checkpoints import CheckpointStore
from backend_service.operations.records import LOCAL_TRAINER, Fence, Placement
from backend_service.operations.request_id import check_request_id
from backend_service.operations.training_record import TrainingRecord, TrainingSnapshot
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.attempts import LostAttempt, delay_before, next_attempt, refuse_retry
from backend_service.orchestration.completion import Completion
from backend_service.orchestration.fences import Fences
from backend_service.orchestration.host import HostRunner
from backend_service.orchestration.local import LocalTrainingOrchestrator
from backend_service.orchestration.placer import Placer, QueueStatus
from backend_service.orchestration.run import DEFAULT_CANCEL_REASON, CancelOrder, Run
from backend_service.orchestration.trainers import Trainers
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    DrainingError,
    IllegalStateError,
    InternalError,
    InvalidInputError,
    KtrdrError,
    NoSlotError,
    StorageError,
    TrainerLostError,
    UnavailableError,
)
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.logging import get_logger, log_context
from ktrdr_core.undisturbed import undisturbed

_log = get_logger(__name__)

KILL_LIMIT_S = 5.0
STOP_LIMIT_S = 5.0
LOCAL_SLOT_RETRY_S = 0.5
MAX_REASON_LENGTH = 1_000


class Dispatcher:
    """One task per training that has not ended.

    Args:
        trainings: Where trainings are found.
        placer: Hands out places.
        trainers: Those that places are on.
        local: The backend's machine; None if it cannot train.
        host: The way attempts go on trainers.
        fences: Ends what lost attempts left behind.
        completion: Ends trainings whose model is published.
        checkpoints: What attempts go on from.
        stop_limit_s: Time a local worker gets to stop with a checkpoint when a drain is over.
        kill_limit_s: Time a killed worker gets to be gone before a drain goes on without it.
    """

    def __init__(
        self,
        trainings: Trainings,
        placer: Placer,
        trainers: Trainers,
        *,
        local: LocalTrainingOrchestrator | None,
        host: HostRunner,
        fences: Fences,
        completion: Completion,
        checkpoints: CheckpointStore,
        stop_limit_s: float = STOP_LIMIT_S,
        kill_limit_s: float = KILL_LIMIT_S,
    ) -> None:
        self._trainings = trainings
        self._placer = placer
        self._trainers = trainers
        self._local = local
        self._host = host
        self._fences = fences
        self._completion = completion
        self._checkpoints = checkpoints
        self._stop_limit_s = stop_limit_s
        self._kill_limit_s = kill_limit_s
        self._runs: dict[str, Run] = {}
        self._num_submitted = 0
        self._is_draining = False
        self._orders: set[asyncio.Task[Any]] = set()
        self._has_drained = asyncio.Event()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The trainings in charge, in the order they came."""
        return tuple(self._runs.values())

    @property
    def num_orders(self) -> int:
        """Cancels that are being written down or obeyed."""
        return len(self._orders)

    def submit(self, record: TrainingRecord, *, is_restored: bool = False) -> None:
        """Take charge of a training until it has ended; one that has ended, or is in charge already, is ignored.

        Args:
            record: The training.
            is_restored: It was left behind by a restart.
        """
        if record.is_ended or record.training_id in self._runs:
            return
        self._num_submitted += 1
        run = Run(record, position=self._num_submitted, is_restored=is_restored)
        row = record.row
        if row.cancel_save_checkpoint is not None:
            run.cancel(
                CancelOrder(
                    save_checkpoint=row.cancel_save_checkpoint, reason=row.cancel_reason or DEFAULT_CANCEL_REASON
                )
            )
        self._runs[record.training_id] = run
        with log_context(training_id=record.training_id):
            run.task = asyncio.create_task(self._drive(run), name=f"training-{record.training_id}")

    def queue_status(self, training_id: str) -> QueueStatus | None:
        """Return where a training is in the queue, None if it is not in it."""
        return self._placer.status(training_id)

    async def cancel(self, training_id: str, *, save_checkpoint: bool, reason: str) -> TrainingSnapshot:
        """End a training and return it once its end is verified; concurrent calls share one end.

        A trainer that cannot be reached is asked again until it answers or counts as lost.

        Raises:
            TrainingNotFoundError: There is no such training.
            IllegalStateError: It has already ended; the state is in the metadata.
        """
        record = await self._trainings.require_active(training_id)
        run = self._runs.get(training_id)
        order = CancelOrder(save_checkpoint=save_checkpoint, reason=reason or DEFAULT_CANCEL_REASON)
        if run is None and self._is_draining:
            raise DrainingError("the backend is stopping; cancel the training once it is back")
        if run is None:  # it was accepted this moment; `submit` finds the cancel in its row
            await record.accept_cancel(
                save_checkpoint=save_checkpoint, reason=order.reason, message=f"Cancelling: {order.reason}"
            )
            await self._wait_ended(record)
            return record.snapshot()
        silence = f"; {run.trainer_silence}: asked until it does, or counts as lost" if run.trainer_silence else ""
        accepting = record.accept_cancel(
            save_checkpoint=save_checkpoint, reason=order.reason, message=f"Cancelling: {order.reason}{silence}"
        )
        if run.is_placed:
            run.cancel(order)  # the worker need not go on while CANCELLING is written; its end is stored after that
        await undisturbed(self._give_order(run, order, accepting), self._orders)
        await self._wait_ended(record)
        return record.snapshot()

    async def _wait_ended(self, record: TrainingRecord) -> None:
        """Return once a training has ended.

        Raises:
            DrainingError: The backend stops before it has.
        """
        ended = asyncio.create_task(record.wait_ended())
        stopped = asyncio.create_task(self._has_drained.wait())
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                raise DrainingError("the backend is stopping; the cancel is stored, and goes on once it is back")
        finally:
            ended.cancel()
            stopped.cancel()

    async def _give_order(self, run: Run, order: CancelOrder, accepting: asyncio.Future[None]) -> None:
        """Give the order once CANCELLING is stored, also if the caller has gone by then."""
        await accepting
        run.cancel(order)
        if not run.is_placed and not run.is_dropped and run.task is not None:
            run.is_dropped = True
            run.task.cancel()

    async def cancel_either(
        self, training_id: str, request_id: str, *, save_checkpoint: bool, reason: str
    ) -> TrainingSnapshot | None:
        """End the training that is named by its id or by its request; see `cancel` and `cancel_request`.

        Raises:
            InvalidInputError: Not exactly one of the two is given, or the reason is too long.
        """
        if len(reason) > MAX_REASON_LENGTH:
            raise InvalidInputError(
                f"cancel_reason must have at most {MAX_REASON_LENGTH} characters, had {len(reason)}",
                field="cancel_reason",
            )
        if bool(training_id) == bool(request_id):
            raise InvalidInputError(
                f"give either training_id or request_id, were {training_id!r} and {request_id!r}", field="training_id"
            )
        if training_id:
            return await self.cancel(training_id, save_checkpoint=save_checkpoint, reason=reason)
        return await self.cancel_request(request_id, save_checkpoint=save_checkpoint, reason=reason)

    async def cancel_request(self, request_id: str, *, save_checkpoint: bool, reason: str) -> TrainingSnapshot | None:
        """End the training that a request made, as `cancel`; if it has not arrived, have it end as it arrives.

        Returns:
            The training; None if it has not arrived.
        """
        check_request_id(request_id)
        reason = reason or DEFAULT_CANCEL_REASON
        training_id = await self._trainings.cancel_request(request_id, save_checkpoint=save_checkpoint, reason=reason)
        if training_id is None:
            return None
        return await self.cancel(training_id, save_checkpoint=save_checkpoint, reason=reason)

    async def drain(self, limit_s: float, hurry: asyncio.Event) -> None:
        """Let trainings on this machine end within the limit or until `hurry`; those on trainers go on without us.

        What still runs here then is stopped with a checkpoint, or killed on `hurry`; the next start goes on from it.
        Queued trainings stay QUEUED. A worker that SIGKILL does not end within `kill_limit_s` is left to the kernel;
        the next start ends it.
        """
        self._is_draining = True
        await self._placer.close()
        runs = self.runs
        local = [run for run in runs if run.is_placed and _is_local(run)]
        others = [run.task for run in runs if run not in local and run.task is not None]
        for task in others:
            task.cancel()
        tasks = {run.task for run in local if run.task is not None}
        if tasks and not await _end_within(tasks, limit_s, hurry):
            for run in local:
                run.cancel(CancelOrder(save_checkpoint=True, is_drain=True, reason="the backend stops"))
            if not await _end_within(tasks, self._stop_limit_s, hurry):
                for run in local:
                    run.cancel(CancelOrder(is_drain=True, reason="the backend stops"))
        if tasks or others:
            _, left = await asyncio.wait([*tasks, *others], timeout=self._kill_limit_s)
            for task in left:
                _log.warning("%s does not end within %g s; left to the next start", task.get_name(), self._kill_limit_s)
        await self._fences.close()
        self._has_drained.set()

    async def _drive(self, run: Run) -> None:
        record = run.record
        try:
            await self._resume(run)
            while not record.is_ended and not self._is_draining:
                await self._attempt(run)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not run.is_dropped or task is None:
                raise  # the backend stops; what runs on a trainer goes on without it
            task.uncancel()  # the cancel of a training that only waited: nothing runs anywhere
            await undisturbed(self._end_waiting(run), self._orders)
        except StorageError as error:
            _log.warning("Left to the next start: %s", error.message)  # it gives up only when the service stops
        except KtrdrError as error:
            if self._is_draining and isinstance(error, UnavailableError):
                _log.warning("Left to the next start: %s", error.message)  # what it needed has been closed already
            else:
                await self._end_failed(record, error)
        except Exception as error:  # noqa: BLE001 - a defect must end the training, not leave it "running" for days
            _log.exception("The training could not be driven")
            await self._end_failed(record, error)
        finally:
            self._runs.pop(record.training_id, None)
            if record.is_ended and record.state is not TrainingState.STOPPED:
                await self._checkpoints.remove(record.training_id)

    async def _resume(self, run: Run) -> None:
        """Follow the attempt that a restart of the backend left on a trainer, or end what was being cancelled."""
        record = run.record
        session = record.live_session
        if session is not None and session.is_on_trainer:
            placement = self._placer.adopt(run, session.trainer)
            try:
                with log_context(attempt=session.attempt, trainer=session.trainer):
                    await self._conclude(run, await self._host.resume(run, session))
            except NoSlotError as error:
                _log.info("The attempt had not begun: %s", error.message)
            finally:
                self._placer.release(run, placement)
        elif record.state is not TrainingState.QUEUED:
            await self._end_waiting(run)

    async def _attempt(self, run: Run) -> None:
        """Wait for a place and make one attempt there, to its end or its loss."""
        record = run.record
        if run.order is not None:  # it came while the training was between two places
            await self._end_waiting(run)
            return
        await asyncio.sleep(delay_before(record))
        placement = await self._placer.acquire(run)
        has_run = False
        try:
            await record.place(placement)
            with log_context(attempt=next_attempt(record), trainer=placement.trainer or LOCAL_TRAINER):
                lost = await self._run_on(run, placement)
                has_run = lost is None
                await self._conclude(run, lost)
        except NoSlotError as error:
            _log.info("Not there after all: %s", error.message)
            if placement.mode is ExecutionMode.HOST:
                self._trainers.mark_full(placement.trainer)
            else:
                await asyncio.sleep(LOCAL_SLOT_RETRY_S)
        finally:
            self._placer.release(run, placement, has_run=has_run)

    async def _run_on(self, run: Run, placement: Placement) -> LostAttempt | None:
        record = run.record
        if placement.mode is ExecutionMode.HOST:
            return await self._host.run(run, placement)
        if self._local is None:
            raise InternalError("the selector chose this machine, which cannot train")
        if any("falls back" in reason for reason in placement.reasons):
            await record.warn("FALLBACK_TO_LOCAL", f"runs on the backend's machine: {placement.reasons[-1]}")
        return await self._local.run(run, placement)

    async def _conclude(self, run: Run, lost: LostAttempt | None) -> None:
        """Give a lost attempt up, durably: its training waits for the next one, or ends.

        The place is given back only afterwards, so that a cancel meanwhile is an order to the place, never lost.
        """
        if lost is None or run.record.is_ended:
            return
        record = run.record
        kept = await self._checkpoints.find(record.training_id)

        async def give_up() -> None:
            try:
                await self._give_up(run, lost, kept)
            except IllegalStateError:
                if record.state is not TrainingState.CANCELLING:
                    raise
                await self._give_up(run, lost, kept)  # the cancel was stored a moment before

        missing = "" if lost.is_log_whole else lost.cause
        await self._completion.complete_if_published(record, missing=missing, otherwise=give_up)
        if record.last_session is not None:
            self._fences.add(record.last_session)
        if lost.session.is_on_trainer:
            self._trainers.ask_again(lost.session.trainer)

    async def _give_up(self, run: Run, lost: LostAttempt, kept: SessionCheckpoint | None) -> None:
        record = run.record
        state: TrainingState | None = None
        checkpoint_path = ""
        if record.state is TrainingState.CANCELLING:
            order = run.order if run.order is not None and not run.order.is_drain else CancelOrder()
            state = TrainingState.CANCELLED
            message = f"{order.reason}; {lost.cause}"
            if lost.error_reason == TrainerLostError.reason:
                message += "; what runs there is ended as soon as it answers"
            if order.save_checkpoint and kept is not None:
                state, checkpoint_path = TrainingState.STOPPED, str(kept.path)
                message += f"; the checkpoint of epoch {kept.epoch} is kept"
        elif refusal := refuse_retry(record, lost.error_reason):
            state = TrainingState.FAILED
            message = f"{lost.cause}; {refusal}; train again"
        elif kept is not None:
            message = f"{lost.cause}; the next attempt goes on from the checkpoint of epoch {kept.epoch}"
        else:
            message = f"{lost.cause}; the next attempt begins at the beginning"
        await record.lose_session(
            lost.session,
            error_reason=lost.error_reason,
            message=message,
            state=state,
            checkpoint_path=checkpoint_path,
        )
        _log.warning("Attempt %d is lost: %s", lost.session.attempt, message)

    async def _end_waiting(self, run: Run) -> None:
        """End a training that nothing executes any more."""
        if run.record.is_ended:
            return
        order = run.order or CancelOrder()
        kept = await self._checkpoints.find(run.record.training_id) if order.save_checkpoint else None
        if kept is None:
            await run.record.try_move_to(order.state_unbegun, order.message_unbegun)
        else:
            await run.record.try_move_to(
                TrainingState.STOPPED,
                f"{order.reason}; the checkpoint of epoch {kept.epoch} is kept",
                checkpoint_path=str(kept.path),
            )

    async def _end_failed(self, record: TrainingRecord, error: Exception) -> None:
        if record.is_ended:
            return
        known = isinstance(error, KtrdrError) and not isinstance(error, InternalError)
        message = str(error) if known else "the backend failed in an unexpected way; its log has the details"
        reason = error.reason if isinstance(error, KtrdrError) else InternalError.reason
        session = record.live_session
        fenced = None if session is None or not session.is_on_trainer else replace(session, fence=Fence.PENDING)
        await record.try_move_to(TrainingState.FAILED, message, error_reason=reason, session=fenced)
        if fenced is not None and record.last_session is not None:
            self._fences.add(record.last_session)


async def _end_within(tasks: set[asyncio.Task[None]], limit_s: float, hurry: asyncio.Event) -> bool:
    """Return whether all tasks ended within the limit and before `hurry`."""
    hurried = asyncio.create_task(hurry.wait())
    ended = asyncio.create_task(_wait_all(list(tasks)))
    await asyncio.wait({hurried, ended}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    ended.cancel()
    return all(task.done() for task in tasks)


async def _wait_all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _is_local(run: Run) -> bool:
    return run.placement is not None and run.placement.mode is ExecutionMode.LOCAL
