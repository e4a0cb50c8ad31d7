"""The reconnecting progress stream, against a real server that misbehaves on purpose."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from ktrdr.training.v1 import training_pb2, training_service_pb2
from ktrdr_client import AsyncClient, Client
from ktrdr_client.progress_stream import ReconnectPolicy

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    CancellationError,
    IllegalStateError,
    InvalidInputError,
    KtrdrError,
    TrainingNotFoundError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.wire.to_proto import state_to_proto
from tests.kit.fake_backend import HANG, FakeBackend, Step, a_batch, a_log, serving

QUICK = ReconnectPolicy(read_timeout_s=60.0, first_delay_s=0.01, max_delay_s=0.05, give_up_after_s=120.0)


async def _collect(backend: FakeBackend, *, after: int = 0, policy: ReconnectPolicy = QUICK) -> list[ProgressEvent]:
    async with serving(backend) as address, AsyncClient(address, reconnect=policy) as client:
        return [event async for event in client.stream_progress("t1", after)]


def _sequences(events: Sequence[ProgressEvent]) -> list[int]:
    return [event.sequence for event in events if event.is_durable]


async def test_stream_yields_every_event_up_to_the_terminal_one() -> None:
    backend = FakeBackend(connections=[a_log()])
    events = await _collect(backend)
    assert _sequences(events) == list(range(1, 10))
    assert events[-1].terminal_state is TrainingState.COMPLETED
    assert events == a_log()


@pytest.mark.parametrize("cut", range(1, 9))
async def test_broken_stream_goes_on_after_the_last_sequence_seen(cut: int) -> None:
    log = a_log()
    backend = FakeBackend(connections=[[*log[:cut], UnavailableError("restarting")], log[cut:]])
    assert _sequences(await _collect(backend)) == list(range(1, 10))
    assert backend.after_sequences == [0, cut]


@pytest.mark.parametrize("seen", [0, 4])
async def test_stream_that_a_stopping_service_cuts_off_goes_on(seen: int) -> None:
    log = a_log()
    backend = FakeBackend(connections=[[*log[:seen], CancellationError("CANCELLED")], log[seen:]])
    assert _sequences(await _collect(backend)) == list(range(1, 10))
    assert backend.after_sequences == [0, seen]


async def test_repeated_events_after_a_reconnection_are_dropped() -> None:
    log = a_log()
    backend = FakeBackend(connections=[[*log[:5], UnavailableError("restarting")], log[2:]])
    assert _sequences(await _collect(backend)) == list(range(1, 10))


async def test_stale_batch_events_are_dropped_and_fresh_ones_kept() -> None:
    log = a_log()
    backend = FakeBackend(connections=[[*log[:5], a_batch(4, 1, 9), a_batch(5, 2, 1), *log[5:]]])
    batches = [event for event in await _collect(backend) if not event.is_durable]
    assert [event.sequence for event in batches] == [5]


async def test_silent_connection_is_given_up_by_the_watchdog() -> None:
    log = a_log()
    backend = FakeBackend(connections=[[*log[:4], HANG], log[4:]])
    begun = time.monotonic()
    assert _sequences(await _collect(backend, policy=replace(QUICK, read_timeout_s=1.0))) == list(range(1, 10))
    assert backend.after_sequences == [0, 4]
    assert time.monotonic() - begun >= 1.0


async def test_stream_that_ends_early_without_an_error_is_opened_again() -> None:
    log = a_log()
    backend = FakeBackend(connections=[log[:3], [], log[3:]])
    assert _sequences(await _collect(backend)) == list(range(1, 10))
    assert backend.after_sequences == [0, 3, 3]


async def test_heartbeats_keep_a_quiet_connection_alive() -> None:
    log = a_log()
    heartbeats: list[Step] = [training_service_pb2.StreamProgressResponse() for _ in range(5)]
    backend = FakeBackend(connections=[[*log[:4], *heartbeats, *log[4:]]])
    assert _sequences(await _collect(backend)) == list(range(1, 10))
    assert backend.after_sequences == [0]


async def test_watching_an_ended_training_from_its_last_sequence_ends_at_once() -> None:
    ended = training_service_pb2.StreamProgressResponse(
        training=training_pb2.Training(training_id="t1", state=state_to_proto(TrainingState.COMPLETED), last_sequence=9)
    )
    backend = FakeBackend(connections=[[ended]])
    assert await _collect(backend, after=9) == []
    assert backend.after_sequences == [9]


async def test_answer_that_no_retry_can_help_is_raised_as_its_class() -> None:
    backend = FakeBackend(connections=[[TrainingNotFoundError("no training t1", metadata={"training_id": "t1"})]])
    with pytest.raises(TrainingNotFoundError) as caught:
        await _collect(backend)
    assert caught.value.metadata == {"training_id": "t1"}
    assert backend.after_sequences == [0]


def _snapshot(state: TrainingState, last_sequence: int) -> training_service_pb2.StreamProgressResponse:
    training = training_pb2.Training(training_id="t1", state=state_to_proto(state), last_sequence=last_sequence)
    return training_service_pb2.StreamProgressResponse(training=training)


@pytest.mark.parametrize("state", [TrainingState.RUNNING, TrainingState.COMPLETED])
async def test_history_that_is_shorter_than_what_was_seen_is_an_error_not_a_loop(state: TrainingState) -> None:
    """A backend that was restored from a backup: everything it will ever say is numbered below what was seen."""
    log = a_log()
    backend = FakeBackend(connections=[[*log[:6], UnavailableError("restarting")], [_snapshot(state, 4), *log[2:4]]])
    with pytest.raises(
        IllegalStateError, match=r"sequence 6 of training t1 was seen, but its history ends at 4.*again"
    ):
        await _collect(backend)
    assert backend.after_sequences == [0, 6]


async def test_refused_sequence_after_a_reconnection_says_that_history_was_lost() -> None:
    refusal = InvalidInputError("after_sequence must be 0 to 4, was 6; give the last you saw", field="after_sequence")
    backend = FakeBackend(connections=[[*a_log()[:6], UnavailableError("restarting")], [refusal]])
    with pytest.raises(IllegalStateError, match="restored from an older state; watch again from the beginning"):
        await _collect(backend)


async def test_refused_sequence_that_the_caller_gave_is_the_services_own_answer() -> None:
    refusal = InvalidInputError("after_sequence must be 0 to 4, was 6; give the last you saw", field="after_sequence")
    with pytest.raises(InvalidInputError, match="must be 0 to 4, was 6"):
        await _collect(FakeBackend(connections=[[refusal]]), after=6)


async def test_snapshot_as_old_as_what_was_seen_goes_on() -> None:
    log = a_log()
    backend = FakeBackend(
        connections=[[*log[:4], UnavailableError("restarting")], [_snapshot(TrainingState.RUNNING, 4), *log[4:]]]
    )
    assert _sequences(await _collect(backend)) == list(range(1, 10))


async def test_every_loss_and_every_new_connection_is_told() -> None:
    log = a_log()
    told: list[str] = []
    backend = FakeBackend(
        connections=[
            [*log[:2], UnavailableError("restarting")],
            [UnavailableError("still restarting")],
            [training_service_pb2.StreamProgressResponse(), *log[2:4], UnavailableError("again")],
            log[4:],
        ]
    )
    async with serving(backend) as address, AsyncClient(address, reconnect=QUICK) as client:
        events = client.stream_progress(
            "t1", on_reconnect=lambda problem: told.append(problem.message), on_connect=lambda: told.append("connected")
        )
        assert _sequences([event async for event in events]) == list(range(1, 10))
    assert told == ["connected", "restarting", "still restarting", "connected", "again", "connected"]


async def test_long_outage_is_told_at_every_try_and_outlived() -> None:
    """The limit is on silence since the last response, and a service that is down for most of it is waited for."""
    log = a_log()
    told: list[KtrdrError] = []
    outage: list[Sequence[Step]] = [[UnavailableError("down")]] * 40
    backend = FakeBackend(connections=[[*log[:4], UnavailableError("down")], *outage, log[4:]])
    async with serving(backend) as address, AsyncClient(address, reconnect=QUICK) as client:
        events = [event async for event in client.stream_progress("t1", on_reconnect=told.append)]
    assert _sequences(events) == list(range(1, 10))
    assert len(told) == 41
    assert set(backend.after_sequences[1:]) == {4}


async def test_stream_gives_up_after_the_limit_and_says_so() -> None:
    backend = FakeBackend(connections=[[UnavailableError("restarting")]])
    policy = replace(QUICK, give_up_after_s=1.0)
    with pytest.raises(UnreachableError, match="nothing was heard of training t1"):
        await _collect(backend, policy=policy)
    assert len(backend.after_sequences) > 3


async def test_stream_survives_a_restart_of_the_server_on_the_same_port() -> None:
    log = a_log()
    problems: list[KtrdrError] = []
    first = FakeBackend(connections=[[*log[:4], HANG]])
    async with serving(first) as address:
        client = AsyncClient(address, reconnect=QUICK)
        stream = client.stream_progress("t1", on_reconnect=problems.append)
        seen = [await anext(stream) for _ in range(4)]
    second = FakeBackend(connections=[log[4:]])
    async with serving(second, port=int(address.rpartition(":")[2])):
        seen += [event async for event in stream]
    await client.close()
    assert _sequences(seen) == list(range(1, 10))
    assert second.after_sequences[0] == 4
    assert problems


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    policy = ReconnectPolicy(first_delay_s=0.1, max_delay_s=1.0)
    for attempt, full in enumerate([0.1, 0.2, 0.4, 0.8, 1.0, 1.0]):
        delays = [policy.delay_s(attempt) for _ in range(50)]
        assert all(full / 2 <= delay <= full for delay in delays)
    assert policy.delay_s(10_000) <= 1.0


async def test_sync_client_streams_and_can_stop_half_way() -> None:
    import asyncio

    backend = FakeBackend(connections=[[*a_log()[:4], HANG], a_log()])
    async with serving(backend) as address:

        def use() -> tuple[list[int], list[int]]:
            with Client(address, reconnect=QUICK) as client:
                half = _sequences(list(itertools.islice(client.stream_progress("t1"), 3)))
                return half, _sequences(list(client.stream_progress("t1")))

        half, whole = await asyncio.to_thread(use)
    assert half == [1, 2, 3]
    assert whole == list(range(1, 10))
