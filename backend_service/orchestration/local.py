"""Attempts on the backend's own machine, over the execution engine."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

from backend_service.checkpoints import CheckpointStore
from backend_service.operations.records import Placement, SessionRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.orchestration.attempt_bars import AttemptBars
from backend_service.orchestration.attempts import LOST_REASONS, LostAttempt, next_session
from backend_service.orchestration.completion import complete
from backend_service.orchestration.run import CancelOrder, Run, obeying
from backend_service.publisher import Publisher
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE, StateDetail, WarningDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    DrainingError,
    InvalidInputError,
    KtrdrError,
    NoSlotError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from ktrdr_core.execution.engine import EngineSession, ExecutionEngine, SessionJob, SessionOutcome
from ktrdr_core.logging import get_logger
from ktrdr_core.storage.stored_model import StoredModel

_log = get_logger(__name__)

SPACE_RETRY_S = 1.0


class LocalTrainingOrchestrator:
    """Runs attempts in the engine's slots.

    Args:
        engine: Executes sessions.
        publisher: Takes finished artifacts.
        checkpoints: What attempts go on from.
        bars: What attempts are trained on.
        sessions_dir: Where each session gets a directory.
        bars_dir: Bars the workers read.
        checkpoint_every_s: How often a worker keeps a checkpoint.
    """

    def __init__(
        self,
        engine: ExecutionEngine,
        publisher: Publisher,
        checkpoints: CheckpointStore,
        *,
        bars: AttemptBars,
        sessions_dir: Path,
        bars_dir: Path,
        checkpoint_every_s: float,
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._checkpoints = checkpoints
        self._bars = bars
        self._sessions_dir = sessions_dir
        self._bars_dir = bars_dir
        self._checkpoint_every_s = checkpoint_every_s

    @property
    def num_slots(self) -> int:
        return self._engine.num_slots

    def session_dir(self, session_id: str) -> Path:
        return self._sessions_dir / session_id

    async def remove_session_dir(self, session_id: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self.session_dir(session_id), ignore_errors=True)

    async def run(self, run: Run, placement: Placement) -> LostAttempt | None:
        """Execute the next attempt and publish its model.

        Returns:
            The attempt if the backend's stop cut it short; None if the training has ended.

        Raises:
            NoSlotError: The engine has no free slot; nothing began.
        """
        record = run.record
        checkpoint = await self._checkpoints.find(record.training_id)
        session = replace(next_session(record, placement), resumed_from_epoch=checkpoint.epoch if checkpoint else 0)
        await record.put_session(session)
        session = await self._note_bars(record, session)
        job = SessionJob(
            session_id=session.session_id,
            training_id=record.training_id,
            attempt=session.attempt,
            spec=record.row.spec,
            work_dir=self.session_dir(session.session_id),
            bars_dir=self._bars_dir,
            resume_from=checkpoint.path if checkpoint else None,
            last_epoch_told=record.last_epoch,
            checkpoint_every_s=self._checkpoint_every_s,
        )
        try:
            worker = await self._engine.start(job)
        except NoSlotError as error:
            if self._engine.num_free_slots < 1:
                await record.put_session(replace(session, trainer=""))
                raise
            await record.move_to(TrainingState.FAILED, error.message, error_reason=error.reason)  # it lacks devices
            return None
        except UnavailableError as error:  # the machine, not the training: no space, no processes
            return LostAttempt(
                session=session, error_reason=StorageError.reason, cause=error.message, is_log_whole=True
            )
        except KtrdrError as error:
            await record.move_to(TrainingState.FAILED, error.message, error_reason=error.reason)
            return None
        record.resource_usage = worker.resource_usage
        outcome: SessionOutcome | None = None

        async def obey(order: CancelOrder) -> None:
            # What becomes of it, also that it does not end, is the outcome that is waited for below.
            with contextlib.suppress(UnavailableError):
                await worker.cancel(save_checkpoint=order.save_checkpoint, reason=order.reason)

        try:
            async with obeying(run, obey):
                async for event in worker.events():
                    if isinstance(event.detail, WarningDetail) and event.detail.reason == CHECKPOINT_UNUSABLE:
                        session = replace(session, resumed_from_epoch=0)
                        await self._checkpoints.remove(record.training_id)
                    if not isinstance(event.detail, StateDetail):
                        is_durable = event.is_durable
                        await record.append(
                            replace(event, attempt=session.attempt), session=session if is_durable else None
                        )
                    elif record.state is TrainingState.QUEUED:
                        await record.try_move_to(TrainingState.RUNNING, _where(session), session=session)
                outcome = await worker.wait()
        finally:
            record.resource_usage = lambda: None
            if outcome is None:  # whatever happened here, no worker goes on behind a training that has ended
                await worker.cancel(reason="the backend gave the training up")
        return await self._conclude(run, session, worker, outcome)

    async def _note_bars(self, record: TrainingRecord, session: SessionRow) -> SessionRow:
        """Return the session with the bars it reads noted; the worker finds out itself what is wrong with them."""
        try:
            return await self._bars.note(record, session, await self._bars.snapshot(record.row.spec))
        except (UnavailableError, InvalidInputError, NotFoundError) as error:
            _log.warning("The bars of attempt %d are not noted: %s", session.attempt, error.message)
            return session

    async def _conclude(
        self, run: Run, session: SessionRow, worker: EngineSession, outcome: SessionOutcome
    ) -> LostAttempt | None:
        record = run.record
        order = run.order
        was_ended = outcome.state in (TrainingState.CANCELLED, TrainingState.STOPPED)
        if order is not None and order.is_drain and was_ended:
            await self._keep_checkpoint(record, worker)
            return LostAttempt(
                session=session,
                error_reason=DrainingError.reason,
                cause="the backend was stopped while it ran on its machine",
                is_log_whole=True,
            )
        if outcome.state is TrainingState.FAILED and outcome.error_reason in LOST_REASONS and order is None:
            await self._keep_checkpoint(record, worker)
            return LostAttempt(
                session=session, error_reason=outcome.error_reason, cause=outcome.message, is_log_whole=True
            )
        is_killed = order is not None and not order.save_checkpoint and not order.is_drain
        # A worker that did not stop in time was killed: no checkpoint, so it is not STOPPED.
        was_not_heard = order is not None and order.save_checkpoint and outcome.state is TrainingState.CANCELLED
        if outcome.state is TrainingState.UPLOADING and outcome.artifact_path is not None and not is_killed:
            await self._publish(run, session, outcome.artifact_path)
        elif (
            order is not None
            and outcome.state in (TrainingState.CANCELLED, TrainingState.UPLOADING)
            and not was_not_heard
        ):
            await record.move_to(order.state_unbegun, order.message_unbegun, session=session)
        else:
            await record.move_to(
                outcome.state,
                outcome.message,
                error_reason=outcome.error_reason,
                checkpoint_path=outcome.checkpoint_path,
                session=session,
            )
        if record.state not in (TrainingState.STOPPED, TrainingState.FAILED):  # a checkpoint, or a log to look at
            await self.remove_session_dir(session.session_id)
        return None

    async def _keep_checkpoint(self, record: TrainingRecord, worker: EngineSession) -> None:
        """Keep the worker's newest checkpoint for the next attempt; without it that goes on from an older one."""
        if worker.checkpoint is None:
            return
        try:
            await self._checkpoints.adopt(record.training_id, worker.checkpoint)
        except StorageError as error:
            _log.warning("The next attempt goes on from an older checkpoint, or from the beginning: %s", error.message)

    async def _publish(self, run: Run, session: SessionRow, artifact: Path) -> None:
        record = run.record
        if record.state is not TrainingState.CANCELLING:
            await record.try_move_to(TrainingState.UPLOADING, "Stores the model", session=session)
        try:
            model = await self._publish_when_there_is_space(run, session, artifact)
        except KtrdrError as error:
            await record.move_to(TrainingState.FAILED, error.message, error_reason=error.reason)
            return
        if model is None:
            order = run.order or CancelOrder()
            await record.move_to(order.state_unbegun, order.message_unbegun, session=session)
        else:
            await complete(record, model, self._publisher)

    async def _publish_when_there_is_space(self, run: Run, session: SessionRow, artifact: Path) -> StoredModel | None:
        """Return the stored model; while the disk takes no writes, wait for it, or for a cancel, which gives None."""
        has_warned = False
        while True:
            try:
                return await self._publisher.publish(artifact, training_id=session.training_id, attempt=session.attempt)
            except StorageError as error:
                if not has_warned:
                    await run.record.warn(error.reason, f"the model waits to be stored: {error.message}")
                has_warned = True
            if run.order is not None and not run.order.is_drain:
                return None
            await asyncio.sleep(SPACE_RETRY_S)


def _where(session: SessionRow) -> str:
    if session.resumed_from_epoch:
        return f"Runs on the backend's machine, from the checkpoint of epoch {session.resumed_from_epoch}"
    return "Runs on the backend's machine"
