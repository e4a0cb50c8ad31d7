"""HostTrainingOrchestrator: accepts sessions, knows them, hands out their checkpoints, and lets them end."""

from __future__ import annotations

import asyncio
import shutil
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from ktrdr_core.clock import utc_now
from ktrdr_core.config.naming import MAX_NAME_LENGTH, check_name
from ktrdr_core.data.partitions import Manifest
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import (
    AlreadyExistsError,
    DrainingError,
    IllegalStateError,
    InvalidSpecError,
    KtrdrError,
    SessionNotFoundError,
    StorageError,
)
from ktrdr_core.execution.engine import ExecutionEngine, SessionCheckpoint
from ktrdr_core.logging import get_logger, log_context
from ktrdr_core.undisturbed import undisturbed
from ktrdr_core.versions import check_versions, own_version
from trainer_service.bar_fetch import BarFetcher, BarsReady
from trainer_service.checkpoint_outlet import give_checkpoint
from trainer_service.checkpoint_store import CheckpointStore
from trainer_service.journal import SessionOrder
from trainer_service.outbox import UploadOptions
from trainer_service.session import RESUMABLE_REASONS, Session
from trainer_service.session_run import JOURNAL_RETRY_S, CancelRequest, SessionRun
from trainer_service.session_starter import SessionStarter

DEFAULT_CANCEL_REASON = "Cancelled on request"
FENCED_REASON = "fenced: the backend has given this attempt up"
STOP_LIMIT_S = 5.0
"""A stopping trainer waits this long for its workers to write checkpoints, and again for backends to fetch them."""
_MAX_REFUSED_IDS = 10_000
_DEFAULT_UPLOADS = UploadOptions()
_log = get_logger(__name__)


