"""Trainings on a trainer: handing over, following across broken connections, cancelling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import grpc.aio
from ktrdr.trainer.v1 import trainer_service_pb2 as pb

from backend_service.operations.records import LOCAL_TRAINER, SessionRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.orchestration.local import complete
from backend_service.orchestration.run import CancelOrder, Run
from backend_service.orchestration.trainers import Trainers
from backend_service.publisher import Publisher
from ktrdr_core.domain.progress import ProgressEvent, StateDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    DrainingError,
    InternalError,
    InvalidInputError,
    KtrdrError,
    NoSlotError,
    SessionNotFoundError,
    TrainerLostError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel import ACCEPT_TIMEOUT_S
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.wire.from_proto import event_from_proto
from ktrdr_core.wire.to_proto import spec_to_proto

_log = get_logger(__name__)

READ_WATCHDOG_S = 5.0
UNARY_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 60.0  # a stop with checkpoint may wait 30 s for the end of a batch
RETRY_S = 0.2
COMPLETION_GRACE_S = 5.0


class HostRunner:
    """Hands trainings to trainers and follows their sessions.

    Args:
        trainers: Channels to them.
        publisher: Knows which trainings have published a model.
        upload_target: Returns the address trainers upload to.
        trainer_lost_s: Silence after which a training FAILS with TRAINER_LOST.
    """

    def __init__(
        self,
        trainers: Trainers,
        publisher: Publisher,
        *,
        upload_target: Callable[[], str],
        trainer_lost_s: float = 10.0,
    ) -> None:
        self._trainers = trainers
        self._publisher = publisher
        self._upload_target = upload_target
        self._trainer_lost_s = trainer_lost_s

    async def hand_over(self, run: Run, address: str, *, session: SessionRow | None = None) -> SessionRow | None:
        """Ask a trainer to train; return the session once it is accepted, None if the training ended instead.

        The session is stored before the call, so a restarted backend finds it again. A call whose answer was lost is
        repeated: the trainer knows the session by its id.

        Args:
            run: What to train.
            address: Whom to ask.
            session: A session that may have been handed over before; None makes a new one.

        Raises:
            NoSlotError: The trainer has no free slot or drains; try later, or elsewhere.
        """
        record = run.record
        if session is None:
            session = _next_session(record, address)
            await record.put_session(session)
        error = await self._call_train(address, self._train_request(record, session))
        if error is None:
            return session
        if isinstance(error, NoSlotError | DrainingError):
            await record.put_session(replace(session, trainer=""))
            raise NoSlotError(error.message, retry_after_s=getattr(error, "retry_after_s", 1.0))
        if isinstance(error, UnavailableError):
            await self._end_lost(record, session, error.message)
        else:
            await record.try_move_to(TrainingState.FAILED, error.message, error_reason=error.reason)
        return None

    async def follow(self, run: Run, session: SessionRow, *, is_resumed: bool = False) -> None:
        """Copy the session's log into the training's until the training has ended.

        Goes on where the stored session stopped, so nothing is missed or shown twice, whoever was restarted.

        Args:
            run: The training.
            session: Its session on a trainer.
            is_resumed: The backend was restarted, perhaps elsewhere: tell the trainer where to upload.
        """
        record = run.record
        async with self._obeying(run, session):
            last_heard = time.monotonic()
            while not record.is_ended:
                try:
                    if is_resumed:
                        await self._redirect_upload(record, session)
                        is_resumed = False
                    async with aclosing(self._responses(session)) as responses:
                        async for response in responses:
                            last_heard = time.monotonic()
                            for message in response.events:
                                session = await self._apply(record, session, event_from_proto(message))
                            if record.is_ended:
                                return
                    await self._settle(record, session)
                except UnavailableError as error:
                    if time.monotonic() - last_heard > self._trainer_lost_s:
                        await self._end_lost(record, session, error.message)
                    else:
                        await asyncio.sleep(RETRY_S)
                except (SessionNotFoundError, InvalidInputError) as error:  # it lost its journal, or part of it
                    await self._end_unknown(record, session, error.message)

    def _train_request(self, record: TrainingRecord, session: SessionRow) -> pb.TrainRequest:
        return pb.TrainRequest(
            session_id=session.session_id,
            training_id=record.training_id,
            attempt=session.attempt,
            spec=spec_to_proto(record.row.spec),
            upload_target=self._upload_target(),
        )

    async def _redirect_upload(self, record: TrainingRecord, session: SessionRow) -> None:
        """Repeat Train: a trainer that knows the session takes the upload target from it and nothing else.

        Raises:
            SessionNotFoundError: It does not know the session; repeating Train would start it anew.
            UnavailableError: It cannot be reached.
        """
        stub = self._trainers.stub(session.trainer)
        try:
            await stub.GetSession(pb.GetSessionRequest(session_id=session.session_id), timeout=UNARY_TIMEOUT_S)
            await stub.Train(self._train_request(record, session), timeout=UNARY_TIMEOUT_S)
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if isinstance(error, SessionNotFoundError | UnavailableError) and not isinstance(error, DrainingError):
                raise error from rpc_error
            _log.info("upload of session %s not redirected: %s", session.session_id, error.message)

    async def _call_train(self, address: str, request: pb.TrainRequest) -> KtrdrError | None:
        """Return why the trainer does not train, or None; repeated while it is unreachable, up to the limit."""
        deadline = time.monotonic() + self._trainer_lost_s
        while True:
            try:
                await self._trainers.stub(address).Train(request, timeout=ACCEPT_TIMEOUT_S)
                return None
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc_error(rpc_error)
            is_refusal = isinstance(error, DrainingError) or not isinstance(error, UnavailableError)
            if is_refusal or time.monotonic() > deadline:
                return error
            await asyncio.sleep(RETRY_S)

    async def _responses(self, session: SessionRow) -> AsyncGenerator[pb.StreamProgressResponse]:
        """Yield responses; a trainer that is silent for longer than its heartbeats allow counts as unreachable."""
        request = pb.StreamProgressRequest(session_id=session.session_id, after_sequence=session.last_sequence)
        call = self._trainers.stub(session.trainer).StreamProgress(request)
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
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
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
        if not isinstance(detail, StateDetail):
            await record.append(replace(event, attempt=session.attempt), session=session)
        elif detail.state is TrainingState.RUNNING and record.state is TrainingState.QUEUED:
            await record.try_move_to(TrainingState.RUNNING, f"Runs on trainer {session.trainer}", session=session)
        elif detail.state is TrainingState.UPLOADING and record.state is TrainingState.RUNNING:
            await record.try_move_to(TrainingState.UPLOADING, "The trainer uploads the model", session=session)
        elif detail.state is TrainingState.CANCELLING and record.state is not TrainingState.CANCELLING:
            await record.try_move_to(TrainingState.CANCELLING, detail.message, session=session)
        elif detail.state in (TrainingState.FAILED, TrainingState.CANCELLED, TrainingState.STOPPED):
            async with record.publication:
                await record.try_move_to(
                    detail.state,
                    detail.message,
                    error_reason=detail.error_reason,
                    checkpoint_path=detail.checkpoint_path,
                    session=session,
                )
        return session

    async def _settle(self, record: TrainingRecord, session: SessionRow) -> None:
        """End a training whose session's log has ended; usually the upload has done so already."""
        try:
            async with asyncio.timeout(COMPLETION_GRACE_S):
                await record.wait_ended()
        except TimeoutError:
            if not await self._complete_if_published(record):
                await record.try_move_to(
                    TrainingState.FAILED,
                    f"trainer {session.trainer} says session {session.session_id} has ended, but no model arrived; "
                    "see the trainer's log, then train again",
                    error_reason=InternalError.reason,
                )

    async def _end_lost(self, record: TrainingRecord, session: SessionRow, cause: str) -> None:
        if not await self._complete_if_published(record):
            await record.try_move_to(
                TrainingState.FAILED,
                f"trainer {session.trainer} was unreachable for {self._trainer_lost_s:g} s ({cause}); "
                "check it, then train again",
                error_reason=TrainerLostError.reason,
            )

    async def _end_unknown(self, record: TrainingRecord, session: SessionRow, cause: str) -> None:
        if await self._complete_if_published(record):
            return
        if record.state is TrainingState.CANCELLING:
            await record.try_move_to(TrainingState.CANCELLED, f"trainer {session.trainer} no longer has the session")
            return
        await record.try_move_to(
            TrainingState.FAILED,
            f"trainer {session.trainer} no longer knows session {session.session_id} ({cause}); train again",
            error_reason=TrainerLostError.reason,
        )

    async def _complete_if_published(self, record: TrainingRecord) -> bool:
        async with record.publication:
            return await self._find_and_complete(record)

    async def _find_and_complete(self, record: TrainingRecord) -> bool:
        if record.is_ended:
            return True
        model = await self._publisher.find_by_training(record.training_id)
        if model is None:
            return False
        if record.state is TrainingState.RUNNING:
            await record.try_move_to(TrainingState.UPLOADING, "The model has arrived")
        if not record.is_ended:
            await complete(record, model)
        return True

    @asynccontextmanager
    async def _obeying(self, run: Run, session: SessionRow) -> AsyncIterator[None]:
        """Pass cancel orders on to the trainer while the block runs."""

        async def pass_on() -> None:
            order: CancelOrder | None = None
            async with asyncio.TaskGroup() as calls:
                while True:
                    order = await run.next_order(after=order)
                    calls.create_task(self._cancel_on_trainer(session, order))

        passing = asyncio.create_task(pass_on())
        try:
            yield
        finally:
            passing.cancel()
            await asyncio.wait([passing])

    async def _cancel_on_trainer(self, session: SessionRow, order: CancelOrder) -> None:
        """Cancel the session, however long the trainer stays away; what came of it arrives in the session's log."""
        request = pb.CancelRequest(
            session_id=session.session_id, save_checkpoint=order.save_checkpoint, cancel_reason=order.reason
        )
        while True:
            try:
                await self._trainers.stub(session.trainer).Cancel(request, timeout=CANCEL_TIMEOUT_S)
                return
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc_error(rpc_error)
            if not isinstance(error, UnavailableError):
                _log.info("cancel of session %s: %s", session.session_id, error.message)
                return
            await asyncio.sleep(RETRY_S)


def _next_session(record: TrainingRecord, address: str) -> SessionRow:
    """Return the next session; the number of one that no trainer accepted is used again."""
    last = record.last_session
    attempt = 1 if last is None else last.attempt + int(bool(last.trainer))
    return SessionRow(
        session_id=f"{record.training_id}-{attempt}",
        training_id=record.training_id,
        attempt=attempt,
        trainer=address,
    )


def is_on_trainer(session: SessionRow | None) -> bool:
    """Return whether a trainer may have this session."""
    return session is not None and session.trainer not in ("", LOCAL_TRAINER)
