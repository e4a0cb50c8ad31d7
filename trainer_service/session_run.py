"""What becomes of one session: from its worker, over the upload of its artifact, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from ktrdr.models.v1.model_service_pb2 import UploadModelResponse

from ktrdr_core.domain.progress import ProgressEvent, StateDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import DrainingError, IllegalStateError, InternalError, KtrdrError, TrainerLostError
from ktrdr_core.execution.engine import EngineSession, SessionCheckpoint, SessionOutcome
from ktrdr_core.logging import get_logger
from ktrdr_core.storage.artifact_sums import forget_sums
from trainer_service.outbox import Upload, UploadOptions
from trainer_service.session import Session

JOURNAL_RETRY_S = 1.0
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """How somebody wants a session to end."""

    save_checkpoint: bool
    reason: str


class SessionRun:
    """Runs one session to its end; the only one that changes it.

    Args:
        session: The session.
        uploads: How its artifact is sent.
    """

    def __init__(self, session: Session, *, uploads: UploadOptions) -> None:
        self.session = session
        self._uploads = uploads
        self._cancel_request: CancelRequest | None = None
        self._upload_task: asyncio.Task[UploadModelResponse] | None = None
        self._is_stopping = False
        self._log = get_logger(
            __name__,
            {
                "training_id": session.order.training_id,
                "attempt": session.order.attempt,
                "session_id": session.session_id,
            },
        )

    @property
    def is_being_cancelled(self) -> bool:
        """Whether somebody wants it to end without a checkpoint."""
        return self._cancel_request is not None and not self._cancel_request.save_checkpoint

    async def follow(self, worker: EngineSession) -> None:
        """Follow the worker of a new session to the session's end."""
        await self._supervise(self._follow(worker))

    async def go_on(self) -> None:
        """Go on with a session that a stop of the trainer interrupted: what was trained is delivered, else it ends."""
        await self._supervise(self._go_on())

    async def cancel(self, request: CancelRequest) -> None:
        """End the session and return once nothing of it runs; see `ExecutionEngine` for what a request may overtake."""
        session = self.session
        is_news = self._cancel_request is None or (self._cancel_request.save_checkpoint and not request.save_checkpoint)
        if is_news:
            self._cancel_request = request
        ending: asyncio.Task[SessionOutcome] | None = None
        if session.worker is not None:
            # First of all: what follows waits for the disk.
            ending = asyncio.create_task(
                session.worker.cancel(save_checkpoint=request.save_checkpoint, reason=request.reason)
            )
        if is_news:
            await _until_written(lambda: session.begin_cancel(request.reason, save_checkpoint=request.save_checkpoint))
        if self._upload_task is not None:
            self._upload_task.cancel()
        await session.has_ended.wait()
        if ending is not None:
            await ending

    def begin_stop(self) -> None:
        """Know from now on that the trainer stops: a worker that is ended has not been cancelled by a user."""
        self._is_stopping = True

    async def stop_worker(self) -> None:
        """Ask the worker to write a checkpoint and end; returns when it is gone."""
        if self.session.worker is not None:
            await self.session.worker.cancel(save_checkpoint=True, reason="The trainer stops")

    def stop_upload(self) -> None:
        """Break the upload off; the next start goes on with it."""
        if self._upload_task is not None:
            self._upload_task.cancel()

    async def _supervise(self, run: Awaitable[None]) -> None:
        try:
            await run
        except Exception as error:  # noqa: BLE001  a defect must not leave a session that runs for ever
            self._log.error("Session broke", exc_info=error)
            worker = self.session.worker
            if worker is not None:
                with contextlib.suppress(KtrdrError):  # the worker cannot be ended, which may be what broke
                    await worker.cancel(reason="the trainer has a defect")
                self._let_go_of(worker)
            await self._end(
                TrainingState.FAILED,
                f"the trainer failed in an unexpected way ({type(error).__name__}); its log has the details",
                error_reason=InternalError.reason,
            )

    async def _follow(self, worker: EngineSession) -> None:
        async for event in worker.events():
            await self._record(event)
        outcome = await worker.wait()
        self._let_go_of(worker)
        request = self._cancel_request
        if outcome.state is TrainingState.UPLOADING and request is None:
            await self._deliver(outcome)
        elif outcome.state is TrainingState.UPLOADING and request is not None:
            await self._end_cancelled(request)
        elif (
            self._is_stopping and request is None and outcome.state in (TrainingState.CANCELLED, TrainingState.STOPPED)
        ):
            await self._end_interrupted("the trainer was stopped while it ran", DrainingError.reason)
        else:
            await self._end(
                outcome.state,
                outcome.message,
                error_reason=outcome.error_reason,
                checkpoint_path=outcome.checkpoint_path,
            )

    async def _go_on(self) -> None:
        session = self.session
        if session.artifact_path is not None and session.state in (TrainingState.RUNNING, TrainingState.UPLOADING):
            if session.state is TrainingState.RUNNING:
                await self._announce_upload()
            await self._upload(session.artifact_path, is_resumed=True)
        elif session.state is TrainingState.CANCELLING and session.is_stop and session.left_checkpoint is not None:
            checkpoint = session.left_checkpoint
            await self._end(
                TrainingState.STOPPED,
                f"the trainer was interrupted as it stopped it; {_describe(checkpoint)}",
                checkpoint_path=str(checkpoint.path),
            )
        elif session.state is TrainingState.CANCELLING:
            await self._end(TrainingState.CANCELLED, "the trainer stopped while it was being cancelled")
        else:
            await self._end_interrupted("the trainer stopped while it ran", TrainerLostError.reason)

    async def _record(self, event: ProgressEvent) -> None:
        await _until_written(lambda: self.session.record(event))

    def _let_go_of(self, worker: EngineSession) -> None:
        self.session.left_checkpoint = worker.checkpoint
        self.session.worker = None

    async def _deliver(self, outcome: SessionOutcome) -> None:
        artifact_path, result = outcome.artifact_path, outcome.result
        if artifact_path is None or result is None:
            raise InternalError("the engine answered UPLOADING without an artifact")
        await _until_written(lambda: self.session.keep_artifact(artifact_path, result))
        await self._announce_upload()
        await self._upload(artifact_path)

    async def _announce_upload(self) -> None:
        detail = StateDetail(state=TrainingState.UPLOADING, message="The artifact is complete")
        try:
            if self._cancel_request is None:
                await _until_written(lambda: self.session.set_state(detail))
        except IllegalStateError:
            if self._cancel_request is None:  # else the cancel came while the disk was full
                raise

    async def _upload(self, path: Path, *, is_resumed: bool = False) -> None:
        order = self.session.order
        if (request := self._cancel_request) is not None:
            await self._end_cancelled(request)
            return
        if not order.upload_target:
            await self._end(TrainingState.COMPLETED, f"The artifact is in {path}", model_path=str(path))
            return
        upload = Upload(
            path,
            training_id=order.training_id,
            attempt=order.attempt,
            target=lambda: self.session.order.upload_target,
            warn=self._warn,
            options=self._uploads,
            digest=self.session.result["artifact_digest"] if self.session.result is not None else "",
            is_resumed=is_resumed,
        )
        task = asyncio.create_task(upload.run())
        self._upload_task = task
        try:
            stored = await task
        except asyncio.CancelledError:
            if (request := self._cancel_request) is None:
                raise  # the trainer stops; the journal says UPLOADING, so the next start goes on
            if await upload.was_stored():
                await self._end(TrainingState.COMPLETED, "The model was stored before the cancel came")
            else:
                await self._end_cancelled(request)
        except KtrdrError as error:
            await self._end(
                TrainingState.FAILED,
                f"the model could not be delivered: {error.message}; the artifact stays in {path}",
                error_reason=error.reason,
            )
        else:
            model = stored.model
            what = "Given up meanwhile: the model is kept aside" if stored.is_kept_aside else "The model is stored"
            await self._end(TrainingState.COMPLETED, f"{what} as {model.name}", model_path=model.path)

    async def _warn(self, reason: str, message: str) -> None:
        """Add a warning; one that a full disk does not take must not hold up the upload, which makes room."""
        try:
            await self.session.warn(reason, message)
        except OSError as error:
            self._log.error("The warning %s (%s) cannot be written: %s", reason, message, error)

    async def _end_cancelled(self, request: CancelRequest) -> None:
        if request.save_checkpoint:
            await self._end(
                TrainingState.STOPPED,
                f"{request.reason}; the training was over, its artifact stays in {self.session.directory / 'artifact'}",
            )
        else:
            await self._end(TrainingState.CANCELLED, request.reason)

    async def _end_interrupted(self, what: str, reason: str) -> None:
        await self._end(TrainingState.FAILED, f"{what}; {_describe(self.session.left_checkpoint)}", error_reason=reason)

    async def _end(
        self,
        state: TrainingState,
        message: str,
        *,
        error_reason: str = "",
        checkpoint_path: str = "",
        model_path: str = "",
    ) -> None:
        session = self.session
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
        self._log.info("Session ended %s: %s", state, message)
        if not session.has_only_copy:
            await _remove(session.directory / "artifact")
            await asyncio.to_thread(forget_sums, session.directory / "artifact")
        if not session.keeps_checkpoints:
            session.left_checkpoint = None
            await _remove(session.directory / "checkpoints")


def _describe(checkpoint: SessionCheckpoint | None) -> str:
    if checkpoint is None:
        return "it had no checkpoint yet; start it again"
    if not checkpoint.epoch:
        return "its checkpoint within the first epoch is kept; start it again from there"
    return f"its checkpoint of epoch {checkpoint.epoch} is kept; start it again from there"


async def _remove(directory: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _until_written(write: Callable[[], Awaitable[None]]) -> None:
    """Repeat `write` until the disk takes it: a state that is not stored must not be shown, and must not be lost."""
    while True:
        try:
            return await write()
        except OSError as error:
            _log.error("The journal cannot be written, trying again: %s", error)
            await asyncio.sleep(JOURNAL_RETRY_S)
