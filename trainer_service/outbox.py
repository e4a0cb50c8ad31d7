"""Brings one artifact to the model store and does not give up while the session lives.

A broken upload goes on where the backend's copy ends. Only what a retry cannot change ends it: then the refusal is
raised, and the artifact stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import grpc.aio
from ktrdr.models.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

from ktrdr_core.errors import (
    AlreadyExistsError,
    IllegalStateError,
    InvalidInputError,
    KtrdrError,
    NotBuiltError,
    NotFoundError,
    WriteConflictError,
)
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.send_upload import IDLE_TIMEOUT_S, SendProgress, send_upload
from ktrdr_core.rpc.upload import UploadPlan

RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
WARN_AFTER_FAILURES = 3
UPLOAD_RETRY = "UPLOAD_RETRY"

_QUERY_TIMEOUT_S = 10.0
_LAST_QUERY_TIMEOUT_S = 2.0
_LINGER_S = 60.0
_PERMANENT = (
    InvalidInputError,
    NotFoundError,
    WriteConflictError,
    IllegalStateError,
    AlreadyExistsError,
    NotBuiltError,
)
_log = get_logger(__name__)
WarningCallback = Callable[[str, str], Awaitable[None]]


class Upload:
    """One artifact on its way.

    Args:
        directory: Directory of the complete artifact.
        training_id: Training it belongs to.
        attempt: Session number within the training.
        target: Returns the address of the ModelService now; asked before each try.
        warn: Called with a reason and a sentence after the third failure in a row.
        retry_delays_s: Waits between tries; the last one repeats.
        idle_timeout_s: How long the other side may take no bytes.
        is_resumed: A stream of an earlier process may still be open on the other side.
    """

    def __init__(
        self,
        directory: Path,
        *,
        training_id: str,
        attempt: int,
        target: Callable[[], str],
        warn: WarningCallback,
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        is_resumed: bool = False,
    ) -> None:
        self._directory = directory
        self._training_id = training_id
        self._attempt = attempt
        self._target = target
        self._warn = warn
        self._retry_delays_s = retry_delays_s
        self._idle_timeout_s = idle_timeout_s
        self._plan: UploadPlan | None = None
        self._progress = SendProgress()
        self._broken_at = time.monotonic() if is_resumed else None

    async def run(self) -> model_pb2.Model:
        """Return the published version once the backend has confirmed it.

        Raises:
            KtrdrError: A refusal that no retry changes.
        """
        failures = 0
        while True:
            try:
                return await self._try_once()
            except KtrdrError as error:
                if self._is_permanent(error):
                    raise
                if not isinstance(error, WriteConflictError):
                    self._broken_at = time.monotonic()
                failures += 1
                _log.warning(
                    "Upload to %s failed %d times: %s",
                    self._target(),
                    failures,
                    error.message,
                )
                if failures == WARN_AFTER_FAILURES:
                    await self._warn(
                        UPLOAD_RETRY,
                        f"the model could not be uploaded to {self._target()} {failures} times ({error.message}); it is"
                        " safe on the trainer, which goes on trying",
                    )
            await asyncio.sleep(self._retry_delays_s[min(failures, len(self._retry_delays_s)) - 1])

    async def was_published(self) -> bool:
        """Return whether the backend has published the artifact, as far as it answers within 2 s.

        Asked after `run` was cancelled: only an upload that had sent everything can have been published.
        """
        if self._plan is None or not self._progress.has_sent_all:
            return False
        async with open_channel(self._target()) as channel:
            stub: model_service_pb2_grpc.ModelServiceAsyncStub = _stub(channel)
            try:
                answer = await stub.QueryUpload(_query(self._plan), timeout=_LAST_QUERY_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                return False
            return answer.is_complete

    def _is_permanent(self, error: KtrdrError) -> bool:
        if isinstance(error, WriteConflictError) and self._broken_at is not None:
            # Our own broken stream may still hold the upload on the backend, until its keepalive ends it.
            return time.monotonic() - self._broken_at > _LINGER_S
        return isinstance(error, _PERMANENT)

    async def _try_once(self) -> model_pb2.Model:
        if self._plan is None:
            self._plan = await self._read_plan()
        async with open_channel(self._target()) as channel:
            stub: model_service_pb2_grpc.ModelServiceAsyncStub = _stub(channel)
            try:
                write_offset = await _committed_size_bytes(stub, self._plan)
                return await send_upload(
                    self._target(),
                    self._plan,
                    write_offset,
                    idle_timeout_s=self._idle_timeout_s,
                    progress=self._progress,
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            except OSError as error:
                raise self._unreadable(error) from error

    async def _read_plan(self) -> UploadPlan:
        try:
            return await asyncio.to_thread(
                UploadPlan.of, self._directory, training_id=self._training_id, attempt=self._attempt
            )
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> KtrdrError:
        return IllegalStateError(f"the artifact in {self._directory} cannot be read: {error}; train again")


async def _committed_size_bytes(stub: model_service_pb2_grpc.ModelServiceAsyncStub, plan: UploadPlan) -> int:
    try:
        answer = await stub.QueryUpload(_query(plan), timeout=_QUERY_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        if isinstance(from_rpc_error(error), NotFoundError):
            return 0
        raise
    return answer.committed_size_bytes


def _query(plan: UploadPlan) -> model_service_pb2.QueryUploadRequest:
    return model_service_pb2.QueryUploadRequest(training_id=plan.training_id, attempt=plan.attempt, sha256=plan.sha256)


def _stub(channel: grpc.aio.Channel) -> model_service_pb2_grpc.ModelServiceAsyncStub:
    return model_service_pb2_grpc.ModelServiceStub(channel)
