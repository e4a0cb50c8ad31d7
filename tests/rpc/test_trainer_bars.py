"""A trainer fetches what a session trains on from the backend, once, whole, and before the session begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.data.v1.series_pb2 import Series, SeriesPart
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states
from ktrdr.training.v1.data_mode_pb2 import DATA_MODE_BACKEND
from ktrdr_client.async_client import AsyncClient
from ktrdr_client.trainer_client import AsyncTrainerClient

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    BarsMissingError,
    DrainingError,
    InvalidInputError,
    InvalidSpecError,
    KtrdrError,
    PermissionDeniedError,
    SeriesChangedError,
    SeriesNotFoundError,
    TooFewBarsError,
    UnauthenticatedError,
    UnavailableError,
)
from ktrdr_core.execution.engine import SessionOutcome
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.bar_source import HOURS_OF_YEARS, BarSource, bar_source, store_bars
from tests.kit.builders import make_bars, strategy_text
from tests.kit.eventually import eventually
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.trainer_house import House, house, refusal, train_request

BARS = make_bars(HOURS_OF_YEARS)
NUM_MINUTES = 150_000
"""So many bars of one year are a part of several messages."""
LIMIT_S = 1.0


@pytest.fixture
async def trainer(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as served:
        yield served


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[tuple[BarSource, str]]:
    store_bars(tmp_path / "store", BARS)
    async with bar_source(tmp_path / "store", tmp_path / "source") as served:
        yield served


def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "state" / "trainer" / "bars"


def session_bars(tmp_path: Path, session_id: str = "s1") -> Path:
    return tmp_path / "state" / "trainer" / "sessions" / session_id / "bars"


def size_of(*series: Series) -> int:
    return sum(part.size_bytes for each in series for part in each.parts)


async def prepare(trainer: House, source: str, *series: Series) -> list[pb.PrepareBarsResponse]:
    return [answer async for answer in trainer.stub.PrepareBars(pb.PrepareBarsRequest(series=series, source=source))]


async def preparing_fails(trainer: House, source: str, *series: Series) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await prepare(trainer, source, *series)
    return from_rpc_error(caught.value)


def request_of(*series: Series, session_id: str = "s1") -> pb.TrainRequest:
    request = train_request(session_id, data_mode=DATA_MODE_BACKEND)
    request.series.extend(series)
    return request


def loaded(bars_dir: Path, timeframe: str = "1h") -> str:
    return DirectoryBarStore(bars_dir).load("EURUSD", timeframe).digest()


async def test_session_trains_on_the_backends_bars(
    trainer: House, source: tuple[BarSource, str], tmp_path: Path
) -> None:
    servicer, address = source
    series = await servicer.series()
    answers = await prepare(trainer, address, series)
    assert (answers[-1].ready_size_bytes, answers[-1].total_size_bytes) == (size_of(series), size_of(series))

    await trainer.stub.Train(request_of(series))

    assert trainer.worker.job.bars_dir == session_bars(tmp_path)
    assert loaded(session_bars(tmp_path)) == BARS.digest()
    assert loaded(tmp_path / "bars") != BARS.digest()
    assert len(servicer.asked) == len(series.parts) == 3


async def test_bars_are_there_for_the_next_session_and_gone_with_each(
    trainer: House, source: tuple[BarSource, str], tmp_path: Path
) -> None:
    servicer, address = source
    series = await servicer.series()
    await prepare(trainer, address, series)
    await trainer.stub.Train(request_of(series))
    await trainer.stub.Train(request_of(series, session_id="s2"))
    await prepare(trainer, address, series)
    assert len(servicer.asked) == 3

    trainer.engine.sessions[0].end(SessionOutcome(state=TrainingState.FAILED, message="broke", error_reason="INTERNAL"))
    await trainer.until(states.TRAINING_STATE_FAILED)

    await eventually(lambda: not session_bars(tmp_path).exists())
    assert loaded(session_bars(tmp_path, "s2")) == BARS.digest()


async def test_train_without_the_bars_says_so_and_leaves_nothing(
    trainer: House, source: tuple[BarSource, str], tmp_path: Path
) -> None:
    series = await source[0].series()
    error = await refusal(trainer.stub.Train(request_of(series)))
    assert isinstance(error, BarsMissingError)
    assert "EURUSD 1h" in error.message
    assert trainer.engine.sessions == []
    assert list((tmp_path / "state" / "trainer" / "sessions").iterdir()) == []


async def test_train_that_names_no_bars_is_refused(trainer: House) -> None:
    error = await refusal(trainer.stub.Train(request_of()))
    assert isinstance(error, InvalidSpecError)
    assert "local" in error.message


async def test_bars_that_break_a_rule_of_the_training_are_refused_and_leave_nothing(
    trainer: House, tmp_path: Path
) -> None:
    store_bars(tmp_path / "store", make_bars(50))
    async with bar_source(tmp_path / "store", tmp_path / "source") as (servicer, address):
        series = await servicer.series()
        await prepare(trainer, address, series)
        assert isinstance(await refusal(trainer.stub.Train(request_of(series))), TooFewBarsError)
    assert list((tmp_path / "state" / "trainer" / "sessions").iterdir()) == []


async def test_spec_alone_is_validated_without_bars(trainer: House) -> None:
    request = request_of()
    request.validate_only = True
    request.spec.symbols.append("NOBODY")
    await trainer.stub.Train(request)
    request.spec.epochs = -1
    assert isinstance(await refusal(trainer.stub.Train(request)), InvalidSpecError)


async def test_damaged_bars_are_missing_and_only_they_are_fetched_again(
    trainer: House, source: tuple[BarSource, str], tmp_path: Path
) -> None:
    servicer, address = source
    series = await servicer.series()
    await prepare(trainer, address, series)
    path = cache_dir(tmp_path) / f"{series.parts[1].sha256.hex()}.parquet"
    await asyncio.to_thread(damage, path)

    assert isinstance(await refusal(trainer.stub.Train(request_of(series))), BarsMissingError)
    await prepare(trainer, address, series)
    await trainer.stub.Train(request_of(series))

    assert len(servicer.asked) == 4
    assert loaded(session_bars(tmp_path)) == BARS.digest()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_bars_of_a_running_session_are_its_own(
    trainer: House, source: tuple[BarSource, str], tmp_path: Path
) -> None:
    servicer, address = source
    series = await servicer.series()
    await prepare(trainer, address, series)
    await trainer.stub.Train(request_of(series))
    for path in cache_dir(tmp_path).iterdir():
        path.unlink()
    assert loaded(session_bars(tmp_path)) == BARS.digest()


async def test_two_that_want_the_same_bars_have_them_sent_once(trainer: House, source: tuple[BarSource, str]) -> None:
    servicer, address = source
    series = await servicer.series()
    servicer.may_give.clear()
    both = [asyncio.create_task(prepare(trainer, address, series)) for _ in range(2)]
    await eventually(lambda: servicer.num_open == 3)
    servicer.may_give.set()
    for answers in await asyncio.gather(*both):
        assert answers[-1].ready_size_bytes == size_of(series)
    assert len(servicer.asked) == 3


async def test_cancelled_fetch_ends_at_once_and_another_takes_over(
    trainer: House, source: tuple[BarSource, str]
) -> None:
    servicer, address = source
    series = await servicer.series()
    servicer.may_give.clear()
    first = trainer.stub.PrepareBars(pb.PrepareBarsRequest(series=[series], source=address))
    await eventually(lambda: servicer.num_open == 3)

    begin_s = time.monotonic()
    first.cancel()
    await eventually(lambda: servicer.num_open == 0)
    assert time.monotonic() - begin_s < LIMIT_S

    first = trainer.stub.PrepareBars(pb.PrepareBarsRequest(series=[series], source=address))
    await eventually(lambda: servicer.num_open == 3)
    second = asyncio.create_task(prepare(trainer, address, series))
    first.cancel()
    servicer.may_give.set()
    assert (await second)[-1].ready_size_bytes == size_of(series)


async def test_broken_fetch_goes_on_where_it_broke(trainer: House, tmp_path: Path) -> None:
    bars = make_bars(NUM_MINUTES, timeframe="1m")
    store_bars(tmp_path / "store", bars)
    async with bar_source(tmp_path / "store", tmp_path / "source") as (servicer, address), TcpProxy(address) as proxy:
        series = await servicer.series("EURUSD", "1m")
        assert len(series.parts) == 1
        await proxy.slow(bytes_per_s=4e6)
        fetching = asyncio.create_task(prepare(trainer, proxy.address, series))
        await eventually(lambda: proxy.num_bytes > size_of(series) / 2)
        await proxy.cut()
        await proxy.restore()
        assert (await fetching)[-1].ready_size_bytes == size_of(series)
        offsets = [offset for _, _, offset in servicer.asked]
        assert offsets[0] == 0
        assert max(offsets) > 0
        assert proxy.num_bytes < 1.6 * size_of(series)


async def test_what_arrived_of_a_cancelled_fetch_is_not_sent_again(trainer: House, tmp_path: Path) -> None:
    bars = make_bars(NUM_MINUTES, timeframe="1m")
    store_bars(tmp_path / "store", bars)
    async with bar_source(tmp_path / "store", tmp_path / "source") as (servicer, address), TcpProxy(address) as proxy:
        series = await servicer.series("EURUSD", "1m")
        await proxy.slow(bytes_per_s=4e6)
        call = trainer.stub.PrepareBars(pb.PrepareBarsRequest(series=[series], source=proxy.address))
        ready = 0
        while not ready:
            answer = await call.read()
            assert isinstance(answer, pb.PrepareBarsResponse)
            ready = answer.ready_size_bytes
        call.cancel()
        await eventually(lambda: servicer.num_open == 0)
        await prepare(trainer, address, series)
        assert servicer.asked[-1][2] >= ready


async def test_many_small_parts_arrive_side_by_side(trainer: House, tmp_path: Path) -> None:
    bars = make_bars(20_000, timeframe="1d")  # 55 years
    store_bars(tmp_path / "store", bars)
    async with bar_source(tmp_path / "store", tmp_path / "source") as (servicer, address):
        series = await servicer.series("EURUSD", "1d")
        answers = await prepare(trainer, address, series)
        assert answers[-1].ready_size_bytes == size_of(series)
    assert len(list(cache_dir(tmp_path).iterdir())) == len(series.parts) > 50


async def test_bars_that_were_replaced_meanwhile_are_told_of(
    trainer: House, source: tuple[BarSource, str], tmp_path: Path
) -> None:
    servicer, address = source
    series = await servicer.series()
    store_bars(tmp_path / "store", make_bars(HOURS_OF_YEARS, seed=8))
    assert isinstance(await preparing_fails(trainer, address, series), SeriesChangedError)
    await prepare(trainer, address, await servicer.series())


async def test_series_that_is_gone_has_changed(trainer: House, source: tuple[BarSource, str], tmp_path: Path) -> None:
    servicer, address = source
    series = await servicer.series()
    for path in (tmp_path / "store" / "EURUSD_1h").iterdir():
        path.unlink()
    with pytest.raises(SeriesNotFoundError):
        await servicer.series()
    assert isinstance(await preparing_fails(trainer, address, series), SeriesChangedError)


async def test_source_that_cannot_be_reached_is_named(trainer: House, source: tuple[BarSource, str]) -> None:
    series = await source[0].series()
    error = await preparing_fails(trainer, "127.0.0.1:1", series)
    assert type(error) is UnavailableError
    assert "127.0.0.1:1" in error.message
    assert "--advertise-address" in error.message


@pytest.mark.parametrize("refusal_class", [UnauthenticatedError, PermissionDeniedError])
async def test_source_that_does_not_take_the_token_is_one_that_may_do_so_later(
    trainer: House, source: tuple[BarSource, str], refusal_class: type[KtrdrError]
) -> None:
    servicer, address = source
    servicer.refusal = refusal_class("the token is not known")
    error = await preparing_fails(trainer, address, await servicer.series())
    assert type(error) is UnavailableError
    assert "the token is not known" in error.message


async def test_bars_larger_than_the_cache_are_refused(tmp_path: Path, source: tuple[BarSource, str]) -> None:
    series = await source[0].series()
    async with house(tmp_path, bar_cache_bytes=size_of(series) - 1) as trainer:
        error = await preparing_fails(trainer, source[1], series)
    assert isinstance(error, InvalidInputError)
    assert "--bar-cache-bytes" in error.message
    assert source[0].asked == []


async def test_draining_trainer_fetches_nothing_more(trainer: House, source: tuple[BarSource, str]) -> None:
    servicer, address = source
    series = await servicer.series()
    servicer.may_give.clear()
    fetching = asyncio.create_task(preparing_fails(trainer, address, series))
    await eventually(lambda: servicer.num_open == 3)
    trainer.app.orchestrator.begin_draining()
    assert isinstance(await fetching, DrainingError)
    await eventually(lambda: servicer.num_open == 0)
    assert isinstance(await preparing_fails(trainer, address, series), DrainingError)


async def test_restarted_trainer_has_its_bars_and_none_half(tmp_path: Path, source: tuple[BarSource, str]) -> None:
    servicer, address = source
    series = await servicer.series()
    async with house(tmp_path) as trainer:
        await prepare(trainer, address, series)
    (cache_dir(tmp_path) / "0.parquet.part").write_bytes(b"half")
    async with house(tmp_path) as trainer:
        await trainer.stub.Train(request_of(series))
        assert loaded(session_bars(tmp_path)) == BARS.digest()
    assert len(servicer.asked) == 3
    assert len(list(cache_dir(tmp_path).iterdir())) == 3


def a_part(**fields: Any) -> SeriesPart:
    values: dict[str, Any] = {
        "start_time": Timestamp(seconds=1_500_000_000),
        "end_time": Timestamp(seconds=1_500_003_600),
        "num_bars": 2,
        "size_bytes": 10,
        "sha256": bytes(32),
    }
    return SeriesPart(**values | fields)


@pytest.mark.parametrize(
    ("series", "text"),
    [
        ([], "series is empty"),
        ([Series(symbol="../x", timeframe="1h", parts=[a_part()])], "symbol must be"),
        ([Series(symbol="EURUSD", timeframe="1 h", parts=[a_part()])], "a timeframe must be"),
        ([Series(symbol="EURUSD", timeframe="1h")], "EURUSD 1h has no parts"),
        ([Series(symbol="EURUSD", timeframe="1h", parts=[a_part(sha256=b"x")])], "sha256 must be 32 bytes"),
        ([Series(symbol="EURUSD", timeframe="1h", parts=[a_part(size_bytes=0)])], "at least 1 bar and 1 byte"),
        ([Series(symbol="EURUSD", timeframe="1h", parts=[a_part(), a_part()])], "in order of time"),
        ([Series(symbol="EURUSD", timeframe="1h", parts=[a_part()])] * 2, "named twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_series_that_break_a_rule_are_refused_by_both_calls(
    trainer: House, series: list[Series], text: str
) -> None:
    for error in (
        await preparing_fails(trainer, "127.0.0.1:1", *series),
        await refusal(trainer.stub.Train(request_of(*series))) if series else None,
    ):
        if error is not None:
            assert isinstance(error, InvalidInputError)
            assert text in error.message


async def test_source_must_be_an_address(trainer: House, source: tuple[BarSource, str]) -> None:
    error = await preparing_fails(trainer, "somewhere", await source[0].series())
    assert isinstance(error, InvalidInputError)
    assert "host:port, was 'somewhere'" in error.message


async def test_person_with_the_clients_has_bars_fetched_and_trains_on_them(
    trainer: House, source: tuple[BarSource, str], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    async with (
        AsyncClient(source[1]) as backend,
        AsyncTrainerClient(f"127.0.0.1:{trainer.app.port}") as client,
    ):
        series = await backend.get_series("EURUSD", "1h")
        await client.prepare_bars([series], source[1], progress=lambda ready, total: told.append((ready, total)))
        spec = TrainingSpec(strategy_yaml=strategy_text())
        await client.train(spec, session_id="s1", series=[series])
        with pytest.raises(InvalidInputError, match="host:port"):
            await client.prepare_bars([series], "nowhere")
    assert told[-1] == (sum(part.size_bytes for part in series.parts),) * 2
    assert loaded(session_bars(tmp_path)) == BARS.digest()
