"""What a start of the backend makes of the trainings that the end before left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

from backend_service.checkpoints import CheckpointStore
from backend_service.operations.records import LOCAL_TRAINER, SessionRow
from backend_service.operations.training_record import TrainingRecord
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.attempts import refuse_retry
from backend_service.orchestration.completion import Completion
from backend_service.orchestration.dispatcher import Dispatcher
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import KtrdrError, WorkerDiedError
from ktrdr_core.execution.found_checkpoint import find_checkpoint
from ktrdr_core.execution.left_workers import end_left_workers
from ktrdr_core.logging import get_logger, log_context

_log = get_logger(__name__)


class Reconciler:
    """Brings back every training that had not ended, before the first RPC is served.

    - A model was published but the end not written down: COMPLETED.
    - It ran on this machine: its worker died with the backend, so that attempt is lost, and the next goes on from its
      last checkpoint; CANCELLED if that was asked for.
    - It is queued: dispatched again.
    - It runs on a trainer: followed again from the last event that was stored.

    Args:
        trainings: What there is.
        dispatcher: Who takes charge.
        completion: Ends trainings whose model is published.
        checkpoints: What attempts go on from.
        sessions_dir: Where sessions on this machine had their directories.
    """

    def __init__(
        self,
        trainings: Trainings,
        dispatcher: Dispatcher,
        completion: Completion,
        checkpoints: CheckpointStore,
        *,
        sessions_dir: Path,
    ) -> None:
        self._trainings = trainings
        self._dispatcher = dispatcher
        self._completion = completion
        self._checkpoints = checkpoints
        self._sessions_dir = sessions_dir

    async def run(self) -> None:
        """Do it; call it once, before the server starts."""
        await end_left_workers(self._sessions_dir)
        await self._trainings.sweep()
        records = await self._trainings.load_active()
        for record in records:
            with log_context(training_id=record.training_id):
                await self._pick_up(record)
        await self._checkpoints.sweep(await self._trainings.with_checkpoints(await self._checkpoints.training_ids()))

    async def _pick_up(self, record: TrainingRecord) -> None:
        session = record.live_session
        if session is not None and session.trainer == LOCAL_TRAINER:
            await self._end_with_worker(record, session)
        if not record.is_ended:
            _log.info("Picked up in state %s", record.state)
            self._dispatcher.submit(record, is_restored=True)

    async def _end_with_worker(self, record: TrainingRecord, session: SessionRow) -> None:
        if record.state is not TrainingState.QUEUED and await self._completion.complete_if_published(record):
            return
        await self._keep_checkpoint(session)
        if record.state is TrainingState.CANCELLING:
            kept = await self._checkpoints.find(record.training_id) if record.row.cancel_save_checkpoint else None
            if kept is None:
                await record.move_to(TrainingState.CANCELLED, "Cancelled; its worker ended with the backend")
            else:
                await record.move_to(
                    TrainingState.STOPPED,
                    f"Stopped; its worker ended with the backend, the checkpoint of epoch {kept.epoch} is kept",
                    checkpoint_path=str(kept.path),
                )
            return
        cause = "the backend ended while this training ran on its machine, and its worker with it"
        refusal = refuse_retry(record, WorkerDiedError.reason)
        await record.lose_session(
            session,
            error_reason=WorkerDiedError.reason,
            message=f"{cause}; {refusal}; train again" if refusal else f"{cause}; the next attempt goes on",
            state=TrainingState.FAILED if refusal else None,
        )

    async def _keep_checkpoint(self, session: SessionRow) -> None:
        try:
            found = await asyncio.to_thread(find_checkpoint, self._sessions_dir / session.session_id)
            if found is not None:
                await self._checkpoints.adopt(session.training_id, found)
        except KtrdrError as error:
            _log.warning("The next attempt goes on from an older checkpoint, or from the beginning: %s", error.message)
