"""Accepting trainings over a real database."""

from __future__ import annotations

import asyncio
from pathlib import Path

from backend_service.operations.records import RequestCancel
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.trainings import Trainings
from ktrdr_core.domain.progress import StateDetail
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from tests.kit.eventually import eventually


class SlowLook(SqlOperationsStore):
    """Answers whether a request was cancelled only when `may_look` is set."""

    may_look: asyncio.Event

    async def find_request_cancel(self, request_id: str) -> RequestCancel | None:
        await self.may_look.wait()
        return await super().find_request_cancel(request_id)


async def _nothing(training_id: str) -> None:
    """Have nothing else of a deleted training to remove."""


async def test_training_whose_request_was_cancelled_is_nobody_s_to_run_before_that_is_known(tmp_path: Path) -> None:
    store = await SlowLook.open(tmp_path / "operations.db")
    store.may_look = asyncio.Event()
    trainings = Trainings(store, max_queued=10, sessions_dir=tmp_path, on_delete=_nothing)
    spec = TrainingSpec(strategy_yaml="name: s")
    assert await trainings.cancel_request("r", save_checkpoint=False, reason="too late") is None
    accepting = asyncio.create_task(trainings.accept(spec, strategy_name="s", request_id="r"))
    (record,) = await eventually(lambda: trainings.active)
    assert trainings.is_accepting(record.training_id)
    duplicate = await trainings.find_duplicate("r", spec)  # a copy of the call finds it, and must leave it alone
    assert duplicate is not None
    assert duplicate.row.state is TrainingState.QUEUED
    store.may_look.set()
    assert (await accepting).state is TrainingState.CANCELLED
    assert not trainings.is_accepting(record.training_id)
    await store.close()


async def test_request_that_was_cancelled_before_it_came_ends_in_one_step_however_it_was_cancelled(
    tmp_path: Path,
) -> None:
    store = await SqlOperationsStore.open(tmp_path / "operations.db")
    trainings = Trainings(store, max_queued=10, sessions_dir=tmp_path, on_delete=_nothing)
    for save_checkpoint in (False, True):
        request_id = f"r{save_checkpoint}"
        await trainings.cancel_request(request_id, save_checkpoint=save_checkpoint, reason="too late")
        record = await trainings.accept(TrainingSpec(strategy_yaml="name: s"), strategy_name="s", request_id=request_id)
        details = [event.detail for event in await store.load_events(record.training_id)]
        states = [detail.state for detail in details if isinstance(detail, StateDetail)]
        assert states == [TrainingState.QUEUED, TrainingState.CANCELLED]
    await store.close()
