"""One suite for every implementation of the OperationsStore port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backend_service.operations.records import (
    LOST,
    Fence,
    Placement,
    RequestCancel,
    SessionRow,
    TrainingRow,
    fold,
)
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.store import OperationsStore, TrainingQuery
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import EpochDetail, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.scheduling import RetryMode, Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import AlreadyExistsError, TrainingNotFoundError, UnavailableError, WriteConflictError
from tests.kit.postgres import postgres_server

OpenStore = Callable[[], Awaitable[SqlOperationsStore]]


@pytest.fixture(params=["sqlite", "postgresql"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Open one and the same database, new to each test."""
    place: str | Path = tmp_path / "operations.db"
    if request.param == "postgresql":
        place = postgres_server(request).new_database()
    return lambda: SqlOperationsStore.open(place)


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[OperationsStore]:
    opened = await open_store()
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


def make_session(session_id: str = "t1-1", **fields: Any) -> SessionRow:
    values = {"training_id": "t1", "attempt": 1, "trainer": "a:1", **fields}
    return SessionRow(session_id=session_id, **values)


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


async def test_caller_who_gives_up_does_not_hold_those_of_its_group(store: OperationsStore) -> None:
    first, given_up, third = (
        asyncio.ensure_future(store.insert_training(make_row(name), make_event())) for name in ("t1", "t2", "t3")
    )
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(first, third)
    await store.insert_training(make_row("t4"), make_event())
    assert [entry.row.training_id for entry in await store.list_trainings(TrainingQuery(limit=9))][:2] == ["t4", "t3"]


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


async def test_everything_survives_a_reopen(open_store: OpenStore) -> None:
    first = await open_store()
    await first.insert_training(make_row(), make_event())
    warning = ProgressEvent(sequence=2, create_time=utc_now(), detail=WarningDetail(reason="R", message="é"))
    await first.save_training(make_row(), event=warning)
    await first.close()
    second = await open_store()
    try:
        assert [event.detail for event in await second.load_events("t1")][1] == warning.detail
    finally:
        await second.close()


async def test_scheduling_and_the_reason_of_a_cancel_are_read_back_equal(store: OperationsStore) -> None:
    asked = Scheduling(user="ann@x", priority=-7, retry=RetryMode.NEVER, max_retries=3)
    row = replace(make_row(), scheduling=asked)
    await store.insert_training(row, make_event())
    assert await store.find_training("t1") == row
    cancelled = replace(row, cancel_save_checkpoint=False, cancel_reason="wrong symbols")
    await store.save_training(cancelled)
    assert await store.find_training("t1") == cancelled


async def test_whole_story_of_an_attempt_is_read_back_equal(store: OperationsStore) -> None:
    await store.insert_training(make_row(), make_event())
    handed_over = make_session(trainer_id="uuid", reasons=("least load", "has a GPU"), start_time=utc_now())
    await store.save_training(make_row(), session=handed_over)
    assert await store.load_sessions(["t1"]) == {"t1": [handed_over]}
    lost = replace(
        handed_over,
        attempt=2,
        trainer="b:2",
        trainer_id="another",
        reasons=("the only one left",),
        start_time=utc_now(),
        last_sequence=7,
        end_time=utc_now(),
        outcome=LOST,
        error_reason="TRAINER_LOST",
        message="silent for 10 s",
        resumed_from_epoch=4,
        fence=Fence.PENDING,
        bars=(("EURUSD 1h", "ab"), ("EURUSD 1d", "cd")),
    )
    await store.save_training(make_row(), session=lost)
    assert await store.load_sessions(["t1"]) == {"t1": [lost]}


async def test_sessions_are_listed_by_attempt(store: OperationsStore) -> None:
    await store.insert_training(make_row(), make_event())
    for attempt in (2, 10, 1):
        await store.save_training(make_row(), session=make_session(f"t1-{attempt}", attempt=attempt))
    assert [session.attempt for session in (await store.load_sessions(["t1"]))["t1"]] == [1, 2, 10]


