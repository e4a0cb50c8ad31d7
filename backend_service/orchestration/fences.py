"""Ends what lost attempts left on their trainers, as soon as those answer.

A lost attempt counts for nothing from the moment its loss is stored, but its worker may still keep a GPU busy. Its
trainer is asked to end it until the trainer has said that nothing of it runs, also across restarts of the backend. One
that is UPLOADING keeps nothing busy: it goes on until its artifact, which is kept aside, has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING

import grpc.aio
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2

from backend_service.operations.records import Fence, SessionRow
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.trainers import Trainers
from ktrdr_core.clock import utc_now
from ktrdr_core.errors import IllegalStateError, KtrdrError, NotFoundError, StorageError, UnreachableError
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.errors import from_rpc_error

if TYPE_CHECKING:
    from ktrdr.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 2.0
CANCEL_TIMEOUT_S = 10.0
FORGET_AFTER = timedelta(days=7)  # a trainer keeps ended sessions for a day; a machine gone for a week is gone
_log = get_logger(__name__)


class Fences:
    """One task per trainer that has fenced sessions.

    Args:
        trainings: Where sessions are kept.
        trainers: The way to them.
    """

    def __init__(self, trainings: Trainings, trainers: Trainers) -> None:
        self._trainings = trainings
        self._trainers = trainers
        self._pending: dict[str, dict[str, SessionRow]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def restore(self) -> None:
        """Go on with what an earlier run left."""
        for session in await self._trainings.load_fenced_sessions():
            self.add(session)

    def add(self, session: SessionRow) -> None:
        """End a session whose fence is PENDING on its trainer, however long that stays away."""
        if session.fence is not Fence.PENDING:
            return
        key = session.trainer_id or session.trainer
        self._pending.setdefault(key, {})[session.session_id] = session
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._end_all(key), name=f"fence-{key}")

    def ids_for(self, trainer_id: str, address: str) -> Sequence[str]:
        """Return the sessions that a trainer has to end."""
        return [
            session.session_id
            for key in dict.fromkeys((trainer_id, address))
            for session in self._pending.get(key, {}).values()
        ]

    async def close(self) -> None:
        """Stop asking; the next start goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_all(self, key: str) -> None:
        delay_s = FIRST_DELAY_S
        sessions = self._pending[key]
        try:
            while sessions:
                for session in list(sessions.values()):
                    state = await self._ask_to_end(session)
                    if state is _State.SILENT:
                        break  # the others have to wait with this one
                    if state is _State.ENDED:
                        await self._trainings.save_session(replace(self._latest(session), fence=Fence.DONE))
                        del sessions[session.session_id]
                        delay_s = FIRST_DELAY_S
                if sessions:
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, MAX_DELAY_S)
        except StorageError as error:
            _log.info("Fences of %s are left to the next start: %s", key, error.message)  # the service stops
        finally:
            self._pending.pop(key, None)
            self._tasks.pop(key, None)

    def _latest(self, session: SessionRow) -> SessionRow:
        record = self._trainings.find_active(session.training_id)
        known = {} if record is None else {each.session_id: each for each in record.sessions}
        return known.get(session.session_id, session)

    async def _ask_to_end(self, session: SessionRow) -> _State:
        """Have the trainer end the session, unless it is UPLOADING."""
        if session.end_time is not None and utc_now() - session.end_time > FORGET_AFTER:
            _log.warning(
                "Trainer %s stayed away for %d days; session %s is forgotten",
                session.trainer,
                FORGET_AFTER.days,
                session.session_id,
            )
            return _State.ENDED
        cancel = pb.CancelRequest(
            session_id=session.session_id, cancel_reason=f"Fenced: attempt {session.attempt} was given up"
        )
        try:
            stub = self._trainers.stub_of(session)
            if await _is_uploading(stub, session.session_id):
                return _State.UPLOADING
            await stub.Cancel(cancel, timeout=CANCEL_TIMEOUT_S)
        except grpc.aio.AioRpcError as rpc_error:
            error: KtrdrError = from_rpc_error(rpc_error)
            _log.info("Fenced session %s: %s", session.session_id, error.message)
            is_gone = isinstance(error, NotFoundError | IllegalStateError)  # unknown there, or ended
            return _State.ENDED if is_gone else _State.SILENT
        except UnreachableError:
            return _State.SILENT
        return _State.ENDED


class _State(Enum):
    """What a trainer says of a fenced session."""

    SILENT = auto()
    UPLOADING = auto()
    ENDED = auto()


async def _is_uploading(stub: TrainerServiceAsyncStub, session_id: str) -> bool:
    try:
        answer = await stub.GetSession(pb.GetSessionRequest(session_id=session_id), timeout=CANCEL_TIMEOUT_S)
    except grpc.aio.AioRpcError as rpc_error:
        if isinstance(from_rpc_error(rpc_error), NotFoundError):
            return False  # cancelled all the same: its Train may still be under way
        raise
    return answer.session.state == training_state_pb2.TRAINING_STATE_UPLOADING