class HostTrainingOrchestrator:
    """Owns the sessions of one trainer.

    Args:
        engine: Executes sessions.
        starter: Begins them.
        checkpoints: Checkpoints that sessions can go on from.
        bars: Fetches the bars that sessions will read.
        sessions: Sessions found on disk by `recovery.load_sessions`.
        uploads: How artifacts are sent.
    """

    def __init__(
        self,
        *,
        engine: ExecutionEngine,
        starter: SessionStarter,
        checkpoints: CheckpointStore,
        bars: BarFetcher,
        sessions: Sequence[Session] = (),
        uploads: UploadOptions = _DEFAULT_UPLOADS,
    ) -> None:
        self._engine = engine
        self._starter = starter
        self._checkpoints = checkpoints
        self._bars = bars
        self._uploads = uploads
        self._sessions: dict[str, Session] = {session.session_id: session for session in sessions}
        self._accepting: dict[str, tuple[SessionOrder, asyncio.Task[Session]]] = {}
        self._refused_ids: OrderedDict[str, None] = OrderedDict()
        self._runs: dict[str, tuple[SessionRun, asyncio.Task[None]]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self.is_draining = False

    def resume(self) -> None:
        """Go on with the sessions that a stop of the trainer interrupted; call it once, in the running loop."""
        for session in self._sessions.values():
            if not session.log.is_closed:
                run = self._new_run(session)
                self._start_run(run, run.go_on())

    async def check(self, spec: TrainingSpec) -> None:
        """Validate a spec, against the bars of this machine if it reads them; nothing is started.

        Raises:
            InvalidInputError: A rule is broken.
            SeriesNotFoundError: This trainer has no such bars.
        """
        await self._starter.check(spec)

    async def train(
        self, order: SessionOrder, series: Sequence[Manifest] = (), *, backend_version: str = ""
    ) -> Session:
        """Accept a session, or answer the one that has its id and content, whatever the version of who asks.

        Args:
            order: What to train.
            series: The bars to train on, for data mode backend.
            backend_version: Version of the backend that asks; "" is not checked.

        Raises:
            InvalidInputError: A rule is broken; nothing was started.
            SeriesNotFoundError: This trainer has no such bars.
            BarsMissingError: The bars of `series` have to be fetched first.
            CheckpointNotFoundError: It is to go on from a checkpoint that is not here.
            AlreadyExistsError: The id was used with other content.
            IllegalStateError: The id was cancelled before its Train came.
            VersionSkewError: Backend and trainer do not work together.
            NoSlotError: Every slot is taken.
            DrainingError: The trainer is stopping.
            StorageError: The disk takes no writes; nothing was started.
        """
        check_name(order.session_id, field="session_id", what="session_id", error_class=InvalidSpecError)
        if order.attempt < 1:
            raise InvalidSpecError(f"attempt must be at least 1, was {order.attempt}", field="attempt")
        if (session := self._sessions.get(order.session_id)) is not None:
            _check_same(session.order, order)
            await _redirect_upload(session, order.upload_target)
            return session
        if (entry := self._accepting.get(order.session_id)) is not None:
            _check_same(entry[0], order)
            return await asyncio.shield(entry[1])
        if order.session_id in self._refused_ids:
            raise IllegalStateError(
                f"session {order.session_id} was cancelled before its Train came; use a new session_id",
                metadata={"session_id": order.session_id, "state": "CANCELLED"},
            )
        if backend_version:
            check_versions(backend=backend_version, trainer=own_version())
        # A caller that goes away must not leave half a session: accepting goes on without it.
        task = asyncio.create_task(self._accept(order, series))
        self._accepting[order.session_id] = (order, task)
        task.add_done_callback(lambda ended: self._note_accepted(order.session_id, ended))
        return await asyncio.shield(task)

    async def cancel(
        self, session_id: str, *, save_checkpoint: bool = False, reason: str = DEFAULT_CANCEL_REASON
    ) -> Session:
        """End a session and return it once nothing of it runs.

        One that is being accepted is ended as soon as it is. An id that is not known is remembered: a Train that comes
        late, after its cancel, starts nothing.

        Raises:
            SessionNotFoundError: No such session.
            IllegalStateError: It has already ended.
        """
        if (accepting := self._accepting.get(session_id)) is not None:
            await asyncio.wait([accepting[1]])
        if session_id not in self._sessions:
            self._refuse(session_id)
        session = self.session(session_id)
        session.check_not_ended()
        entry = self._runs.get(session_id)
        if entry is None:
            raise DrainingError("the trainer has stopped; cancel again when it is back")
        await undisturbed(entry[0].cancel(CancelRequest(save_checkpoint, reason)), self._background)
        return session

    def fence(self, session_ids: Iterable[str]) -> None:
        """End sessions that a backend has given up, in the background; what has ended or is unknown needs nothing.

        One whose artifact is complete goes on to its end: the backend takes the artifact and keeps it aside.
        """
        for session_id in session_ids:
            session, entry = self._sessions.get(session_id), self._runs.get(session_id)
            if session is None and session_id not in self._accepting:
                self._refuse(session_id)
            elif session is not None and session.is_delivering:
                continue
            elif entry is None or not entry[0].is_being_cancelled:
                undisturbed(self._fence(session_id), self._background)

    def session(self, session_id: str) -> Session:
        """Return a session.

        Raises:
            SessionNotFoundError: No such session.
        """
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFoundError(
                f"no session {session_id!r} on this trainer; ended ones are kept for a day",
                metadata={"session_id": session_id},
            )
        return session

    def sessions(self) -> list[Session]:
        """Return every session, newest first."""
        return sorted(self._sessions.values(), key=lambda session: session.order.create_time, reverse=True)

    def watch(self, session_id: str, after_sequence: int) -> tuple[Session, AsyncIterator[Sequence[ProgressEvent]]]:
        """Return a session and the stream of its events; see `EventLog.watch`."""
        session = self.session(session_id)
        return session, _counted(session, session.log.watch(after_sequence))

    async def give_checkpoint(self, session_id: str) -> tuple[SessionCheckpoint, AsyncIterator[UploadChunk]]:
        """Return the newest checkpoint of a session and the stream of its bytes.

        Raises:
            SessionNotFoundError: No such session.
            CheckpointNotFoundError: It has no checkpoint.
            StorageError: It cannot be read.
        """
        return await give_checkpoint(self.session(session_id))

    async def take_checkpoint(self, ref: CheckpointRef, chunks: AsyncIterator[UploadChunk]) -> None:
        """Take a checkpoint that a session will go on from; see `CheckpointStore.put`."""
        await self._checkpoints.put(ref, chunks)

    async def prepare_bars(self, series: Sequence[Manifest], source: str) -> AsyncGenerator[BarsReady]:
        """Fetch bars that a Train will name; see `BarFetcher.prepare`.

        Raises:
            DrainingError: The trainer is stopping; what has arrived is kept.
        """
        self._check_not_draining()
        async with aclosing(self._bars.prepare(series, source)) as reports:
            async for ready in reports:
                yield ready
                self._check_not_draining()

    def begin_draining(self) -> None:
        """Refuse new sessions from now on."""
        self.is_draining = True

    async def drain(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Refuse new sessions and let the others end.

        What still runs after `timeout_s` is stopped with a checkpoint, for which it has STOP_LIMIT_S, and FAILED with
        DRAINING; a backend that watches it has that long again to fetch the checkpoint. `hurry` ends every wait, and
        the workers at once. Uploads go on when the trainer starts again.
        """
        self.begin_draining()
        hurried = asyncio.create_task(hurry.wait())
        try:
            deadline = asyncio.get_running_loop().time() + timeout_s
            await _wait_all({task for _, task in self._accepting.values()}, deadline, hurried)
            await _wait_all({task for _, task in self._runs.values()}, deadline, hurried)
            await self._stop(hurried)
        finally:
            hurried.cancel()

    async def sweep(self, keep_s: float) -> None:
        """Forget sessions that ended `keep_s` ago, and remove their directories unless they hold an only copy."""
        await self._checkpoints.sweep(keep_s)
        oldest = utc_now() - timedelta(seconds=keep_s)
        for session in self.sessions():
            if session.end_time is None or session.end_time > oldest:
                continue
            del self._sessions[session.session_id]
            if not session.has_only_copy:
                await asyncio.to_thread(shutil.rmtree, session.directory, ignore_errors=True)

    async def _stop(self, hurried: asyncio.Task[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._is_stopping = True
        runs = list(self._runs.values())
        watched = [run.session for run, _ in runs if run.session.num_watchers]
        for run, _ in runs:
            run.begin_stop()
        stops = set() if hurried.done() else {undisturbed(run.stop_worker(), self._background) for run, _ in runs}
        await _wait_all(stops, loop.time() + STOP_LIMIT_S, hurried)
        await self._engine.close()
        await asyncio.gather(*stops, return_exceptions=True)  # a worker that cannot be ended is in the engine's log
        for run, _ in runs:
            run.stop_upload()
        if runs:
            await asyncio.wait({task for _, task in runs}, timeout=JOURNAL_RETRY_S)
        owed = [session for session in watched if session.log.summary.error_reason in RESUMABLE_REASONS]
        givings = {undisturbed(session.wait_given(), self._background) for session in owed}
        await _wait_all(givings, loop.time() + STOP_LIMIT_S, hurried)
        left: set[asyncio.Task[Any]] = {task for _, task in (*self._runs.values(), *self._accepting.values())}
        left |= self._background
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for session in self._sessions.values():
            session.log.interrupt(DrainingError("the trainer has stopped; reconnect when it is back"))

    async def _accept(self, order: SessionOrder, series: Sequence[Manifest]) -> Session:
        self._check_not_draining()
        session, worker = await self._starter.begin(order, series)
        self._sessions[order.session_id] = session
        run = self._new_run(session)
        self._start_run(run, run.follow(worker))
        _log.info("Session accepted session_id=%s training_id=%s", order.session_id, order.training_id)
        return session

    def _check_not_draining(self) -> None:
        if self.is_draining:
            raise DrainingError("the trainer is stopping and takes no new sessions; use another one")

    def _new_run(self, session: Session) -> SessionRun:
        run = SessionRun(session, uploads=self._uploads)
        if self._is_stopping:
            run.begin_stop()
        return run

    def _start_run(self, run: SessionRun, running: Coroutine[Any, Any, None]) -> None:
        async def run_to_end() -> None:
            await running
            await self._starter.let_go(run.session.order)

        order = run.session.order
        session_id = order.session_id
        with log_context(training_id=order.training_id, attempt=order.attempt, session_id=session_id):
            task = asyncio.create_task(run_to_end())
        self._runs[session_id] = (run, task)
        task.add_done_callback(lambda _: self._runs.pop(session_id, None))

    async def _fence(self, session_id: str) -> None:
        try:
            await self.cancel(session_id, reason=FENCED_REASON)
        except KtrdrError as error:  # mostly: it has ended meanwhile; else the backend asks again
            _log.info("Not fenced: %s", error.message)

    def _note_accepted(self, session_id: str, task: asyncio.Task[Session]) -> None:
        self._accepting.pop(session_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.info("Session %s was not accepted: %s", session_id, error)  # who asked may have gone

    def _refuse(self, session_id: str) -> None:
        if len(session_id) > MAX_NAME_LENGTH:  # no Train can have it
            return
        self._refused_ids[session_id] = None
        while len(self._refused_ids) > _MAX_REFUSED_IDS:
            self._refused_ids.popitem(last=False)


def _check_same(known: SessionOrder, wanted: SessionOrder) -> None:
    if not known.has_same_content(wanted):
        raise AlreadyExistsError(
            f"session_id {wanted.session_id} was used with other content; use another one",
            metadata={"session_id": wanted.session_id},
        )


async def _redirect_upload(session: Session, address: str) -> None:
    if address == session.order.upload_target:
        return
    try:
        await session.redirect_upload(address)
    except OSError as error:
        raise StorageError(
            f"the new upload target of session {session.session_id} cannot be kept: {error}; try again"
        ) from error


async def _counted(
    session: Session, batches: AsyncIterator[Sequence[ProgressEvent]]
) -> AsyncIterator[Sequence[ProgressEvent]]:
    session.num_watchers += 1
    try:
        async for events in batches:
            yield events
    finally:
        session.num_watchers -= 1


async def _wait_all(tasks: Iterable[asyncio.Future[Any]], deadline: float, hurried: asyncio.Task[Any]) -> None:
    """Wait until all are done, `deadline` on the loop's clock has passed, or `hurried` is done."""
    loop = asyncio.get_running_loop()
    pending = {task for task in tasks if not task.done()}
    while pending and not hurried.done() and (left_s := deadline - loop.time()) > 0:
        await asyncio.wait({*pending, hurried}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        pending = {task for task in pending if not task.done()}
