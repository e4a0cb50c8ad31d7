"""Handing an attempt to its trainer: its call, the checkpoint that goes first, a new upload target."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import grpc.aio
from ktrdr.trainer.v1 import trainer_service_pb2 as pb

from backend_service.operations.records import SessionRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.orchestration.trainers import Trainers
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE
from ktrdr_core.errors import (
    CheckpointNotFoundError,
    DrainingError,
    KtrdrError,
    SessionNotFoundError,
    StorageError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel import ACCEPT_TIMEOUT_S
from ktrdr_core.rpc.checkpoint_transfer import checkpoint_ref, chunks_of
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.wire.to_proto import spec_to_proto

UNARY_TIMEOUT_S = 10.0
PUT_CHECKPOINT_TIMEOUT_S = 600.0  # the largest one over a slow line
RETRY_S = 0.2
MAX_PUTS = 2
_log = get_logger(__name__)


class HandOver:
    """Asks trainers to begin attempts.

    Args:
        trainers: The way to them.
        upload_target: Returns the address trainers upload to.
        version: Of this backend; a trainer of another one refuses its sessions.
        trainer_lost_s: How long a trainer that cannot be reached is asked again.
    """

    def __init__(
        self, trainers: Trainers, *, upload_target: Callable[[], str], version: str, trainer_lost_s: float
    ) -> None:
        self._trainers = trainers
        self._upload_target = upload_target
        self._version = version
        self._trainer_lost_s = trainer_lost_s

    async def give(
        self, record: TrainingRecord, session: SessionRow, checkpoint: SessionCheckpoint | None
    ) -> tuple[SessionRow, KtrdrError | None]:
        """Ask the trainer to train; return the session as it begins, and why it does not, None if it does."""
        error = await self._call_train(session, self._train_request(record, session, checkpoint), checkpoint)
        if isinstance(error, CheckpointNotFoundError):
            session = replace(session, resumed_from_epoch=0)
            await record.put_session(session)
            await record.warn(
                CHECKPOINT_UNUSABLE, f"the attempt begins at the beginning: trainer {session.trainer} {error.message}"
            )
            error = await self._call_train(session, self._train_request(record, session, None), None)
        return session, error

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
            error = from_rpc_error(rpc_error)
            if isinstance(error, SessionNotFoundError):
                raise error from rpc_error
            if isinstance(error, UnavailableError) and not isinstance(error, DrainingError):
                raise UnreachableError(error.message) from rpc_error
            _log.info("upload of session %s not redirected: %s", session.session_id, error.message)

    def _train_request(
        self, record: TrainingRecord, session: SessionRow, checkpoint: SessionCheckpoint | None
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
        )

    async def _call_train(
        self, session: SessionRow, request: pb.TrainRequest, checkpoint: SessionCheckpoint | None
    ) -> KtrdrError | None:
        """Return why the trainer does not train, or None; repeated while it is unreachable, up to the limit.

        A CheckpointNotFoundError means that it would train, but not from this checkpoint.
        """
        deadline = time.monotonic() + self._trainer_lost_s
        num_tries = num_puts = 0
        while True:
            num_tries += 1
            try:
                await self._trainers.stub_of(session).Train(request, timeout=ACCEPT_TIMEOUT_S)
                return None
            except grpc.aio.AioRpcError as rpc_error:
                error: KtrdrError = from_rpc_error(rpc_error)
            except UnreachableError as unreachable:
                error = unreachable
            is_late = time.monotonic() > deadline and num_tries > 1
            if isinstance(error, CheckpointNotFoundError) and checkpoint is not None:
                # Whatever goes wrong is tried again: a stream that is refused early may lose its status.
                problem = await self._put_checkpoint(session, checkpoint)
                num_puts += problem is None
                if problem is None and num_puts <= MAX_PUTS:
                    continue
                if is_late or problem is None:
                    why = problem.message if problem is not None else error.message
                    return CheckpointNotFoundError(f"does not take the checkpoint of epoch {checkpoint.epoch} ({why})")
            elif isinstance(error, DrainingError | StorageError) or not isinstance(error, UnavailableError) or is_late:
                return error
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
            return from_rpc_error(rpc_error)
        except UnreachableError as error:
            return error
        return None
