"""One suite for every implementation of the OperationsStore port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backend_service.operations.records import Placement, SessionRow, TrainingRow, fold
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.store import OperationsStore, TrainingQuery
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import EpochDetail, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import AlreadyExistsError, IllegalStateError, TrainingNotFoundError, WriteConflictError

OpenStore = Callable[[Path], Awaitable[SqlOperationsStore]]


@pytest.fixture(params=[SqlOperationsStore.open], ids=["sqlite"])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    found: OpenStore = request.param
    return found


@pytest.fixture
async def store(open_store: OpenStore, tmp_path: Path) -> AsyncIterator[OperationsStore]:
    opened = await open_store(tmp_path / "operations.db")
    yield opened
    await opened.close()


def make_row(training_id: str = "t1", *, request_id: str = "", strategy_name: str = "s") -> TrainingRow:
    return TrainingRow(
        training_id=training_id,
        request_id=request_id,
        content_digest="d",
        strategy_name=strategy_name,
        spec=TrainingSpec(strategy_yaml="name: s", symbols=("EURUSD",), epochs=3),
        create_time=utc_now(),
    )


def make_event(sequence: int = 1, state: TrainingState = TrainingState.QUEUED) -> ProgressEvent:
    return ProgressEvent(sequence=sequence, create_time=utc_now(), detail=StateDetail(state=state, message="m"))


async def test_training_is_read_back_equal(store: OperationsStore) -> None:
    row = make_row(request_id="r1")
    await store.insert_training(row, make_event())
    assert await store.find_training("t1") == row
    assert await store.find_by_request("r1") == row
    assert await store.find_training("t2") is None
    assert await store.find_by_request("r2") is None


async def test_saved_row_event_and_session_are_read_back_equal(store: OperationsStore) -> None:
    row = make_row()
    await store.insert_training(row, make_event())
    epoch = EpochDetail(
        epoch=1,
        total_epochs=3,
        train_loss=1.0,
        train_accuracy=0.5,
        val_loss=1.1,
        val_accuracy=0.4,
        learning_rate=0.001,
        rows_per_second=1e5,
    )
    event = ProgressEvent(sequence=2, create_time=utc_now(), attempt=1, overall=0.3, detail=epoch)
    changed = replace(
        row,
        state=TrainingState.RUNNING,
        start_time=utc_now(),
        placement=Placement(mode=ExecutionMode.HOST, trainer="a:1", reasons=("x", "y")),
        cancel_save_checkpoint=True,
        summary=fold(row.summary, event),
    )
    session = SessionRow(session_id="t1-1", training_id="t1", attempt=1, trainer="a:1", last_sequence=4)
    await store.save_training(changed, event=event, session=session)
    assert await store.find_training("t1") == changed
    assert (await store.load_events("t1"))[1] == event
    assert await store.load_sessions(["t1", "t2"]) == {"t1": [session], "t2": []}
    await store.save_training(changed, session=replace(session, last_sequence=9))
    assert (await store.load_sessions(["t1"]))["t1"][0].last_sequence == 9


async def test_request_id_is_unique_but_empty_ones_are_not(store: OperationsStore) -> None:
    await store.insert_training(make_row("t1", request_id="r"), make_event())
    await store.insert_training(make_row("t2"), make_event())
    await store.insert_training(make_row("t3"), make_event())
    with pytest.raises(AlreadyExistsError):
        await store.insert_training(make_row("t4", request_id="r"), make_event())
    assert await store.find_training("t4") is None


async def test_second_writer_of_a_sequence_is_refused_and_changes_nothing(store: OperationsStore) -> None:
    row = make_row()
    await store.insert_training(row, make_event())
    with pytest.raises(WriteConflictError):
        await store.save_training(replace(row, state=TrainingState.FAILED), event=make_event(1))
    assert await store.find_training("t1") == row


async def test_failed_command_does_not_fail_the_others_of_its_group(store: OperationsStore) -> None:
    rows = [make_row(f"t{index}", request_id=f"r{index % 50}") for index in range(60)]
    outcomes = await asyncio.gather(*(store.insert_training(row, make_event()) for row in rows), return_exceptions=True)
    assert [isinstance(outcome, AlreadyExistsError) for outcome in outcomes] == [False] * 50 + [True] * 10
    assert len(await store.list_trainings(TrainingQuery(limit=100))) == 50


async def test_caller_who_gives_up_does_not_hold_the_writer(store: OperationsStore) -> None:
    row = make_row()
    waiting = asyncio.ensure_future(store.insert_training(row, make_event()))
    await asyncio.sleep(0)
    waiting.cancel()
    await store.insert_training(make_row("t2"), make_event())
    assert await store.find_training("t2") is not None


async def test_unknown_training_cannot_be_saved_or_deleted(store: OperationsStore) -> None:
    with pytest.raises(TrainingNotFoundError):
        await store.save_training(make_row(), event=make_event())
    with pytest.raises(TrainingNotFoundError):
        await store.delete_training("t1")
    assert await store.load_events("t1") == []


async def test_delete_removes_events_and_sessions(store: OperationsStore) -> None:
    row = make_row()
    await store.insert_training(row, make_event())
    await store.save_training(row, session=SessionRow(session_id="t1-1", training_id="t1", attempt=1, trainer="local"))
    await store.delete_training("t1")
    assert await store.find_training("t1") is None
    assert await store.load_events("t1") == []
    assert await store.load_sessions(["t1"]) == {"t1": []}


async def test_lists_are_newest_first_and_filtered(store: OperationsStore) -> None:
    for index in range(5):
        await store.insert_training(make_row(f"t{index}", strategy_name="ab"[index % 2]), make_event())
    await store.save_training(replace(make_row("t3", strategy_name="b"), state=TrainingState.COMPLETED))
    listed = await store.list_trainings(TrainingQuery(limit=3))
    assert [entry.row.training_id for entry in listed] == ["t4", "t3", "t2"]
    rest = await store.list_trainings(TrainingQuery(limit=3, before_position=listed[-1].position))
    assert [entry.row.training_id for entry in rest] == ["t1", "t0"]
    ended = await store.list_trainings(TrainingQuery(limit=9, states=(TrainingState.COMPLETED,)))
    assert [entry.row.training_id for entry in ended] == ["t3"]
    of_a = await store.list_trainings(TrainingQuery(limit=9, strategy_name="a"))
    assert [entry.row.training_id for entry in of_a] == ["t4", "t2", "t0"]
    assert [row.training_id for row in await store.load_active()] == ["t0", "t1", "t2", "t4"]


async def test_strategy_history_has_the_last_state_and_whether_one_runs(store: OperationsStore) -> None:
    await store.insert_training(make_row("t1", strategy_name="a"), make_event())
    await store.insert_training(make_row("t2", strategy_name="a"), make_event())
    await store.save_training(replace(make_row("t2", strategy_name="a"), state=TrainingState.FAILED))
    history = await store.load_strategy_history()
    assert history["a"].last_state is TrainingState.FAILED
    assert history["a"].has_active
    assert set(history) == {"a"}


async def test_config_answers_the_value_before(store: OperationsStore) -> None:
    assert await store.read_config("k") is None
    assert await store.write_config("k", "1") is None
    assert await store.write_config("k", "2") == "1"
    assert await store.read_config("k") == "2"


async def test_everything_survives_a_reopen(open_store: OpenStore, tmp_path: Path) -> None:
    first = await open_store(tmp_path / "o.db")
    await first.insert_training(make_row(), make_event())
    warning = ProgressEvent(sequence=2, create_time=utc_now(), detail=WarningDetail(reason="R", message="é"))
    await first.save_training(make_row(), event=warning)
    await first.close()
    second = await open_store(tmp_path / "o.db")
    try:
        assert [event.detail for event in await second.load_events("t1")][1] == warning.detail
    finally:
        await second.close()


async def test_database_of_another_version_is_refused_with_both_versions(open_store: OpenStore, tmp_path: Path) -> None:
    first = await open_store(tmp_path / "o.db")
    await first.write_config("schema_version", "99")
    await first.close()
    with pytest.raises(IllegalStateError, match=r"schema version 99, this program knows 1"):
        await open_store(tmp_path / "o.db")
