"""Keeps the backend's copy of a session's newest checkpoint up to date, so that a lost trainer loses little work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from backend_service.checkpoints import CheckpointStore
from backend_service.operations.records import SessionRow
from backend_service.orchestration.trainers import Trainers
from ktrdr_core.errors import CorruptDataError, InternalError, KtrdrError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.errors import from_rpc_error

IDLE_TIMEOUT_S = 10.0
FINISH_LIMIT_S = 60.0
_log = get_logger(__name__)


class CheckpointPull:
    """Fetches checkpoints of one session, one at a time; of those named meanwhile only the newest.

    Use it as an async context manager. A pull that fails is tried again when the trainer names the next checkpoint: the
    one before is still here.

    Args:
        store: Where they go.
        trainers: The way to the trainer.
        session: Whose they are.
    """

    def __init__(self, store: CheckpointStore, trainers: Trainers, session: SessionRow) -> None:
        self._store = store
        self._trainers = trainers
        self._session = session
        self._wanted: CheckpointRef | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> CheckpointPull:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def offer(self, ref: CheckpointRef) -> None:
        """Fetch this checkpoint, now or after the one under way."""
        self._wanted = ref
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._pull_all(), name=f"checkpoints-{self._session.session_id}")

    async def finish(self) -> None:
        """Wait for the fetch under way, if there is one: the trainer stops, and is not there to be asked later."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=FINISH_LIMIT_S)

    async def _pull_all(self) -> None:
        while self._wanted is not None:
            self._wanted = None
            try:
                await self._pull()
            except KtrdrError as error:
                _log.warning(
                    "The checkpoint of session %s was not fetched: %s", self._session.session_id, error.message
                )

    async def _pull(self) -> None:
        stub = self._trainers.stub_of(self._session)
        call = stub.GetCheckpoint(pb.GetCheckpointRequest(session_id=self._session.session_id))
        try:
            first = await self._read(call)
            if first is None or first.WhichOneof("part") != "checkpoint":
                raise CorruptDataError("the trainer sent a checkpoint that does not say what it is")
            await self._store.receive(self._session.training_id, first.checkpoint, self._chunks(call))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except TimeoutError:
            raise CorruptDataError(f"the checkpoint stood still for {IDLE_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise InternalError(f"the checkpoint could not be written: {error}") from error
        finally:
            call.cancel()

    async def _chunks(
        self, call: grpc.aio.UnaryStreamCall[pb.GetCheckpointRequest, pb.GetCheckpointResponse]
    ) -> AsyncIterator[UploadChunk]:
        while (response := await self._read(call)) is not None:
            yield response.chunk

    async def _read(
        self, call: grpc.aio.UnaryStreamCall[pb.GetCheckpointRequest, pb.GetCheckpointResponse]
    ) -> pb.GetCheckpointResponse | None:
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            response = await call.read()
        return response if isinstance(response, pb.GetCheckpointResponse) else None  # else grpc's end-of-stream marker
