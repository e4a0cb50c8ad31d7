"""The door: what a training must satisfy before it is accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec

from backend_service.operations.request_id import check_request_id
from backend_service.operations.training_record import TrainingSnapshot
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.dispatcher import Dispatcher
from backend_service.orchestration.selector import ExecutionModeSelector
from backend_service.orchestration.trainers import Trainers
from backend_service.strategies import MAX_STRATEGY_BYTES
from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
from ktrdr_core.domain.spec import DataMode, TrainingSpec
from ktrdr_core.errors import (
    AlreadyExistsError,
    DrainingError,
    InvalidSpecError,
    NoSlotError,
    SeriesNotFoundError,
    UnavailableError,
)
from ktrdr_core.training.preflight import preflight, prepare_strategy
from ktrdr_core.undisturbed import undisturbed

P = ParamSpec("P")
# A validation takes 6 ms of a thread that shares the interpreter with the event loop: more threads would make no
# training valid sooner and everything else later. 256 are a wait of some 3 s, well below a client's deadline.
VALIDATION_THREADS = 1
MAX_VALIDATIONS = 256
# The look for a duplicate comes before that bound, so that a repeated request is answered in any flood of this size.
MAX_LOOK_UPS_AT_ONCE = 8
MAX_LOOK_UPS = 1_000
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSpec:
    """A spec that passed the door: as asked for, and with what the strategy says filled in."""

    strategy_name: str
    normalised: TrainingSpec


class Admission:
    """Validates and accepts trainings.

    What is trained on the backend's bars, or on this machine, is checked against this machine's bars. What reads the
    bars of a trainer is checked against these if they are here too; else the trainers are asked to check it against
    theirs.

    Args:
        trainings: Where accepted ones go.
        dispatcher: Who takes charge of them.
        selector: Knows whether a trainer is considered.
        bar_store: This machine's bars.
        trainers: Those to ask.
        max_validations: Trainings that are validated or wait for it; a further one is refused.
    """

    def __init__(
        self,
        trainings: Trainings,
        dispatcher: Dispatcher,
        selector: ExecutionModeSelector,
        bar_store: BarStore,
        trainers: Trainers,
        *,
        max_validations: int = MAX_VALIDATIONS,
    ) -> None:
        self._trainings = trainings
        self._dispatcher = dispatcher
        self._selector = selector
        self._bar_store = bar_store
        self._trainers = trainers
        self._is_draining = False
        self._accepts: set[asyncio.Task[TrainingSnapshot]] = set()
        # Threads of its own: a flood of Train calls must not hold up what else the service does in threads.
        self._threads = ThreadPoolExecutor(VALIDATION_THREADS, thread_name_prefix="admission")
        self._validations = _Bound(max_validations)
        self._look_ups = _Bound(MAX_LOOK_UPS)
        self._looking_up = asyncio.Semaphore(MAX_LOOK_UPS_AT_ONCE)

    def start_draining(self) -> None:
        """Refuse new trainings from now on."""
        self._is_draining = True

    def close(self) -> None:
        """Give the threads back; whoever still waits for one is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check(self, spec: TrainingSpec) -> CheckedSpec:
        """Validate a spec; nothing is stored.

        Raises:
            InvalidInputError: A rule is broken; the violation names the field.
            SeriesNotFoundError: There are no such bars.
            UnavailableError: Only a trainer can have the bars, and none answers.
            NoSlotError: As many are being validated as may be.
        """
        with self._validations.place():
            try:
                return await self._in_thread(_check_here, spec, self._bar_store)
            except SeriesNotFoundError as error:
                if spec.data_mode is DataMode.BACKEND:
                    raise
                await self._check_elsewhere(spec, error)
                return await self._in_thread(_check_strategy, spec)

    async def _in_thread(self, check: Callable[P, CheckedSpec], *args: P.args, **kwargs: P.kwargs) -> CheckedSpec:
        call = partial(copy_context().run, check, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

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

    async def accept(
        self, spec: TrainingSpec, *, request_id: str, scheduling: Scheduling = DEFAULT_SCHEDULING
    ) -> TrainingSnapshot:
        """Accept a training, or return the one this request_id has already made; that one in any flood.

        A training whose request was cancelled before it came is returned as it ended.

        Finishes even if the caller goes away: a training is stored and dispatched, or neither.

        Raises:
            InvalidInputError, SeriesNotFoundError: See `check`.
            AlreadyExistsError: The request_id was used with other content.
            NoSlotError: The queue is full, or too many come at once.
            StorageError: It could not be stored; nothing was.
            DrainingError: The backend is stopping.
        """
        check_request_id(request_id)
        return await undisturbed(self._accept(spec, request_id, scheduling), self._accepts)

    async def _accept(self, spec: TrainingSpec, request_id: str, scheduling: Scheduling) -> TrainingSnapshot:
        duplicate = await self._find_duplicate(request_id, spec, scheduling)
        if duplicate is not None:
            return duplicate
        if self._is_draining:
            raise DrainingError("the backend is stopping and takes no new trainings; try again once it is back")
        self._trainings.check_room()
        checked = await self.check(spec)
        try:
            record = await self._trainings.accept(
                spec, strategy_name=checked.strategy_name, request_id=request_id, scheduling=scheduling
            )
        except AlreadyExistsError:
            duplicate = await self._find_duplicate(request_id, spec, scheduling)
            if duplicate is None:
                raise
            return duplicate
        snapshot = record.snapshot()
        if not (record.is_ended or self._is_draining):  # while draining it stays QUEUED; the next start dispatches it
            self._dispatcher.submit(record)
        return snapshot

    async def _find_duplicate(
        self, request_id: str, spec: TrainingSpec, scheduling: Scheduling
    ) -> TrainingSnapshot | None:
        with self._look_ups.place():
            async with self._looking_up:  # a flood leaves the store to others between some calls of its own
                found = await self._trainings.find_duplicate(request_id, spec, scheduling)
        record = None if found is None else self._trainings.find_active(found.row.training_id)
        is_left = record is not None and not self._trainings.is_accepting(record.training_id)
        if record is not None and is_left and not self._is_draining:
            self._dispatcher.submit(record)  # if nobody has: its first answer was lost with the store
        return found


class _Bound:
    """Places for calls that are worked on or wait; one more is refused.

    Args:
        limit: How many places there are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            NoSlotError: Every place is taken.
        """
        if self._num_taken >= self._limit:
            raise NoSlotError(
                f"{self._num_taken} Train calls are being checked and the limit is {self._limit}; "
                "send this one again in a moment",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1


def _check_here(spec: TrainingSpec, bar_store: BarStore) -> CheckedSpec:
    _check_size(spec)
    plan = preflight(spec, bar_store)
    normalised = replace(
        spec, symbols=plan.symbols, timeframes=plan.timeframes, start_date=plan.start_date, end_date=plan.end_date
    )
    return CheckedSpec(strategy_name=plan.strategy.name, normalised=normalised)


def _check_strategy(spec: TrainingSpec) -> CheckedSpec:
    _check_size(spec)
    strategy, _ = prepare_strategy(spec)
    normalised = replace(spec, symbols=strategy.symbols, timeframes=strategy.timeframes)
    return CheckedSpec(strategy_name=strategy.name, normalised=normalised)


def _check_size(spec: TrainingSpec) -> None:
    size_bytes = len(spec.strategy_yaml.encode())
    if size_bytes > MAX_STRATEGY_BYTES:
        raise InvalidSpecError(
            f"strategy must have at most {MAX_STRATEGY_BYTES} bytes, had {size_bytes}", field="spec.strategy"
        )
