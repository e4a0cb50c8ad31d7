"""Trainings on the backend's own machine, over the execution engine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from backend_service.operations.records import LOCAL_TRAINER, SessionRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.orchestration.run import CancelOrder, Run
from backend_service.publisher import Publisher
from ktrdr_core.domain.progress import StateDetail
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import DrainingError, KtrdrError, NoSlotError
from ktrdr_core.execution.engine import EngineSession, ExecutionEngine, SessionJob, SessionOutcome
from ktrdr_core.logging import get_logger
from ktrdr_core.storage.stored_model import StoredModel

_log = get_logger(__name__)

SLOT_RETRY_S = 0.5


class LocalTrainingOrchestrator:
    """Runs trainings in the engine's slots, first come, first served.

    Args:
        engine: Executes sessions.
        publisher: Takes finished artifacts.
        sessions_dir: Where each session gets a directory.
        bars_dir: Bars the workers read.
    """

    def __init__(self, engine: ExecutionEngine, publisher: Publisher, *, sessions_dir: Path, bars_dir: Path) -> None:
        self._engine = engine
        self._publisher = publisher
        self._sessions_dir = sessions_dir
        self._bars_dir = bars_dir
        self._slots = asyncio.Semaphore(max(engine.num_slots, 1))

    async def run(self, run: Run) -> None:
        """Wait for a slot, execute the training, publish its model; return once the training has ended.

        Cancelled while it waits, it leaves the training QUEUED.
        """
        async with self._slots:
            run.is_placed = True
            await self._execute(run)

    def session_dir(self, session_id: str) -> Path:
        return self._sessions_dir / session_id

    async def remove_session_dir(self, session_id: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self.session_dir(session_id), ignore_errors=True)

    async def _execute(self, run: Run) -> None:
        record = run.record
        attempt = record.last_session.attempt + 1 if record.last_session else 1
        session = SessionRow(
            session_id=f"{record.training_id}-{attempt}",
            training_id=record.training_id,
            attempt=attempt,
            trainer=LOCAL_TRAINER,
        )
        await record.put_session(session)
        worker = await self._start(run, session)
        if worker is None:
            return
        record.resource_usage = worker.resource_usage
        outcome: SessionOutcome | None = None
        try:
            async with self._obeying(run, worker):
                async for event in worker.events():
                    if not isinstance(event.detail, StateDetail):
                        await record.append(replace(event, attempt=attempt))
                    elif record.state is TrainingState.QUEUED:
                        await record.try_move_to(
                            TrainingState.RUNNING, "Runs on the backend's machine", session=session
                        )
                outcome = await worker.wait()
        finally:
            record.resource_usage = lambda: None
            if outcome is None:  # whatever happened here, no worker goes on behind a training that has ended
                await worker.cancel(reason="the backend gave the training up")
        await self._conclude(run, session, outcome)

    async def _start(self, run: Run, session: SessionRow) -> EngineSession | None:
        """Start the worker; None if the training ended instead."""
        record = run.record
        job = SessionJob(
            session_id=session.session_id,
            training_id=record.training_id,
            attempt=session.attempt,
            spec=record.row.spec,
            work_dir=self.session_dir(session.session_id),
            bars_dir=self._bars_dir,
        )
        while run.order is None:
            try:
                return await self._engine.start(job)
            except NoSlotError as error:
                if self._engine.num_free_slots > 0:  # it lacks devices: no use waiting
                    await record.move_to(TrainingState.FAILED, error.message, error_reason=error.reason)
                    return None
                run.is_placed = False
                await asyncio.sleep(SLOT_RETRY_S)
                run.is_placed = True
            except KtrdrError as error:
                await record.move_to(TrainingState.FAILED, error.message, error_reason=error.reason)
                return None
        await self._end_cancelled(run, run.order)
        return None

    @asynccontextmanager
    async def _obeying(self, run: Run, worker: EngineSession) -> AsyncIterator[None]:
        """Pass cancel orders on to the worker while the block runs."""

        async def pass_on() -> None:
            order: CancelOrder | None = None
            cancels: list[asyncio.Task[SessionOutcome]] = []
            try:
                while True:
                    order = await run.next_order(after=order)
                    cancels.append(
                        asyncio.create_task(worker.cancel(save_checkpoint=order.save_checkpoint, reason=order.reason))
                    )
            finally:
                await asyncio.gather(*cancels)

        passing = asyncio.create_task(pass_on())
        try:
            yield
        finally:
            passing.cancel()
            await asyncio.wait([passing])

    async def _conclude(self, run: Run, session: SessionRow, outcome: SessionOutcome) -> None:
        record = run.record
        order = run.order
        is_killed = order is not None and not order.save_checkpoint and not order.is_drain
        # A worker that did not stop in time was killed: no checkpoint, so it is not STOPPED.
        was_not_heard = order is not None and order.save_checkpoint and outcome.state is TrainingState.CANCELLED
        if outcome.state is TrainingState.UPLOADING and outcome.artifact_path is not None and not is_killed:
            await self._publish(record, session, outcome.artifact_path)
        elif (
            order is not None
            and outcome.state in (TrainingState.CANCELLED, TrainingState.UPLOADING)
            and (order.is_drain or not was_not_heard)
        ):
            await self._end_cancelled(run, order)
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

    async def _publish(self, record: TrainingRecord, session: SessionRow, artifact: Path) -> None:
        if record.state is not TrainingState.CANCELLING:
            await record.try_move_to(TrainingState.UPLOADING, "Stores the model", session=session)
        try:
            model = await self._publisher.publish(artifact, training_id=record.training_id, attempt=session.attempt)
        except KtrdrError as error:
            await record.move_to(TrainingState.FAILED, error.message, error_reason=error.reason)
            return
        await complete(record, model)

    async def _end_cancelled(self, run: Run, order: CancelOrder) -> None:
        if order.is_drain:
            await run.record.move_to(
                TrainingState.FAILED,
                "the backend was stopped while this training ran on its machine; train again",
                error_reason=DrainingError.reason,
            )
        else:
            await run.record.move_to(order.state_unbegun, order.message_unbegun)


async def complete(record: TrainingRecord, model: StoredModel) -> None:
    """Move a training whose model is published to COMPLETED, with the result as stored."""
    result: TrainingResult = {**model.result, "model_path": str(model.path)}
    await record.move_to(TrainingState.COMPLETED, f"Model stored as {model.name}", result=result)
