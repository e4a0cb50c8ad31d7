"""The door: what a training must satisfy before it is accepted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from backend_service.operations.training_record import TrainingSnapshot
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.dispatcher import Dispatcher
from backend_service.orchestration.selector import ExecutionModeSelector
from backend_service.orchestration.trainers import Trainers
from backend_service.strategies import MAX_STRATEGY_BYTES
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import (
    AlreadyExistsError,
    DrainingError,
    InvalidInputError,
    InvalidSpecError,
    SeriesNotFoundError,
    UnavailableError,
)
from ktrdr_core.training.preflight import preflight, prepare_strategy

MAX_REQUEST_ID_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSpec:
    """A spec that passed the door: as asked for, and with what the strategy says filled in."""

    strategy_name: str
    normalised: TrainingSpec


class Admission:
    """Validates and accepts trainings.

    What will run on this machine is checked against this machine's bars. What may run on a trainer is checked against
    them if they are here too; else the trainers are asked to check it against theirs.

    Args:
        trainings: Where accepted ones go.
        dispatcher: Who takes charge of them.
        selector: Knows whether a trainer is considered.
        bar_store: This machine's bars.
        trainers: Those to ask.
    """

    def __init__(
        self,
        trainings: Trainings,
        dispatcher: Dispatcher,
        selector: ExecutionModeSelector,
        bar_store: BarStore,
        trainers: Trainers,
    ) -> None:
        self._trainings = trainings
        self._dispatcher = dispatcher
        self._selector = selector
        self._bar_store = bar_store
        self._trainers = trainers
        self._is_draining = False
        self._accepts: set[asyncio.Task[TrainingSnapshot]] = set()

    def start_draining(self) -> None:
        """Refuse new trainings from now on."""
        self._is_draining = True

    async def check(self, spec: TrainingSpec) -> CheckedSpec:
        """Validate a spec; nothing is stored.

        Raises:
            InvalidInputError: A rule is broken; the violation names the field.
            SeriesNotFoundError: There are no such bars.
            UnavailableError: Only a trainer can have the bars, and none answers.
        """
        checked = await asyncio.to_thread(_check_strategy, spec)
        try:
            plan = await asyncio.to_thread(preflight, spec, self._bar_store)
        except SeriesNotFoundError as error:
            await self._check_elsewhere(spec, error)
            return checked
        dated = replace(checked.normalised, start_date=plan.start_date, end_date=plan.end_date)
        return replace(checked, normalised=dated)

    async def _check_elsewhere(self, spec: TrainingSpec, missing: SeriesNotFoundError) -> None:
        mode = None if spec.execution_mode is None else str(spec.execution_mode)
        needs_gpu = spec.require_gpu or spec.num_gpus > 0
        if not self._selector.may_use_trainer(mode, require_gpu=needs_gpu):
            raise missing
        try:
            await self._trainers.check_spec(spec)
        except UnavailableError as error:
            raise UnavailableError(
                f"on the backend's machine, {missing.message}; and {error.message}; start a trainer that has these bars"
            ) from error

    async def accept(self, spec: TrainingSpec, *, request_id: str) -> TrainingSnapshot:
        """Accept a training, or return the one this request_id has already made.

        Finishes even if the caller goes away: a training is stored and dispatched, or neither.

        Raises:
            InvalidInputError, SeriesNotFoundError: See `check`.
            AlreadyExistsError: The request_id was used with other content.
            NoSlotError: The queue is full.
            DrainingError: The backend is stopping.
        """
        if len(request_id) > MAX_REQUEST_ID_LENGTH:
            raise InvalidInputError(
                f"request_id must have at most {MAX_REQUEST_ID_LENGTH} characters, had {len(request_id)}",
                field="request_id",
            )
        task = asyncio.create_task(self._accept(spec, request_id))
        self._accepts.add(task)
        task.add_done_callback(self._accepts.discard)
        return await asyncio.shield(task)

    async def _accept(self, spec: TrainingSpec, request_id: str) -> TrainingSnapshot:
        duplicate = await self._trainings.find_duplicate(request_id, spec)
        if duplicate is not None:
            return duplicate
        if self._is_draining:
            raise DrainingError("the backend is stopping and takes no new trainings; try again once it is back")
        self._trainings.check_room()
        checked = await self.check(spec)
        try:
            record = await self._trainings.accept(spec, strategy_name=checked.strategy_name, request_id=request_id)
        except AlreadyExistsError:
            duplicate = await self._trainings.find_duplicate(request_id, spec)
            if duplicate is None:
                raise
            return duplicate
        snapshot = record.snapshot()
        if not self._is_draining:  # else it stays QUEUED and the next start dispatches it
            self._dispatcher.submit(record)
        return snapshot


def _check_strategy(spec: TrainingSpec) -> CheckedSpec:
    size_bytes = len(spec.strategy_yaml.encode())
    if size_bytes > MAX_STRATEGY_BYTES:
        raise InvalidSpecError(
            f"strategy must have at most {MAX_STRATEGY_BYTES} bytes, had {size_bytes}", field="spec.strategy"
        )
    strategy, _ = prepare_strategy(spec)
    normalised = replace(spec, symbols=strategy.symbols, timeframes=strategy.timeframes)
    return CheckedSpec(strategy_name=strategy.name, normalised=normalised)
