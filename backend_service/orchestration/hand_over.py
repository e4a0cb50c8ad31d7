"""Handing an attempt to its trainer: its call, the bars and the checkpoint that go first, a new upload target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

import grpc.aio
from ktrdr.data.v1.series_pb2 import Series
from ktrdr.trainer.v1 import trainer_service_pb2 as pb

from backend_service.operations.records import SessionRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.orchestration.attempt_bars import AttemptBars
from backend_service.orchestration.trainer_bars import TrainerBars
from backend_service.orchestration.trainer_channel import error_of_trainer
from backend_service.orchestration.trainers import Trainers
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE
from ktrdr_core.errors import (
    BarsMissingError,
    CheckpointNotFoundError,
    CorruptDataError,
    DrainingError,
    KtrdrError,
    SeriesChangedError,
    SeriesNotFoundError,
    SessionNotFoundError,
    StorageError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel import ACCEPT_TIMEOUT_S
from ktrdr_core.rpc.checkpoint_transfer import checkpoint_ref, chunks_of
from ktrdr_core.wire.to_proto import spec_to_proto

UNARY_TIMEOUT_S = 10.0
PUT_CHECKPOINT_TIMEOUT_S = 600.0  # the largest one over a slow line
RETRY_S = 0.2
MAX_PUTS = 2
MAX_PREPARES = 2
MAX_SNAPSHOTS = 3
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a trainer does not train.

    Attributes:
        error: What it, or the way to it, said.
        is_of_trainer: It is for want of bars on this trainer; another one may well have or get them.
    """

    error: KtrdrError
    is_of_trainer: bool = False


