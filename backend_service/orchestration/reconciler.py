"""What a start of the backend makes of the trainings that the end before left behind."""

from __future__ import annotations

from backend_service.operations.records import LOCAL_TRAINER
from backend_service.operations.training_record import TrainingRecord
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.dispatcher import Dispatcher
from backend_service.orchestration.local import complete
from backend_service.publisher import Publisher
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import WorkerDiedError
from ktrdr_core.logging import get_logger

_log = get_logger(__name__)


async def reconcile(trainings: Trainings, dispatcher: Dispatcher, publisher: Publisher) -> None:
    """Bring back every training that had not ended, before the first RPC is served.

    - A model was published but the end not written down: COMPLETED.
    - It ran on this machine: its worker died with the backend, so FAILED, or CANCELLED if that was asked for.
    - It is queued: dispatched again.
    - It runs on a trainer: followed again from the last event that was stored.
    """
    for record in await trainings.load_active():
        if _ran_here(record):
            await _end_with_worker(record, publisher)
        if not record.is_ended:
            _log.info("picked up training %s in state %s", record.training_id, record.state)
            dispatcher.submit(record)


def _ran_here(record: TrainingRecord) -> bool:
    session = record.last_session
    return session is not None and session.trainer == LOCAL_TRAINER and record.state is not TrainingState.QUEUED


async def _end_with_worker(record: TrainingRecord, publisher: Publisher) -> None:
    model = await publisher.find_by_training(record.training_id)
    if model is not None and record.state is not TrainingState.RUNNING:
        await complete(record, model)
    elif record.state is TrainingState.CANCELLING:
        await record.move_to(TrainingState.CANCELLED, "Cancelled; its worker ended with the backend")
    else:
        await record.move_to(
            TrainingState.FAILED,
            "the backend ended while this training ran on its machine, and its worker with it; train again",
            error_reason=WorkerDiedError.reason,
        )