async def test_pages_of_a_log_join_without_gap_or_repeat(store: OperationsStore) -> None:
    await store.insert_training(make_row(), make_event())
    await store.insert_training(make_row("t2"), make_event())
    for sequence in range(2, 8):
        await store.save_training(make_row(), event=make_event(sequence))
    whole = await store.load_events("t1")
    assert [event.sequence for event in whole] == [1, 2, 3, 4, 5, 6, 7]
    pages = [await store.load_events("t1", after_sequence=after, limit=3) for after in (0, 3, 6, 7)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [event for page in pages for event in page] == whole
    assert await store.load_events("t1", after_sequence=5) == whole[5:]


async def test_fenced_sessions_are_found_until_their_trainer_has_answered(store: OperationsStore) -> None:
    for name in ("t1", "t2"):
        await store.insert_training(make_row(name), make_event())
        await store.save_training(make_row(name), session=make_session(f"{name}-1", training_id=name))
    assert await store.load_fenced_sessions() == []
    ended = replace(make_row("t1"), state=TrainingState.CANCELLED)
    fenced = make_session(fence=Fence.PENDING, outcome=LOST)
    await store.save_training(ended, session=fenced)
    assert await store.load_fenced_sessions() == [fenced]
    await store.save_session(replace(fenced, fence=Fence.DONE))
    assert await store.load_fenced_sessions() == []
    assert (await store.load_sessions(["t1"]))["t1"][0].fence is Fence.DONE


async def test_session_is_stored_alone_but_not_of_a_deleted_training(store: OperationsStore) -> None:
    await store.save_session(make_session())
    assert await store.load_sessions(["t1"]) == {"t1": []}
    await store.insert_training(make_row(), make_event())
    await store.save_session(make_session(last_sequence=1))
    await store.save_session(make_session(last_sequence=2))
    assert await store.load_sessions(["t1"]) == {"t1": [make_session(last_sequence=2)]}
    await store.delete_training("t1")
    await store.save_session(make_session(last_sequence=3))
    assert await store.load_sessions(["t1"]) == {"t1": []}


async def test_training_made_again_after_a_delete_is_stored_whole(store: OperationsStore) -> None:
    running = replace(make_row(), state=TrainingState.RUNNING)
    for _ in range(2):
        await store.insert_training(replace(running, state=TrainingState.QUEUED), make_event())
        await store.save_training(running, session=make_session())
        assert await store.find_training("t1") == running
        assert await store.load_sessions(["t1"]) == {"t1": [make_session()]}
        await store.delete_training("t1")


async def test_cancel_before_its_request_is_kept_once(store: OperationsStore) -> None:
    first = RequestCancel(request_id="r", save_checkpoint=True, reason="changed my mind", create_time=utc_now())
    assert await store.find_request_cancel("r") is None
    assert await store.keep_request_cancel(first)
    assert await store.keep_request_cancel(replace(first, save_checkpoint=False, reason="again"))
    assert await store.find_request_cancel("r") == first
    await store.insert_training(make_row(request_id="r"), make_event())
    assert not await store.keep_request_cancel(replace(first, reason="late"))
    assert await store.find_request_cancel("r") == first


async def test_cancel_of_a_request_that_has_arrived_is_not_kept(store: OperationsStore) -> None:
    await store.insert_training(make_row(request_id="r"), make_event())
    cancel = RequestCancel(request_id="r", save_checkpoint=False, reason="", create_time=utc_now())
    assert not await store.keep_request_cancel(cancel)
    assert await store.find_request_cancel("r") is None


async def test_of_a_train_and_a_cancel_at_once_at_least_one_sees_the_other(store: OperationsStore) -> None:
    async def train(name: str) -> bool:
        await store.insert_training(make_row(name, request_id=name), make_event())
        return await store.find_request_cancel(name) is not None

    async def cancel(name: str) -> bool:
        return not await store.keep_request_cancel(
            RequestCancel(request_id=name, save_checkpoint=False, reason="", create_time=utc_now())
        )

    orders = [(train, cancel), (cancel, train)] * 15
    seen = await asyncio.gather(*(call(f"t{index}") for index, order in enumerate(orders) for call in order))
    assert all(seen[first] or seen[first + 1] for first in range(0, 60, 2))


async def test_old_cancels_of_requests_are_forgotten(store: OperationsStore) -> None:
    now = utc_now()
    for hours in (1, 25, 48):
        cancel = RequestCancel(
            request_id=f"r{hours}", save_checkpoint=False, reason="", create_time=now - timedelta(hours=hours)
        )
        await store.keep_request_cancel(cancel)
    assert await store.forget_request_cancels(before=now - timedelta(hours=24)) == 2
    assert await store.find_request_cancel("r1") is not None
    assert await store.find_request_cancel("r25") is None
    assert await store.forget_request_cancels(before=now - timedelta(hours=24)) == 0


async def test_saves_of_one_group_keep_every_event_and_the_last_row(store: OperationsStore) -> None:
    for name in ("t1", "t2"):
        await store.insert_training(make_row(name), make_event())
    states = [TrainingState.RUNNING, TrainingState.RUNNING, TrainingState.UPLOADING]
    await asyncio.gather(
        *(
            store.save_training(
                replace(make_row(name), state=state),
                event=make_event(sequence, state),
                session=make_session(f"{name}-1", training_id=name, last_sequence=sequence),
            )
            for sequence, state in enumerate(states, 2)
            for name in ("t1", "t2")
        )
    )
    for name in ("t1", "t2"):
        assert [event.sequence for event in await store.load_events(name)] == [1, 2, 3, 4]
        found = await store.find_training(name)
        assert found is not None
        assert found.state is TrainingState.UPLOADING
        assert (await store.load_sessions([name]))[name][0].last_sequence == 4


async def test_of_a_group_of_saves_only_the_wrong_ones_fail(store: OperationsStore) -> None:
    for index in range(10):
        await store.insert_training(make_row(f"t{index}"), make_event())
    wrong = {3: make_event(1), 7: make_event(1)}
    outcomes = await asyncio.gather(
        *(
            store.save_training(
                replace(make_row(f"t{index}"), state=TrainingState.RUNNING), event=wrong.get(index, make_event(2))
            )
            for index in range(11)
        ),
        return_exceptions=True,
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [
        *[type(None)] * 3,
        *(WriteConflictError, type(None), type(None), type(None), WriteConflictError),
        *(type(None), type(None), TrainingNotFoundError),
    ]
    for index in range(10):
        found = await store.find_training(f"t{index}")
        assert found is not None
        assert found.state is (TrainingState.QUEUED if index in wrong else TrainingState.RUNNING)
        assert len(await store.load_events(f"t{index}")) == (1 if index in wrong else 2)
        # What failed must not have left the store believing that it was stored.
        await store.save_training(replace(make_row(f"t{index}"), state=TrainingState.RUNNING), event=make_event(3))
        found = await store.find_training(f"t{index}")
        assert found is not None
        assert found.state is TrainingState.RUNNING


async def test_calls_of_one_group_are_done_in_their_order(store: OperationsStore) -> None:
    row = make_row()
    await store.insert_training(row, make_event())
    await asyncio.gather(
        store.write_config("k", "the group of its own that the first makes"),
        store.save_training(row, session=make_session(last_sequence=1)),
        store.save_session(make_session(last_sequence=2)),
    )
    assert await store.load_sessions(["t1"]) == {"t1": [make_session(last_sequence=2)]}
    outcomes = await asyncio.gather(
        store.write_config("j", "1"),
        store.save_training(row, event=make_event(2)),
        store.delete_training("t1"),
        store.save_training(row, event=make_event(3)),
        return_exceptions=True,
    )
    *done, refused = outcomes
    assert done == [None, None, None]
    assert isinstance(refused, TrainingNotFoundError)


async def test_same_call_again_is_no_conflict(store: OperationsStore) -> None:
    row, first, second = make_row(request_id="r"), make_event(), make_event(2)
    for _ in range(2):
        await store.insert_training(row, first)
    for _ in range(2):
        await store.save_training(row, event=second)
    assert await store.load_events("t1") == [first, second]
    with pytest.raises(AlreadyExistsError):
        await store.insert_training(row, replace(first, create_time=first.create_time + timedelta(seconds=1)))


async def test_calls_after_close_are_refused(open_store: OpenStore) -> None:
    closed = await open_store()
    await closed.close()
    await closed.close()
    with pytest.raises(UnavailableError):
        await closed.write_config("k", "v")


async def test_close_commits_what_was_handed_in(open_store: OpenStore) -> None:
    first = await open_store()
    handed_in = [asyncio.ensure_future(first.write_config(f"k{index}", "v")) for index in range(50)]
    await asyncio.sleep(0)
    await first.close()
    await asyncio.gather(*handed_in)
    second = await open_store()
    try:
        assert await second.read_config("k49") == "v"
    finally:
        await second.close()