class _Deadline:
    """When a trainer that cannot be reached is given up."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._num_bytes = 0
        self._at = time.monotonic() + limit_s
        self.num_tries = 0

    def note_bytes(self, num_bytes: int) -> None:
        """Begin anew if more has come through than ever before."""
        if num_bytes > self._num_bytes:
            self._num_bytes = num_bytes
            self._at = time.monotonic() + self._limit_s

    @property
    def is_over(self) -> bool:
        # More than one try: if it was this machine that stood still, the first says nothing.
        return time.monotonic() > self._at and self.num_tries > 1


class HandOver:
    """Asks trainers to begin attempts.

    Args:
        trainers: The way to them.
        attempt_bars: What attempts are trained on.
        trainer_bars: How that reaches trainers.
        upload_target: Returns the address trainers upload to.
        version: Of this backend; a trainer of another one refuses its sessions.
        trainer_lost_s: How long a trainer that cannot be reached is asked again.
    """

    def __init__(
        self,
        trainers: Trainers,
        attempt_bars: AttemptBars,
        trainer_bars: TrainerBars,
        *,
        upload_target: Callable[[], str],
        version: str,
        trainer_lost_s: float,
    ) -> None:
        self._trainers = trainers
        self._attempt_bars = attempt_bars
        self._trainer_bars = trainer_bars
        self._upload_target = upload_target
        self._version = version
        self._trainer_lost_s = trainer_lost_s

    async def give(
        self, record: TrainingRecord, session: SessionRow, checkpoint: SessionCheckpoint | None
    ) -> tuple[SessionRow, Refusal | None]:
        """Ask the trainer to train; return the session as it begins, and why it does not, None if it does."""
        refusal: Refusal | None = None
        for _ in range(MAX_SNAPSHOTS):
            try:
                series = await self._attempt_bars.snapshot(record.row.spec)
            except KtrdrError as error:
                return session, Refusal(error)
            session = await self._attempt_bars.note(record, session, series)
            session, refusal = await self._give_with(record, session, checkpoint, series)
            if refusal is None or not isinstance(refusal.error, SeriesChangedError):
                return session, refusal
        return session, refusal

    async def _give_with(
        self,
        record: TrainingRecord,
        session: SessionRow,
        checkpoint: SessionCheckpoint | None,
        series: Sequence[Series],
    ) -> tuple[SessionRow, Refusal | None]:
        request = self._train_request(record, session, checkpoint, series)
        refusal = await self._call_train(session, request, checkpoint)
        if refusal is not None and isinstance(refusal.error, CheckpointNotFoundError):
            session = replace(session, resumed_from_epoch=0)
            await record.put_session(session)
            await record.warn(
                CHECKPOINT_UNUSABLE,
                f"the attempt begins at the beginning: trainer {session.trainer} {refusal.error.message}",
            )
            refusal = await self._call_train(session, self._train_request(record, session, None, series), None)
        return session, refusal

    async def redirect_upload(self, record: TrainingRecord, session: SessionRow) -> None:
        """Repeat Train: a trainer that knows the session takes the upload target from it and nothing else.

        Raises:
            SessionNotFoundError: It does not know the session; repeating Train would start it anew.
            UnreachableError: It cannot be reached.
        """
        stub = self._trainers.stub_of(session)
        try:
            await stub.GetSession(pb.GetSessionRequest(session_id=session.session_id), timeout=UNARY_TIMEOUT_S)
            await stub.Train(self._train_request(record, session, None), timeout=UNARY_TIMEOUT_S)
        except grpc.aio.AioRpcError as rpc_error:
            error = error_of_trainer(rpc_error)
            if isinstance(error, SessionNotFoundError):
                raise error from rpc_error
            if isinstance(error, UnavailableError) and not isinstance(error, DrainingError):
                raise UnreachableError(error.message) from rpc_error
            _log.info("upload of session %s not redirected: %s", session.session_id, error.message)

    def _train_request(
        self,
        record: TrainingRecord,
        session: SessionRow,
        checkpoint: SessionCheckpoint | None,
        series: Sequence[Series] = (),
    ) -> pb.TrainRequest:
        return pb.TrainRequest(
            session_id=session.session_id,
            training_id=record.training_id,
            attempt=session.attempt,
            spec=spec_to_proto(record.row.spec),
            upload_target=self._upload_target(),
            backend_version=self._version,
            resume_from=None if checkpoint is None else checkpoint_ref(checkpoint),
            last_epoch_told=record.last_epoch,
            series=series,
        )

    async def _call_train(
        self, session: SessionRow, request: pb.TrainRequest, checkpoint: SessionCheckpoint | None
    ) -> Refusal | None:
        """Return why the trainer does not train, or None; repeated while it is unreachable, up to the limit.

        A CheckpointNotFoundError means that it would train, but not from this checkpoint; a SeriesChangedError, that
        the bars are others now.
        """
        deadline = _Deadline(self._trainer_lost_s)
        num_puts = num_prepares = 0
        while True:
            deadline.num_tries += 1
            try:
                await self._trainers.stub_of(session).Train(request, timeout=ACCEPT_TIMEOUT_S)
                return None
            except grpc.aio.AioRpcError as rpc_error:
                error: KtrdrError = error_of_trainer(rpc_error)
            except UnreachableError as unreachable:
                error = unreachable
            if isinstance(error, CheckpointNotFoundError) and checkpoint is not None:
                # Whatever goes wrong is tried again: a stream that is refused early may lose its status.
                problem = await self._put_checkpoint(session, checkpoint)
                num_puts += problem is None
                if problem is None and num_puts <= MAX_PUTS:
                    continue
                if deadline.is_over or problem is None:
                    why = problem.message if problem is not None else error.message
                    return Refusal(
                        CheckpointNotFoundError(f"does not take the checkpoint of epoch {checkpoint.epoch} ({why})")
                    )
            elif isinstance(error, BarsMissingError) and request.series:
                problem = await self._trainer_bars.prepare(session, request.series, deadline.note_bytes)
                num_prepares += problem is None
                if problem is None and num_prepares <= MAX_PREPARES:
                    continue
                if (refusal := _refusal_of_bars(problem or error, is_late=deadline.is_over)) is not None:
                    return refusal
            elif (
                isinstance(error, DrainingError | StorageError)
                or not isinstance(error, UnavailableError)
                or deadline.is_over
            ):
                return Refusal(error, is_of_trainer=isinstance(error, SeriesNotFoundError))
            await asyncio.sleep(RETRY_S)

    async def _put_checkpoint(self, session: SessionRow, checkpoint: SessionCheckpoint) -> KtrdrError | None:
        """Bring a checkpoint to the trainer; return why it does not take it."""
        ref = checkpoint_ref(checkpoint)

        async def requests() -> AsyncIterator[pb.PutCheckpointRequest]:
            yield pb.PutCheckpointRequest(checkpoint=ref)
            async for chunk in chunks_of(checkpoint.path):
                yield pb.PutCheckpointRequest(chunk=chunk)

        try:
            await self._trainers.stub_of(session).PutCheckpoint(requests(), timeout=PUT_CHECKPOINT_TIMEOUT_S)
        except grpc.aio.AioRpcError as rpc_error:
            return error_of_trainer(rpc_error)
        except UnreachableError as error:
            return error
        return None


def _refusal_of_bars(problem: KtrdrError, *, is_late: bool) -> Refusal | None:
    """Return what it means that a trainer has not got its bars; None if it is to be asked again."""
    if isinstance(problem, SeriesChangedError | DrainingError | StorageError):
        return Refusal(problem)
    if isinstance(problem, UnreachableError):
        return Refusal(problem) if is_late else None
    if isinstance(problem, UnavailableError | CorruptDataError):  # the way to the bars, or what came over it
        return Refusal(problem, is_of_trainer=True) if is_late else None
    return Refusal(problem, is_of_trainer=True)
