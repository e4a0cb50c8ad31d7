"""Trainers are told which bars to train on, get them from the backend, and changed bars are told of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ktrdr.training.v1 import training_service_pb2
from ktrdr.training.v1 import training_state_pb2 as states
from ktrdr.training.v1.data_mode_pb2 import DATA_MODE_LOCAL

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.progress import BARS_CHANGED, StateDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    CorruptDataError,
    InvalidInputError,
    KtrdrError,
    SeriesChangedError,
    SeriesNotFoundError,
    StorageError,
    UnavailableError,
)
from ktrdr_core.execution.engine import SessionOutcome
from ktrdr_core.storage.artifact import ModelArtifact
from tests.kit.artifacts import make_artifact
from tests.kit.backend import (
    HOST,
    LOCAL,
    Backend,
    FakeTrainer,
    a_spec,
    become,
    event,
    refusal,
    running_backend,
    running_trainer,
)
from tests.kit.bar_source import HOURS_OF_YEARS, store_bars
from tests.kit.builders import make_bars
from tests.kit.eventually import eventually
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.trainer_house import House, house

LATER_BARS = make_bars(HOURS_OF_YEARS + 24)
BARS = LATER_BARS.head(HOURS_OF_YEARS)
CANCEL_LIMIT_S = 1.0
LOST_S = 0.5


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The backend's store, with three years of bars."""
    store_bars(tmp_path / "bars", BARS)
    return tmp_path / "bars"


@asynccontextmanager
async def a_house(tmp_path: Path, name: str = "trainer", **settings: Any) -> AsyncIterator[tuple[House, str]]:
    """Run a real trainer that has no bars of its own."""
    (tmp_path / name / "bars").mkdir(parents=True, exist_ok=True)
    async with house(tmp_path / name, **settings) as trainer:
        yield trainer, f"127.0.0.1:{trainer.app.port}"


async def warnings_of(backend: Backend, training_id: str, reason: str = BARS_CHANGED) -> list[str]:
    request = training_service_pb2.ListTrainingEventsRequest(training_id=training_id)
    events = (await backend.trainings.ListTrainingEvents(request)).events
    return [each.warning.message for each in events if each.warning.reason == reason]


def loaded(house: House) -> str:
    return DirectoryBarStore(house.worker.job.bars_dir).load("EURUSD", "1h").digest()


async def test_trainer_without_bars_trains_on_those_of_the_backend(tmp_path: Path, stored: Path) -> None:
    async with (
        a_house(tmp_path) as (trainer, address),
        running_backend(tmp_path, trainers=(address,)) as backend,
    ):
        await backend.until(await backend.train(a_spec(HOST)), "RUNNING")
        assert loaded(trainer) == BARS.digest()


