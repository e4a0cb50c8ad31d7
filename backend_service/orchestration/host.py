"""Attempts on trainers: handing over, following across broken connections, cancelling, giving up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import grpc.aio
from ktrdr.trainer.v1 import trainer_service_pb2 as pb

from backend_service.checkpoints import CheckpointStore
from backend_service.operations.records import Placement, SessionRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.orchestration.attempt_bars import AttemptBars
from backend_service.orchestration.attempts import LOST_REASONS, LostAttempt, next_session, without_trainer
from backend_service.orchestration.checkpoint_pull import CheckpointPull
from backend_service.orchestration.completion import Completion
from backend_service.orchestration.hand_over import RETRY_S, HandOver
from backend_service.orchestration.run import CancelOrder, Run, obeying
from backend_service.orchestration.trainer_bars import TrainerBars
from backend_service.orchestration.trainers import Trainers
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    DrainingError,
    IllegalStateError,
    InternalError,
    InvalidInputError,
    KtrdrError,
    NoSlotError,
    NotFoundError,
    SessionNotFoundError,
    StorageError,
    TrainerLostError,
    UnavailableError,
    UnreachableError,
    VersionSkewError,
)
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.wire.from_proto import event_from_proto

_log = get_logger(__name__)

READ_WATCHDOG_S = 5.0
CANCEL_TIMEOUT_S = 60.0  # a stop with checkpoint may wait 30 s for the end of a batch
COMPLETION_GRACE_S = 5.0
VIEW_AGE_S = 60.0


class HostRunner:
    """Hands attempts to trainers and follows their sessions.

    Args:
        trainers: The way to them.
        completion: Ends trainings whose model is published.
        checkpoints: What attempts go on from.
        bars: What attempts are trained on.
        upload_target: Returns the address trainers upload to, and fetch bars from.
        version: Of this backend; a trainer of another one refuses its sessions.
        trainer_lost_s: Silence after which an attempt is lost.
        history_wait_s: Silence after which a training whose model is stored is completed with a hole in its history.
    """

    def __init__(
        self,
        trainers: Trainers,
        completion: Completion,
        checkpoints: CheckpointStore,
        *,
        bars: AttemptBars,
        upload_target: Callable[[], str],
        version: str,
        trainer_lost_s: float = 10.0,
        history_wait_s: float = 300.0,
    ) -> None:
        self._trainers = trainers
        self._completion = completion
        self._checkpoints = checkpoints
        self._hand_over = HandOver(
            trainers,
            bars,
            TrainerBars(trainers, address=upload_target),
            upload_target=upload_target,
            version=version,
            trainer_lost_s=trainer_lost_s,
        )
        self._trainer_lost_s = trainer_lost_s
        self._history_wait_s = history_wait_s

    async def run(self, run: Run, placement: Placement) -> LostAttempt | None:
        """Hand the next attempt to a trainer and follow it.

        Returns:
            The attempt if it was lost; None if the training has ended, or was cancelled before anything began.

        Raises:
            NoSlotError: The trainer has no free slot, drains, is of another version or lacks the bars; nothing began.
        """
        record = run.record
        address = placement.trainer
        checkpoint = await self._checkpoints.find(record.training_id)
        session = replace(
            next_session(record, placement, trainer_id=self._trainers.trainer_id_of(address)),
            resumed_from_epoch=checkpoint.epoch if checkpoint else 0,
        )
        await record.put_session(session)
        return await self._begin(run, session, checkpoint)

    async def resume(self, run: Run, session: SessionRow) -> LostAttempt | None:
        """Follow an attempt again after a restart of the backend; one that may not have begun is handed over again.

        Raises:
            NoSlotError: It had not begun, and its trainer has no free slot any more.
        """
        if run.record.state is TrainingState.QUEUED:
            return await self._begin(run, session, await self._checkpoints.find(run.record.training_id))
        return await self._follow(run, session, is_resumed=True)

    async def _begin(self, run: Run, session: SessionRow, checkpoint: SessionCheckpoint | None) -> LostAttempt | None:
        """Have the trainer begin, and follow; a cancel meanwhile ends both."""
        record = run.record
        handing_over = asyncio.ensure_future(self._hand_over.give(record, session, checkpoint))
        ordered = asyncio.ensure_future(run.next_order())
        try:
            await asyncio.wait({handing_over, ordered}, return_when=asyncio.FIRST_COMPLETED)
            if not handing_over.done() and not ordered.result().is_drain:
                # Nobody knows whether the trainer has begun; if it begins later, it remembers the cancel.
                handing_over.cancel()
                await asyncio.wait([handing_over])
                return await self._follow(run, session)
            session, refusal = await handing_over
        finally:
            for task in (handing_over, ordered):
                task.cancel()
            await asyncio.wait([handing_over, ordered])
        if refusal is None:
            return await self._follow(run, session)
        error = refusal.error
        if refusal.is_of_trainer:
            if await self._is_another_left(run, session.trainer):
                run.unsuitable |= {session.trainer}
                error = NoSlotError(f"trainer {session.trainer}: {error.message}")
            elif isinstance(error, UnavailableError):  # it will be asked again
                return _lost(session, f"trainer {session.trainer} did not get the bars ({error.message})")
        if isinstance(error, NoSlotError | DrainingError | VersionSkewError):
            await record.put_session(without_trainer(session))
            raise NoSlotError(error.message, retry_after_s=getattr(error, "retry_after_s", 1.0))
        if isinstance(error, StorageError):
            self._trainers.mark_full(session.trainer)
            return LostAttempt(
                session=session,
                error_reason=error.reason,
                cause=f"trainer {session.trainer}: {error.message}",
                is_log_whole=True,
            )
        if isinstance(error, UnavailableError):
            return _lost(session, f"trainer {session.trainer} could not be reached ({error.message})")
        await record.put_session(without_trainer(session))
        await record.try_move_to(TrainingState.FAILED, error.message, error_reason=error.reason)
        return None

    async def _is_another_left(self, run: Run, trainer: str) -> bool:
        """Return whether another trainer is known that has not said that it lacks the bars."""
        known = await self._trainers.check_all(max_age_s=VIEW_AGE_S)
        return any(health.address not in run.unsuitable | {trainer} for health in known)

    async def _follow(self, run: Run, session: SessionRow, *, is_resumed: bool = False) -> LostAttempt | None:
        """Copy the session's log into the training's until the training has ended or the attempt is lost.

        Goes on where the stored session stopped, so nothing is missed or shown twice, whoever was restarted.

        Args:
            run: The training.
            session: Its session on a trainer.
            is_resumed: The backend was restarted, perhaps elsewhere: tell the trainer where to upload.
        """
        record = run.record
        answered = asyncio.Event()

        async def obey(order: CancelOrder) -> None:
            if not order.is_drain:  # the backend stops, the trainer does not
                await self._cancel_on_trainer(session, order)
                answered.set()

        async with (
            obeying(run, obey),
            CheckpointPull(self._checkpoints, self._trainers, session) as checkpoints,
        ):
            last_heard = time.monotonic()
            num_failures = 0
            while not record.is_ended:
                is_cancel_known = answered.is_set()
                try:
                    if is_resumed:
                        await self._hand_over.redirect_upload(record, session)
                        is_resumed = False
                    async with aclosing(self._responses(session)) as responses:
                        async for response in responses:
                            last_heard, num_failures = time.monotonic(), 0
                            run.trainer_silence = ""
                            if response.HasField("checkpoint"):
                                checkpoints.offer(response.checkpoint)
                            for message in response.events:
                                event = event_from_proto(message)
                                if (lost := _loss_in(event, session)) is not None:
                                    await checkpoints.finish()
                                    return lost
                                session = await self._apply(record, session, event)
                            if record.is_ended:
                                return None
                    await self._settle(record, session)
                except (SessionNotFoundError, InvalidInputError) as error:
                    if run.order is not None and not run.order.is_drain and not session.last_sequence:
                        if is_cancel_known:
                            await record.put_session(without_trainer(session))
                            return None
                        # It may be beginning. What it answers to the cancel holds: it has ended, or never will begin.
                        last_heard, num_failures = time.monotonic(), 0
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(answered.wait(), RETRY_S)
                        continue
                    # It lost its journal, or part of it.
                    cause = f"trainer {session.trainer} no longer knows session {session.session_id} ({error.message})"
                    return _lost(session, cause)
                except UnreachableError as error:
                    silent_s = time.monotonic() - last_heard
                    num_failures += 1
                    run.trainer_silence = f"trainer {session.trainer} does not answer ({error.message})"
                    # More than one failure: if it was this machine that stood still, the first says nothing.
                    is_lost = silent_s > self._trainer_lost_s and num_failures > 1
                    if is_lost and not await self._may_hear_the_rest(run, silent_s):
                        silence = f"was unreachable for {self._trainer_lost_s:g} s ({error.message})"
                        return _lost(session, f"trainer {session.trainer} {silence}")
                    await asyncio.sleep(RETRY_S)
        return None

    async def _may_hear_the_rest(self, run: Run, silent_s: float) -> bool:
        """Return whether to wait on for a lost trainer: the model is stored, only its history is not whole."""
        if run.order is not None or silent_s > self._history_wait_s:
            return False
        if not run.has_model:
            run.has_model = await self._completion.has_model(run.record)
            if run.has_model:
                await run.record.warn(
                    "WAITS_FOR_HISTORY",
                    f"the model is stored; {run.trainer_silence}, and has not told all of its history",
                )
        return run.has_model

    async def _responses(self, session: SessionRow) -> AsyncGenerator[pb.StreamProgressResponse]:
        """Yield responses; a trainer that is silent for longer than its heartbeats allow counts as unreachable.

        Raises:
            SessionNotFoundError, InvalidInputError: It does not know the session, or not so much of it.
            UnreachableError: It is not heard, for whatever reason.
        """
        request = pb.StreamProgressRequest(session_id=session.session_id, after_sequence=session.last_sequence)
        call = self._trainers.stub_of(session).StreamProgress(request)
        try:
            while True:
                async with asyncio.timeout(READ_WATCHDOG_S):
                    response = await call.read()
                if not isinstance(response, pb.StreamProgressResponse):  # grpc's end-of-stream marker
                    return
                yield response
        except TimeoutError:
            raise UnreachableError(
                f"trainer {session.trainer} was silent for {READ_WATCHDOG_S:g} s; check that it runs"
            ) from None
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if isinstance(error, SessionNotFoundError | InvalidInputError):
                raise error from rpc_error
            raise UnreachableError(error.message) from rpc_error  # whatever else it says: it is not heard
        finally:
            call.cancel()

    async def _apply(self, record: TrainingRecord, session: SessionRow, event: ProgressEvent) -> SessionRow:
        """Add one event of the session to the training; return the session with its sequence advanced."""
        if not event.is_durable:
            await record.append(replace(event, attempt=session.attempt))
            return session
        if event.sequence <= session.last_sequence:
            return session
        session = replace(session, last_sequence=event.sequence)
        detail = event.detail
        if isinstance(detail, WarningDetail) and detail.reason == CHECKPOINT_UNUSABLE:
            session = replace(session, resumed_from_epoch=0)
            await self._checkpoints.remove(record.training_id)
        if not isinstance(detail, StateDetail):
            await record.append(replace(event, attempt=session.attempt), session=session)
        elif detail.state is TrainingState.RUNNING and record.state is TrainingState.QUEUED:
            where = f"Runs on trainer {session.trainer}"
            resumed = (
                f", from the checkpoint of epoch {session.resumed_from_epoch}" if session.resumed_from_epoch else ""
            )
            await record.try_move_to(TrainingState.RUNNING, where + resumed, session=session)
        elif detail.state is TrainingState.UPLOADING and record.state is TrainingState.RUNNING:
            await record.try_move_to(TrainingState.UPLOADING, "The trainer uploads the model", session=session)
        elif detail.state is TrainingState.CANCELLING and record.state is not TrainingState.CANCELLING:
            await record.try_move_to(TrainingState.CANCELLING, detail.message, session=session)
        elif detail.state.is_terminal:
            await self._end(record, session, detail)
        return session

    async def _end(self, record: TrainingRecord, session: SessionRow, detail: StateDetail) -> None:
        """End the training with its session; a model that is stored counts, whatever the session says of its end."""

        async def end() -> None:
            if detail.state is not TrainingState.COMPLETED:  # else the model is a moment behind, see `_settle`
                await record.try_move_to(
                    detail.state,
                    detail.message,
                    error_reason=detail.error_reason,
                    checkpoint_path=detail.checkpoint_path,
                    session=session,
                )

        await self._completion.complete_if_published(record, otherwise=end)

    async def _settle(self, record: TrainingRecord, session: SessionRow) -> None:
        """End a training whose session's log has ended; usually that has been done already."""

        async def fail() -> None:
            await record.try_move_to(
                TrainingState.FAILED,
                f"trainer {session.trainer} says session {session.session_id} has ended, but no model arrived; "
                "see the trainer's log, then train again",
                error_reason=InternalError.reason,
            )

        try:
            async with asyncio.timeout(COMPLETION_GRACE_S):
                await record.wait_ended()
        except TimeoutError:
            await self._completion.complete_if_published(record, otherwise=fail)

    async def _cancel_on_trainer(self, session: SessionRow, order: CancelOrder) -> None:
        """Cancel the session, however long the trainer stays away; what came of it arrives in the session's log."""
        request = pb.CancelRequest(
            session_id=session.session_id, save_checkpoint=order.save_checkpoint, cancel_reason=order.reason
        )
        while True:
            try:
                await self._trainers.stub_of(session).Cancel(request, timeout=CANCEL_TIMEOUT_S)
                return
            except grpc.aio.AioRpcError as rpc_error:
                error: KtrdrError = from_rpc_error(rpc_error)
            except UnreachableError as unreachable:
                error = unreachable
            if isinstance(error, NotFoundError | IllegalStateError):
                _log.info("Cancel of session %s: %s", session.session_id, error.message)
                return
            await asyncio.sleep(RETRY_S)


def _lost(session: SessionRow, cause: str) -> LostAttempt:
    return LostAttempt(session=session, error_reason=TrainerLostError.reason, cause=cause)


def _loss_in(event: ProgressEvent, session: SessionRow) -> LostAttempt | None:
    """Return the loss that an event tells of: the trainer was stopped or restarted under the session."""
    detail = event.detail
    if (
        not isinstance(detail, StateDetail)
        or detail.state is not TrainingState.FAILED
        or detail.error_reason not in LOST_REASONS
        or event.sequence <= session.last_sequence
    ):
        return None
    return LostAttempt(
        session=replace(session, last_sequence=event.sequence),
        error_reason=detail.error_reason,
        cause=f"on trainer {session.trainer}: {detail.message}",
        is_log_whole=True,
    )
