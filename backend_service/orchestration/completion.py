"""How a training whose model is stored becomes COMPLETED, whoever notices it first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from backend_service.operations.training_record import TrainingRecord
from backend_service.publisher import Publisher
from ktrdr_core.domain.progress import BARS_CHANGED
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import KtrdrError
from ktrdr_core.logging import get_logger
from ktrdr_core.storage.stored_model import Lineage, StoredModel

HISTORY_INCOMPLETE = "HISTORY_INCOMPLETE"
_log = get_logger(__name__)


class Completion:
    """Looks for the published model of a training.

    Args:
        publisher: Knows which trainings have published one.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def has_model(self, record: TrainingRecord) -> bool:
        """Return whether a model of the training is stored."""
        return await self._publisher.find_by_training(record.training_id) is not None

    async def complete_if_published(
        self, record: TrainingRecord, *, missing: str = "", otherwise: Callable[[], Awaitable[object]] | None = None
    ) -> bool:
        """Return whether the training has ended, completing it if its model is stored.

        Args:
            record: The training.
            missing: Why its history may have a hole at the end; then a warning says so.
            otherwise: What becomes of it without a model; done before anyone can publish one.
        """
        async with record.publication:
            if record.is_ended:
                return True
            model = await self._publisher.find_by_training(record.training_id)
            if model is None:
                if otherwise is not None:
                    await otherwise()
                return record.is_ended
            if missing:
                await record.warn(
                    HISTORY_INCOMPLETE, f"the model is stored; {missing}: what it had not told is missing"
                )
            if record.state is TrainingState.QUEUED:
                await record.try_move_to(TrainingState.RUNNING, "It was trained")
            if record.state is TrainingState.RUNNING:
                await record.try_move_to(TrainingState.UPLOADING, "The model has arrived")
            if not record.is_ended:
                await complete(record, model, self._publisher)
            return True


async def complete(record: TrainingRecord, model: StoredModel, publisher: Publisher) -> None:
    """Move a training whose model is published to COMPLETED, with the result as stored.

    If an earlier version of the same name was trained on other bars of the same days, a warning says so before.
    """
    try:
        before = await publisher.find_predecessor(model)
    except (OSError, KtrdrError) as error:  # the model counts, whatever can be said of others
        _log.warning("The bars of %s were not compared with those of earlier versions: %s", model.name, error)
        before = None
    changed = [] if before is None else changed_series(before.lineage, model.lineage)
    if before is not None and changed:
        await record.warn(
            BARS_CHANGED,
            f"the bars of {', '.join(changed)} from {model.lineage.start_date} to {model.lineage.end_date} are not"
            f" those that {before.name} was trained on: do not compare the two",
        )
    result: TrainingResult = {**model.result, "model_path": str(model.path)}
    await record.move_to(TrainingState.COMPLETED, f"Model stored as {model.name}", result=result)


def changed_series(before: Lineage, now: Lineage) -> list[str]:
    """Return the series whose bars differ between two models; one that only the later one tells of counts as equal."""
    known = {(series.symbol, series.timeframe): series.digest for series in before.series}
    return [
        f"{series.symbol} {series.timeframe}"
        for series in now.series
        if known.get((series.symbol, series.timeframe), series.digest) != series.digest
    ]