async def test_higher_timeframes_go_along_where_the_backend_has_them(tmp_path: Path, stored: Path) -> None:
    store_bars(stored, make_bars(HOURS_OF_YEARS // 24, timeframe="1d"))
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        spec = a_spec(HOST, timeframes=["1h", "4h", "1d"])
        await backend.until(await backend.train(spec), "RUNNING")
        assert [(one.symbol, one.timeframe) for one in trainer.only.request.series] == [
            ("EURUSD", "1h"),
            ("EURUSD", "1d"),
        ]


async def test_warm_trainer_is_sent_nothing_and_damaged_bars_are_sent_again(tmp_path: Path, stored: Path) -> None:
    async with (
        TcpProxy() as proxy,
        a_house(tmp_path, slots=3) as (trainer, address),
        running_backend(tmp_path, trainers=(address,), advertise_address=proxy.address) as backend,
    ):
        proxy.target = f"127.0.0.1:{backend.app.port}"
        size_bytes = sum(path.stat().st_size for path in (stored / "EURUSD_1h").glob("*.parquet"))

        await backend.until(await backend.train(a_spec(HOST)), "RUNNING")
        cold = proxy.num_bytes
        assert cold > size_bytes
        await backend.until(await backend.train(a_spec(HOST)), "RUNNING")
        assert proxy.num_bytes == cold

        damaged = max((tmp_path / "trainer" / "state" / "trainer" / "bars").iterdir(), key=lambda path: path.name)
        damaged.write_bytes(b"not bars")
        await backend.until(await backend.train(a_spec(HOST)), "RUNNING")
        assert loaded(trainer) == BARS.digest()
        assert cold < proxy.num_bytes < cold + 0.6 * size_bytes


async def test_broken_link_in_the_middle_of_a_fetch_costs_no_attempt(tmp_path: Path) -> None:
    bars = make_bars(150_000, timeframe="1m")
    store_bars(tmp_path / "bars", bars)
    async with (
        TcpProxy() as proxy,
        a_house(tmp_path) as (trainer, address),
        running_backend(tmp_path, trainers=(address,), advertise_address=proxy.address) as backend,
    ):
        proxy.target = f"127.0.0.1:{backend.app.port}"
        await proxy.slow(bytes_per_s=3e6)
        training_id = await backend.train(a_spec(HOST, timeframes=["1m"]))
        for share in (0.3, 0.6):
            await eventually(lambda share=share: proxy.num_bytes > share * 5e6)  # type: ignore[misc]
            await proxy.cut()
            await proxy.restore()
            await proxy.slow(bytes_per_s=3e6)
        training = await backend.until(training_id, "RUNNING")
        assert [session.attempt for session in training.sessions] == [1]
        assert DirectoryBarStore(trainer.worker.job.bars_dir).load("EURUSD", "1m").digest() == bars.digest()


async def test_cancel_while_bars_are_fetched_ends_at_once_and_leaves_nothing(tmp_path: Path, stored: Path) -> None:
    async with (
        TcpProxy() as proxy,
        a_house(tmp_path) as (trainer, address),
        running_backend(tmp_path, trainers=(address,), advertise_address=proxy.address) as backend,
    ):
        proxy.target = f"127.0.0.1:{backend.app.port}"
        await proxy.slow(bytes_per_s=200_000)
        training_id = await backend.train(a_spec(HOST))
        await eventually(lambda: proxy.num_bytes > 10_000)

        begin_s = time.monotonic()
        answer = await backend.cancel(training_id)

        assert time.monotonic() - begin_s < CANCEL_LIMIT_S
        assert answer.training.state == states.TRAINING_STATE_CANCELLED
        await eventually(lambda: proxy.num_connections == 0, what="the end of the fetch")
        assert trainer.engine.sessions == []
        assert list((tmp_path / "trainer" / "state" / "trainer" / "sessions").iterdir()) == []


async def test_bars_that_are_replaced_while_they_are_fetched_are_named_anew(tmp_path: Path, stored: Path) -> None:
    other = make_bars(HOURS_OF_YEARS, seed=8)

    async def replace_bars() -> None:
        trainer.on_prepare = prepare_well
        store_bars(stored, other)
        raise SeriesChangedError("other bars")

    async def prepare_well() -> None:
        pass

    trainer = FakeTrainer(tmp_path)
    trainer.lacks_bars = True
    trainer.on_prepare = replace_bars
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        (series,) = trainer.only.request.series
        assert series.sha256.hex() == other.digest()
        assert len(trainer.prepared) == 2
        assert trainer.prepared[0].source == f"127.0.0.1:{backend.app.port}"
        assert await warnings_of(backend, training_id) == []  # it had not begun


async def test_bars_that_are_replaced_again_and_again_fail_the_training(tmp_path: Path, stored: Path) -> None:
    async def change() -> None:
        raise SeriesChangedError("other bars")

    trainer = FakeTrainer(tmp_path)
    trainer.lacks_bars, trainer.on_prepare = True, change
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training = await backend.until(await backend.train(a_spec(HOST)), "FAILED")
        assert training.error.reason == "SERIES_CHANGED"
        assert len(trainer.prepared) == 3


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError("the bars are larger than the cache", field="series"),
        UnavailableError("the bars cannot be fetched from here"),
        CorruptDataError("broken"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_trainer_that_cannot_have_the_bars_hands_the_training_to_another(
    tmp_path: Path, stored: Path, error: KtrdrError
) -> None:
    async def refuse() -> None:
        raise error

    poor, rich = FakeTrainer(tmp_path / "poor", num_slots=9), FakeTrainer(tmp_path / "rich")
    poor.lacks_bars, poor.on_prepare = True, refuse
    async with (
        running_trainer(poor) as poor_address,
        running_trainer(rich) as rich_address,
        running_backend(tmp_path, trainers=(poor_address, rich_address), trainer_lost_s=LOST_S) as backend,
    ):
        training = await backend.until(await backend.train(a_spec(HOST)), "RUNNING")
        (session,) = training.sessions
        assert (session.trainer, session.attempt) == (rich_address, 1)
        assert any("lacks bars" in reason for reason in session.reasons)
        assert poor.prepared


async def test_bars_larger_than_the_only_cache_fail_the_training_with_the_way_out(tmp_path: Path, stored: Path) -> None:
    async with (
        a_house(tmp_path, bar_cache_bytes=1_000) as (_, address),
        running_backend(tmp_path, trainers=(address,)) as backend,
    ):
        training = await backend.until(await backend.train(a_spec(HOST)), "FAILED")
        assert "--bar-cache-bytes" in training.error.message


async def test_only_trainer_that_cannot_reach_the_backend_is_tried_again_then_fails_with_its_address(
    tmp_path: Path, stored: Path
) -> None:
    async with (
        a_house(tmp_path) as (_, address),
        running_backend(
            tmp_path, trainers=(address,), advertise_address="127.0.0.1:1", trainer_lost_s=LOST_S
        ) as backend,
    ):
        training_id = await backend.train(a_spec(HOST), scheduling=no_retry())
        training = await backend.until(training_id, "FAILED")
        assert "127.0.0.1:1" in training.error.message
        assert "--advertise-address" in training.error.message


def no_retry() -> Any:
    from ktrdr.training.v1 import retry_mode_pb2
    from ktrdr.training.v1.scheduling_pb2 import RetryPolicy, Scheduling

    return Scheduling(retry_policy=RetryPolicy(mode=retry_mode_pb2.RETRY_MODE_NEVER))


async def test_trainer_that_never_keeps_its_bars_is_not_asked_for_ever(tmp_path: Path, stored: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.lacks_bars = True

    async def forget() -> None:
        await asyncio.sleep(0)
        trainer.bars = ForgetfulSet()

    trainer.on_prepare = forget
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training = await backend.until(await backend.train(a_spec(HOST)), "FAILED")
        assert training.error.reason == "BARS_MISSING"
        assert len(trainer.prepared) == 3


class ForgetfulSet(set[bytes]):
    def __ior__(self, other: object) -> ForgetfulSet:  # type: ignore[override]
        return self


async def test_full_disk_of_the_cache_is_a_lost_attempt(tmp_path: Path, stored: Path) -> None:
    async def refuse() -> None:
        raise StorageError("no space")

    trainer = FakeTrainer(tmp_path)
    trainer.lacks_bars, trainer.on_prepare = True, refuse
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))

        async def lost() -> bool:
            sessions = (await backend.get(training_id)).sessions
            return bool(sessions) and sessions[0].outcome == "LOST"

        await become(lost)
        assert (await backend.get(training_id)).sessions[0].error_reason == "STORAGE_UNAVAILABLE"
        await backend.cancel(training_id)


async def test_bars_of_the_backend_are_asked_of_nobody_else(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        assert isinstance(await refusal(backend.train(a_spec(HOST, symbols=["XAUUSD"]))), SeriesNotFoundError)
        local = a_spec(HOST, symbols=["XAUUSD"], data_mode=DATA_MODE_LOCAL)
        await backend.until(await backend.train(local), "RUNNING")
        assert not trainer.only.request.series


async def test_local_training_reads_the_backends_store(tmp_path: Path, stored: Path) -> None:
    async with running_backend(tmp_path) as backend:
        await backend.until(await backend.train(a_spec(LOCAL)), "RUNNING")
        assert backend.engine.started[0].job.bars_dir == stored


def an_artifact(digest: str, *, end: str = "2018-06-26", name: str = "small") -> ModelArtifact:
    made = make_artifact(name=name)
    data_config = {
        **made.config["data_config"],
        "start_date": "2017-01-01",
        "end_date": end,
        "bars": {"EURUSD": [{"timeframe": "1h", "num_bars": 1, "sha256": digest}]},
    }
    return replace(made, config={**made.config, "data_config": data_config})


async def test_model_on_other_bars_than_an_earlier_version_of_its_name_says_so(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:

        async def warnings_of_model(made: ModelArtifact) -> list[str]:
            training_id = await backend.train(a_spec(HOST))
            await eventually(lambda: f"{training_id}-1" in trainer.sessions)
            await trainer.finish(trainer.sessions[f"{training_id}-1"], made)
            await backend.until(training_id, "COMPLETED")
            return await warnings_of(backend, training_id)

        assert await warnings_of_model(an_artifact("a")) == []
        assert await warnings_of_model(an_artifact("a")) == []
        assert await warnings_of_model(an_artifact("b", end="2018-06-27")) == []  # other days have other bars
        assert await warnings_of_model(an_artifact("b", name="other")) == []
        (message,) = await warnings_of_model(an_artifact("c"))
        assert "EURUSD 1h from 2017-01-01 to 2018-06-26" in message
        assert "small/EURUSD_1h_v2 " in message
        assert await warnings_of_model(an_artifact("c")) == []


async def test_local_model_on_other_bars_says_so_too(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        for number, digest in enumerate(("a", "b")):
            training_id = await backend.train(a_spec(LOCAL))
            await eventually(lambda number=number: len(backend.engine.started) > number)  # type: ignore[misc]
            backend.engine.started[number].finish(an_artifact(digest))
            await backend.until(training_id, "COMPLETED")
        (message,) = await warnings_of(backend, training_id)
        assert "small/EURUSD_1h_v1 " in message


async def test_next_local_attempt_on_changed_bars_says_so(tmp_path: Path, stored: Path) -> None:
    async with running_backend(tmp_path) as backend:
        training_id = await backend.train(a_spec(LOCAL))
        await backend.until(training_id, "RUNNING")
        store_bars(stored, make_bars(HOURS_OF_YEARS, seed=8))
        lost = SessionOutcome(state=TrainingState.FAILED, message="restarted", error_reason="TRAINER_LOST")
        backend.engine.started[0].end(lost)
        await eventually(lambda: len(backend.engine.started) == 2, what="the next attempt")
        (message,) = await warnings_of(backend, training_id)
        assert "EURUSD 1h" in message


async def test_local_training_goes_on_where_its_bars_cannot_be_kept_in_parts(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "bar-parts").write_text("in the way")
    async with running_backend(tmp_path) as backend:
        await backend.until(await backend.train(a_spec(LOCAL)), "RUNNING")


async def lose(trainer: FakeTrainer, session_id: str) -> None:
    """End a session as a restarted trainer does."""
    await trainer.sessions[session_id].log.append(
        event(StateDetail(state=TrainingState.FAILED, message="restarted", error_reason="TRAINER_LOST"))
    )


@pytest.mark.parametrize(
    ("change", "dates", "warns"),
    [
        (lambda store: store_bars(store, make_bars(HOURS_OF_YEARS, seed=8)), {}, True),
        (lambda store: store_bars(store, LATER_BARS), {}, True),
        (lambda store: store_bars(store, LATER_BARS), {"end_time": 1_530_000_000}, False),
        (lambda store: None, {}, False),
    ],
    ids=["other bars", "more bars", "more bars after the range", "the same bars"],
)
async def test_next_attempt_on_changed_bars_says_so_also_after_a_restart(
    tmp_path: Path, stored: Path, change: Callable[[Path], object], dates: dict[str, int], warns: bool
) -> None:
    trainer = FakeTrainer(tmp_path)
    spec = a_spec(HOST)
    for name, seconds in dates.items():
        getattr(spec, name).FromSeconds(seconds)
    async with running_trainer(trainer) as address:
        async with running_backend(tmp_path, trainers=(address,)) as backend:
            training_id = await backend.train(spec)
            await backend.until(training_id, "RUNNING")
        change(stored)
        async with running_backend(tmp_path, trainers=(address,)) as backend:
            await lose(trainer, f"{training_id}-1")
            await eventually(lambda: f"{training_id}-2" in trainer.sessions, what="the next attempt")
            found = await warnings_of(backend, training_id)
    assert [("EURUSD 1h" in text, "attempt 1" in text) for text in found] == [(True, True)] * warns
