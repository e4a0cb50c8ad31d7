"""Accepting trainings over a real database."""

from __future__ import annotations

import asyncio
from pathlib import Path

from backend_service.operations.records import RequestCancel
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.trainings import Trainings
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
