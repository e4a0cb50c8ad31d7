"""The single writer of a training."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_service.operations.pages import check_page_size, decode_page_token, encode_page_token
from backend_service.operations.patience import Patience
from backend_service.operations.records import (
    LOST,
    Fence,
    SessionRow,
    TrainingRow,
    fold,
    summary_from_json,
    summary_to_json,
)
from backend_service.operations.training_record import TrainingRecord
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import BatchDetail, EpochDetail, ProgressEvent, ProgressSummary, StateDetail
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TRANSITIONS, TrainingState
from ktrdr_core.errors import IllegalStateError, InvalidInputError, StorageError


class Store:
    """Keeps what was saved, in order; `gate` holds saves back, `failure` refuses the next one."""

    def __init__(self) -> None:
        self.saved: list[tuple[TrainingRow, ProgressEvent | None, SessionRow | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def save_training(
        self, row: TrainingRow, *, event: ProgressEvent | None = None, session: SessionRow | None = None
    ) -> None:
        await self.gate.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.saved.append((row, event, session))


def a_record(store: Store, **kwargs: object) -> TrainingRecord:
    row = TrainingRow(
        training_id="t",
        content_digest="d",
        strategy_name="s",
        spec=TrainingSpec(strategy_yaml="name: s"),
        create_time=utc_now(),
    )
    queued = ProgressEvent(sequence=1, create_time=utc_now(), detail=StateDetail(state=TrainingState.QUEUED))
    return TrainingRecord(store, row, Patience(), events=[queued], **kwargs)  # type: ignore[arg-type]


def an_epoch(number: int) -> ProgressEvent:
    return ProgressEvent(
        create_time=utc_now(),
        attempt=1,
        overall=number / 10,
        detail=EpochDetail(
            epoch=number,
            total_epochs=9,
            train_loss=1.0,
            train_accuracy=0.5,
            val_loss=1.0,
            val_accuracy=0.5,
            learning_rate=0.1,
            rows_per_second=1.0,
        ),
    )


async def test_state_and_event_are_saved_together_and_shown_only_then() -> None:
    store = Store()
    record = a_record(store)
    store.gate.clear()
    moving = asyncio.create_task(record.move_to(TrainingState.RUNNING, "runs"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert record.state is TrainingState.QUEUED
    assert record.log.last_sequence == 1
    store.gate.set()
    await moving
    row, event, _ = store.saved[0]
    assert (row.state, row.start_time is not None, row.summary.sequence) == (TrainingState.RUNNING, True, 2)
    assert event is not None
    assert event.sequence == record.log.last_sequence == 2


async def test_failed_save_changes_nothing_and_the_next_one_works() -> None:
    store = Store()
    record = a_record(store)
    store.failure = OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        await record.move_to(TrainingState.RUNNING, "runs")
    assert (record.state, record.log.last_sequence) == (TrainingState.QUEUED, 1)
    await record.move_to(TrainingState.RUNNING, "runs")
    assert record.state is TrainingState.RUNNING


async def test_cancelled_caller_leaves_state_store_and_log_together() -> None:
    store = Store()
    ended: list[str] = []
    record = a_record(store, on_end=ended.append)
    store.gate.clear()
    moving = asyncio.create_task(record.move_to(TrainingState.CANCELLED, "no"))
    await asyncio.sleep(0)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    store.gate.set()
    assert await record.wait_ended() is TrainingState.CANCELLED
    assert record.log.is_closed
    assert (ended, len(store.saved)) == (["t"], 1)


async def test_writers_at_once_are_numbered_without_gaps_and_nothing_follows_the_end() -> None:
    store = Store()
    record = a_record(store)
    await record.move_to(TrainingState.RUNNING, "runs")
    told = await asyncio.gather(
        *(record.append(an_epoch(number)) for number in range(1, 6)),
        record.try_move_to(TrainingState.FAILED, "x", error_reason="INTERNAL"),
        record.try_move_to(TrainingState.CANCELLED, "y"),
        record.append(an_epoch(9)),
    )
    assert told == [True] * 6 + [False, False]
    events = [event for _, event, _ in store.saved if event is not None]
    assert [event.sequence for event in events] == list(range(2, 9))
    assert store.saved[-1][0].state is TrainingState.FAILED


@given(st.lists(st.sampled_from(list(TrainingState)), max_size=8))
def test_no_walk_leaves_the_table_of_states(walk: list[TrainingState]) -> None:
    async def run() -> None:
        record = a_record(Store())
        for state in walk:
            before = record.state
            refused_in = ""
            try:
                await record.move_to(state, "walk")
            except IllegalStateError as error:
                assert state not in TRANSITIONS[before]
                assert record.state is before
                refused_in = error.metadata["state"]
            else:
                assert state in TRANSITIONS[before]
                assert record.log.summary.state is record.state is state
            assert refused_in in ("", before)

    asyncio.run(run())


async def test_accepted_cancel_is_kept_for_a_restart() -> None:
    store = Store()
    record = a_record(store)
    await record.accept_cancel(reason="r", save_checkpoint=True, message="stop")
    await record.accept_cancel(reason="r", save_checkpoint=False, message="kill")
    assert record.row.cancel_save_checkpoint is False
    assert [event is not None for _, event, _ in store.saved] == [True, False]


def test_summary_survives_the_store() -> None:
    batch = BatchDetail(
        epoch=1,
        total_epochs=2,
        batch=3,
        total_batches_per_epoch=4,
        train_loss=1.0,
        train_accuracy=0.5,
        learning_rate=0.1,
        rows_per_second=1.0,
    )
    summary = fold(fold(ProgressSummary(), an_epoch(1)), ProgressEvent(create_time=utc_now(), detail=batch))
    assert summary_from_json(summary_to_json(summary)) == summary
    assert summary_from_json(summary_to_json(ProgressSummary())) == ProgressSummary()


@given(st.integers(0, 2**62))
def test_page_token_round_trip(position: int) -> None:
    assert decode_page_token(encode_page_token(position)) == position


@pytest.mark.parametrize("token", ["x", "cDE=x", "AAAA", "cC0x", "é", encode_page_token(2**63)])
def test_page_token_of_another_maker_is_refused(token: str) -> None:
    with pytest.raises(InvalidInputError, match="page_token"):
        decode_page_token(token)


def test_page_size_has_a_default_and_bounds() -> None:
    assert (check_page_size(0), check_page_size(7)) == (50, 7)
    for size in (-1, 1001):
        with pytest.raises(InvalidInputError):
            check_page_size(size)


async def test_what_is_asked_after_a_cancel_is_stored_after_it_though_nobody_waited() -> None:
    store = Store()
    record = a_record(store)
    await record.move_to(TrainingState.RUNNING, "Runs")
    store.gate.clear()

    accepting = record.accept_cancel(reason="r", save_checkpoint=False, message="Cancelling")
    ending = asyncio.create_task(record.move_to(TrainingState.CANCELLED, "gone"))
    store.gate.set()
    await asyncio.gather(accepting, ending)

    assert [row.state for row, _, _ in store.saved[1:]] == [TrainingState.CANCELLING, TrainingState.CANCELLED]


def a_session(attempt: int = 1, **fields: object) -> SessionRow:
    return SessionRow(session_id=f"t-{attempt}", training_id="t", attempt=attempt, trainer="gpu:1", **fields)  # type: ignore[arg-type]


async def test_lost_attempt_and_requeued_training_are_one_write() -> None:
    store = Store()
    record = a_record(store)
    await record.put_session(a_session())
    await record.move_to(TrainingState.RUNNING, "runs", session=a_session(last_sequence=2))
    await record.lose_session(a_session(last_sequence=3), error_reason="TRAINER_LOST", message="it is gone")
    row, event, session = store.saved[-1]
    assert event is not None
    assert session is not None
    assert (row.state, row.placement) == (TrainingState.QUEUED, None)
    assert (session.outcome, session.fence, session.last_sequence) == (LOST, Fence.PENDING, 3)
    assert isinstance(event.detail, StateDetail)
    assert (event.detail.state, event.detail.error_reason) == (TrainingState.QUEUED, "TRAINER_LOST")
    assert record.live_session is None


async def test_attempt_lost_before_it_began_leaves_the_training_queued() -> None:
    store = Store()
    record = a_record(store)
    await record.put_session(a_session())
    await record.lose_session(a_session(), error_reason="TRAINER_LOST", message="it is gone")
    assert (record.state, record.log.last_sequence) == (TrainingState.QUEUED, 1)
    assert record.sessions[0].outcome == LOST


async def test_training_that_is_being_cancelled_is_not_requeued() -> None:
    record = a_record(Store())
    await record.move_to(TrainingState.RUNNING, "runs", session=a_session())
    await record.accept_cancel(save_checkpoint=False, reason="r", message="m")
    with pytest.raises(IllegalStateError):
        await record.lose_session(a_session(), error_reason="TRAINER_LOST", message="it is gone")
    assert record.live_session is not None


async def test_epochs_an_attempt_repeats_after_its_checkpoint_are_not_told_again() -> None:
    store = Store()
    record = a_record(store)
    await record.move_to(TrainingState.RUNNING, "runs", session=a_session())
    for number in (1, 2, 3):
        await record.append(an_epoch(number), session=a_session())
    resumed = a_session(2, resumed_from_epoch=1)
    for sequence, number in enumerate((2, 3, 4), start=3):
        await record.append(an_epoch(number), session=replace(resumed, last_sequence=sequence))
    told = [event.detail.epoch for event in record.log.events if isinstance(event.detail, EpochDetail)]
    assert told == [1, 2, 3, 4]
    assert record.sessions[-1].last_sequence == 5  # what was not told is taken notice of all the same


async def test_end_of_a_training_ends_its_attempt_with_the_same_write() -> None:
    store = Store()
    record = a_record(store)
    await record.move_to(TrainingState.RUNNING, "runs", session=a_session())
    await record.move_to(TrainingState.FAILED, "NaN", error_reason="NON_FINITE_LOSS")
    session = store.saved[-1][2]
    assert session is not None
    assert (session.outcome, session.error_reason, session.message) == ("FAILED", "NON_FINITE_LOSS", "NaN")
    assert session.fence is Fence.NONE


async def test_change_waits_for_a_store_that_takes_no_writes_and_is_not_shown_before() -> None:
    store = Store()
    record = a_record(store)
    store.failure = StorageError("the disk is full")
    moving = asyncio.create_task(record.move_to(TrainingState.RUNNING, "runs"))
    await asyncio.sleep(0.01)
    assert (record.state, record.log.last_sequence) == (TrainingState.QUEUED, 1)
    await moving
    assert (record.state, record.log.last_sequence, len(store.saved)) == (TrainingState.RUNNING, 2, 1)
