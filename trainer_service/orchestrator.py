"""HostTrainingOrchestrator: accepts sessions, runs them on the engine, brings their artifacts away, ends them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path

from ktrdr_core.clock import utc_now
from ktrdr_core.config.naming import check_name
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.domain.progress import ProgressEvent, StateDetail
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    AlreadyExistsError,
    DrainingError,
    IllegalStateError,
    InternalError,
    InvalidSpecError,
    KtrdrError,
    NoSlotError,
    SessionNotFoundError,
    TrainerLostError,
)
from ktrdr_core.execution.engine import EngineSession, ExecutionEngine, SessionJob, SessionOutcome
from ktrdr_core.logging import get_logger
from ktrdr_core.training.preflight import preflight
from trainer_service.journal import Journal, JournalContent, SessionOrder
from trainer_service.outbox import RETRY_DELAYS_S, Upload
from trainer_service.session import CancelRequest, Session

DEFAULT_CANCEL_REASON = "Cancelled on request"
_JOURNAL_RETRY_S = 1.0
_log = get_logger(__name__)


class HostTrainingOrchestrator:
    """Owns the sessions of one trainer.

    Args:
        engine: Executes sessions.
        bar_store: Bars of this machine, for the check at the door.
        bars_dir: Where the workers read them.
        sessions: Sessions found on disk by `recovery.load_sessions`.
        sessions_dir: Directory with one folder per session.
        retry_delays_s: Waits between tries of an upload; the last one repeats.
    """

    def __init__(
        self,
        *,
        engine: ExecutionEngine,
        bar_store: BarStore,
        bars_dir: Path,
        sessions_dir: Path,
        sessions: Sequence[Session] = (),
        retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
    ) -> None:
        self._engine = engine
        self._bar_store = bar_store
        self._bars_dir = bars_dir
        self._sessions_dir = sessions_dir
        self._retry_delays_s = retry_delays_s
        self._sessions: dict[str, Session] = {session.session_id: session for session in sessions}
        self._accepting: dict[str, tuple[SessionOrder, asyncio.Task[Session]]] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.is_draining = False
        self._is_stopping = False

    def resume(self) -> None:
        """Go on with the sessions that a stop of the trainer interrupted; call it once, in the running loop."""
        for session in self._sessions.values():
            if not session.log.is_closed:
                self._start_run(session, self._resume(session))

    async def check(self, spec: TrainingSpec) -> None:
        """Validate a spec against the bars of this machine; nothing is started.

        Raises:
            InvalidInputError: A rule is broken.
            SeriesNotFoundError: This trainer has no such bars.
        """
        await asyncio.to_thread(preflight, spec, self._bar_store)

    async def train(self, order: SessionOrder) -> Session:
        """Accept a session, or answer the one that has its id and content.

        Raises:
            InvalidInputError: A rule is broken; nothing was started.
            SeriesNotFoundError: This trainer has no such bars.
            AlreadyExistsError: The id was used with other content.
            NoSlotError: Every slot is taken.
            DrainingError: The trainer is stopping.
        """
        check_name(order.session_id, field="session_id", what="session_id", error_class=InvalidSpecError)
        if order.attempt < 1:
            raise InvalidSpecError(f"attempt must be at least 1, was {order.attempt}", field="attempt")
        if (session := self._sessions.get(order.session_id)) is not None:
            _check_same(session.order, order)
            if order.upload_target != session.order.upload_target:
                await session.redirect_upload(order.upload_target)
            return session
        if (entry := self._accepting.get(order.session_id)) is not None:
            _check_same(entry[0], order)
            return await asyncio.shield(entry[1])
        # A caller that goes away must not leave half a session: accepting goes on without it.
        task = asyncio.create_task(self._accept(order))
        self._accepting[order.session_id] = (order, task)
        task.add_done_callback(lambda _: self._accepting.pop(order.session_id, None))
        return await asyncio.shield(task)

    async def cancel(
        self, session_id: str, *, save_checkpoint: bool = False, reason: str = DEFAULT_CANCEL_REASON
    ) -> Session:
        """End a session and return it once nothing of it runs.

        Raises:
            SessionNotFoundError: No such session.
            IllegalStateError: It has already ended.
        """
        session = self.session(session_id)
        session.check_not_ended()
        task = asyncio.create_task(self._cancel(session, CancelRequest(save_checkpoint, reason)))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await asyncio.shield(task)
        return session

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

    def watch(self, session_id: str, after_sequence: int) -> tuple[Session, AsyncIterator[list[ProgressEvent]]]:
        """Return a session and the stream of its events; see `EventLog.watch`."""
        session = self.session(session_id)
        return session, session.log.watch(after_sequence)

    async def drain(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Refuse new sessions and let the others end; what still runs after `timeout_s`, or on `hurry`, is ended.

        A session whose worker is ended so is FAILED with TRAINER_LOST. Uploads go on when the trainer starts again.
        """
        self.is_draining = True
        await asyncio.gather(*(task for _, task in self._accepting.values()), return_exceptions=True)
        hurried = asyncio.create_task(hurry.wait())
        pending = set(self._runs.values())
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while pending and not hurried.done() and (left_s := deadline - loop.time()) > 0:
            await asyncio.wait({*pending, hurried}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            pending = {task for task in pending if not task.done()}
        hurried.cancel()
        await self._stop()

    async def _stop(self) -> None:
        self._is_stopping = True
        await self._engine.close()
        for session in self._sessions.values():
            if session.upload_task is not None:
                session.upload_task.cancel()
        runs = set(self._runs.values())
        if runs:
            await asyncio.wait(runs, timeout=_JOURNAL_RETRY_S)
        left = {*runs, *self._background}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for session in self._sessions.values():
            session.log.interrupt(DrainingError("the trainer has stopped; reconnect when it is back"))

    async def sweep(self, keep_s: float) -> None:
        """Forget sessions that ended `keep_s` ago, and remove their directories unless they hold an only copy."""
        oldest = utc_now() - timedelta(seconds=keep_s)
        for session in self.sessions():
            if session.end_time is None or session.end_time > oldest:
                continue
            del self._sessions[session.session_id]
            if not _has_only_copy(session):
                await asyncio.to_thread(shutil.rmtree, session.directory, ignore_errors=True)

    async def _accept(self, order: SessionOrder) -> Session:
        if self.is_draining:
            raise DrainingError("the trainer is stopping and takes no new sessions; use another one")
        if self._engine.num_free_slots < 1:
            raise NoSlotError(
                f"every slot of this trainer is taken ({self._engine.num_slots}); try again later, or start it with"
                " more --slots"
            )
        await self.check(order.spec)
        directory = self._sessions_dir / order.session_id
        try:
            journal = await asyncio.to_thread(Journal.create, directory, order)
        except FileExistsError:
            raise AlreadyExistsError(
                f"{directory} is left from an older session {order.session_id}; use another session_id",
                metadata={"session_id": order.session_id},
            ) from None
        job = SessionJob(
            session_id=order.session_id,
            training_id=order.training_id,
            attempt=order.attempt,
            spec=order.spec,
            work_dir=directory,
            bars_dir=self._bars_dir,
        )
        try:
            worker = await self._engine.start(job)
        except KtrdrError:
            journal.close()
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            raise
        session = Session(directory, journal, JournalContent(order=order))
        session.worker = worker
        self._sessions[order.session_id] = session
        self._start_run(session, self._run(session, worker))
        _log.info("Session accepted session_id=%s training_id=%s", order.session_id, order.training_id)
        return session

    def _start_run(self, session: Session, run: Awaitable[None]) -> None:
        task = asyncio.create_task(self._supervise(session, run))
        self._runs[session.session_id] = task
        task.add_done_callback(lambda _: self._runs.pop(session.session_id, None))

    async def _supervise(self, session: Session, run: Awaitable[None]) -> None:
        try:
            await run
        except Exception as error:  # noqa: BLE001  a defect must not leave a session that runs for ever
            _log.error("Session broke session_id=%s", session.session_id, exc_info=error)
            if session.worker is not None:
                with contextlib.suppress(KtrdrError):  # the worker cannot be ended, which may be what broke
                    await session.worker.cancel(reason="the trainer has a defect")
            await self._end(
                session,
                TrainingState.FAILED,
                f"the trainer failed in an unexpected way ({type(error).__name__}); its log has the details",
                error_reason=InternalError.reason,
            )

    async def _run(self, session: Session, worker: EngineSession) -> None:
        async for event in worker.events():
            await session.record(event)
        outcome = await worker.wait()
        session.worker = None
        request = session.cancel_request
        if outcome.state is TrainingState.UPLOADING and request is None:
            await self._deliver(session, outcome)
        elif outcome.state is TrainingState.UPLOADING and request is not None:
            await self._end_cancelled(session, request)
        elif self._is_stopping and request is None and outcome.state is TrainingState.CANCELLED:
            await self._end(
                session,
                TrainingState.FAILED,
                "the trainer was stopped while it ran; start it again",
                error_reason=TrainerLostError.reason,
            )
        else:
            await self._end(
                session,
                outcome.state,
                outcome.message,
                error_reason=outcome.error_reason,
                checkpoint_path=outcome.checkpoint_path,
            )

    async def _resume(self, session: Session) -> None:
        if session.artifact_path is not None and session.state in (TrainingState.RUNNING, TrainingState.UPLOADING):
            if session.state is TrainingState.RUNNING:
                await self._announce_upload(session)
            await self._upload(session, session.artifact_path, is_resumed=True)
        elif session.state is TrainingState.CANCELLING:
            await self._end(session, TrainingState.CANCELLED, "the trainer stopped while it was being cancelled")
        else:
            await self._end(
                session,
                TrainingState.FAILED,
                "the trainer stopped while it ran; start it again",
                error_reason=TrainerLostError.reason,
            )

    async def _deliver(self, session: Session, outcome: SessionOutcome) -> None:
        artifact_path, result = outcome.artifact_path, outcome.result
        if artifact_path is None or result is None:
            raise InternalError("the engine answered UPLOADING without an artifact")
        await _until_written(lambda: session.keep_artifact(artifact_path, result))
        await self._announce_upload(session)
        await self._upload(session, artifact_path)

    async def _announce_upload(self, session: Session) -> None:
        detail = StateDetail(state=TrainingState.UPLOADING, message="The artifact is complete")
        try:
            if session.cancel_request is None:
                await _until_written(lambda: session.set_state(detail))
        except IllegalStateError:
            if session.cancel_request is None:  # else the cancel came while the disk was full
                raise

    async def _upload(self, session: Session, path: Path, *, is_resumed: bool = False) -> None:
        if (request := session.cancel_request) is not None:
            await self._end_cancelled(session, request)
            return
        if not session.order.upload_target:
            await self._end(session, TrainingState.COMPLETED, f"The artifact is in {path}", model_path=str(path))
            return
        upload = Upload(
            path,
            training_id=session.order.training_id,
            attempt=session.order.attempt,
            target=lambda: session.order.upload_target,
            warn=session.warn,
            retry_delays_s=self._retry_delays_s,
            is_resumed=is_resumed,
        )
        task = asyncio.create_task(upload.run())
        session.upload_task = task
        try:
            model = await task
        except asyncio.CancelledError:
            if (request := session.cancel_request) is None:
                raise  # the trainer stops; the journal says UPLOADING, so the next start goes on
            if await upload.was_published():
                await self._end(session, TrainingState.COMPLETED, "The model was stored before the cancel came")
            else:
                await self._end_cancelled(session, request)
        except KtrdrError as error:
            await self._end(
                session,
                TrainingState.FAILED,
                f"the model store refused the model: {error.message}; the artifact stays in {path}",
                error_reason=error.reason,
            )
        else:
            await self._end(
                session, TrainingState.COMPLETED, f"The model is stored as {model.name}", model_path=model.path
            )

    async def _cancel(self, session: Session, request: CancelRequest) -> None:
        if session.cancel_request is None or not request.save_checkpoint:
            session.cancel_request = request
        ending: asyncio.Task[SessionOutcome] | None = None
        if session.worker is not None:
            # First of all: what follows waits for the disk.
            ending = asyncio.create_task(
                session.worker.cancel(save_checkpoint=request.save_checkpoint, reason=request.reason)
            )
        detail = StateDetail(state=TrainingState.CANCELLING, message=request.reason)
        if session.state is not TrainingState.CANCELLING and not session.log.is_closed:
            with contextlib.suppress(KtrdrError):  # it ended, or another cancel was first
                await _until_written(lambda: session.set_state(detail))
        if session.upload_task is not None:
            session.upload_task.cancel()
        await session.has_ended.wait()
        if ending is not None:
            await ending

    async def _end_cancelled(self, session: Session, request: CancelRequest) -> None:
        if request.save_checkpoint:
            await self._end(
                session,
                TrainingState.STOPPED,
                f"{request.reason}; the training was over, its artifact stays in {session.directory / 'artifact'}",
            )
        else:
            await self._end(session, TrainingState.CANCELLED, request.reason)

    async def _end(
        self,
        session: Session,
        state: TrainingState,
        message: str,
        *,
        error_reason: str = "",
        checkpoint_path: str = "",
        model_path: str = "",
    ) -> None:
        if session.log.is_closed:
            return
        detail = StateDetail(
            state=state,
            message=message,
            error_reason=error_reason,
            checkpoint_path=checkpoint_path,
            model_path=model_path,
        )
        await _until_written(lambda: session.set_state(detail))
        _log.info("Session ended %s session_id=%s", state, session.session_id)
        if not _has_only_copy(session):
            for name in ("artifact", "checkpoints"):
                await asyncio.to_thread(shutil.rmtree, session.directory / name, ignore_errors=True)


def _check_same(known: SessionOrder, wanted: SessionOrder) -> None:
    if not known.has_same_content(wanted):
        raise AlreadyExistsError(
            f"session_id {wanted.session_id} was used with other content; use another one",
            metadata={"session_id": wanted.session_id},
        )


def _has_only_copy(session: Session) -> bool:
    """Return whether the directory of an ended session holds something no other place has."""
    match session.state:
        case TrainingState.COMPLETED:
            return not session.order.upload_target
        case TrainingState.FAILED:
            return session.artifact_path is not None
        case TrainingState.STOPPED:
            return True
        case _:
            return False


async def _until_written(write: Callable[[], Awaitable[None]]) -> None:
    """Repeat `write` until the disk takes it: a state that is not stored must not be shown, and must not be lost."""
    while True:
        try:
            return await write()
        except OSError as error:
            _log.error("The journal cannot be written, trying again: %s", error)
            await asyncio.sleep(_JOURNAL_RETRY_S)
