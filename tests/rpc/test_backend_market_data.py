"""MarketDataService but ImportBars: lists, snapshots and ranges, resumed, of series that are replaced meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import google_crc32c
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.data.v1 import market_data_service_pb2 as pb
from ktrdr.data.v1.market_data_service_pb2_grpc import MarketDataServiceStub

from ktrdr_core.data.bars import Bars
from ktrdr_core.data.files import load_bars
from ktrdr_core.errors import (
    InvalidBarsError,
    InvalidInputError,
    SeriesChangedError,
    SeriesNotFoundError,
    UnavailableError,
)
from ktrdr_core.rpc.bars_file import CHUNK_SIZE_BYTES
from ktrdr_core.rpc.bars_messages import part_request
from tests.kit.builders import REPOSITORY, make_bars
from tests.kit.eventually import eventually
from tests.kit.market import Market, refused, running_market
from tests.kit.series_files import bars_parquet, write_series

DAILY = make_bars(800, timeframe="1d")  # 2017, 2018 and some of 2019
MINUTES = make_bars(100_000, symbol="GBPUSD", timeframe="1m")  # one part of several chunks
HOUR_NS = 3600 * 10**9


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[Market]:
    bars = tmp_path / "bars"
    write_series(bars, DAILY)
    write_series(bars, MINUTES.head(100))
    (bars / "EURUSD_1h.csv").symlink_to(REPOSITORY / "data" / "EURUSD_1h.csv")
    (bars / "USDJPY_4h.parquet").write_bytes(bars_parquet(make_bars(30, symbol="USDJPY", timeframe="4h")))
    (bars / "notes.txt").write_text("mine")
    async with running_market(tmp_path) as running:
        yield running


def time_of(time_ns: int) -> Timestamp:
    return Timestamp(seconds=time_ns // 10**9, nanos=time_ns % 10**9)


async def get(market: Market, **fields: Any) -> tuple[pb.GetBarsResponse, bytes]:
    """Return the first response and all bytes of a GetBars, each message checked."""
    request = pb.GetBarsRequest(**{"symbol": "EURUSD", "timeframe": "1d"} | fields)
    first, content = None, b""
    async for response in market.stub.GetBars(request):
        first = first or response
        assert response.offset == request.read_offset + len(content)
        assert len(response.data) <= CHUNK_SIZE_BYTES
        assert response.crc32c == google_crc32c.value(response.data)
        content += response.data
    assert first is not None
    return first, content


def read(content: bytes, tmp_path: Path, bars: Bars) -> Bars:
    path = tmp_path / "got.parquet"
    path.write_bytes(content)
    return load_bars(path, symbol=bars.symbol, timeframe=bars.timeframe)


async def test_series_are_listed_with_what_is_known_without_reading_them(market: Market) -> None:
    answer = await market.stub.ListSeries(pb.ListSeriesRequest())
    listed = [(each.symbol, each.timeframe, each.num_bars, each.HasField("start_time")) for each in answer.series]
    assert listed == [
        ("EURUSD", "1d", 800, True),
        ("EURUSD", "1h", 0, False),
        ("GBPUSD", "1m", 100, True),
        ("USDJPY", "4h", 30, True),
    ]
    assert answer.series[0].end_time == time_of(int(DAILY.times[-1]))
    assert not answer.next_page_token
    assert not any(each.parts or each.sha256 for each in answer.series)


async def test_pages_of_the_list_follow_each_other_while_series_come_and_go(market: Market) -> None:
    bars = market.bars_dir
    first = await market.stub.ListSeries(pb.ListSeriesRequest(page_size=2))
    assert [(each.symbol, each.timeframe) for each in first.series] == [("EURUSD", "1d"), ("EURUSD", "1h")]
    (bars / "EURUSD_1h.csv").unlink()
    write_series(bars, make_bars(10, symbol="AUDUSD"))
    rest = await market.stub.ListSeries(pb.ListSeriesRequest(page_size=2, page_token=first.next_page_token))
    assert [(each.symbol, each.timeframe) for each in rest.series] == [("GBPUSD", "1m"), ("USDJPY", "4h")]
    assert not rest.next_page_token


async def test_list_of_one_symbol(market: Market) -> None:
    answer = await market.stub.ListSeries(pb.ListSeriesRequest(symbol="EURUSD"))
    assert [each.timeframe for each in answer.series] == ["1d", "1h"]
    assert not (await market.stub.ListSeries(pb.ListSeriesRequest(symbol="EUR"))).series


@pytest.mark.parametrize(
    "fields",
    [
        {"page_size": -1},
        {"page_size": 1001},
        {"page_token": "x"},
        {"page_token": "ÿ"},
        {"page_token": "YWJj"},
        {"symbol": "../EURUSD"},
    ],
)
async def test_list_refuses_bad_pages_and_names(market: Market, fields: dict[str, Any]) -> None:
    assert isinstance(await refused(market.stub.ListSeries(pb.ListSeriesRequest(**fields))), InvalidInputError)


async def test_series_has_its_parts_and_the_digest_of_its_bars(market: Market) -> None:
    answer = await market.stub.GetSeries(pb.GetSeriesRequest(symbol="EURUSD", timeframe="1d"))
    series = answer.series
    assert (series.num_bars, series.sha256.hex()) == (800, DAILY.digest())
    assert [part.num_bars for part in series.parts] == [365, 365, 70]
    assert (series.start_time, series.end_time) == (time_of(int(DAILY.times[0])), time_of(int(DAILY.times[-1])))
    for part in series.parts:
        (path,) = (market.bars_dir / "EURUSD_1d").glob(f"*{part.sha256.hex()[:12]}.parquet")
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).digest()) == (part.size_bytes, part.sha256)


async def test_series_of_a_csv_file_is_that_of_the_library(market: Market) -> None:
    bars = load_bars(REPOSITORY / "data" / "EURUSD_1h.csv", symbol="EURUSD", timeframe="1h")
    answer = await market.stub.GetSeries(pb.GetSeriesRequest(symbol="EURUSD", timeframe="1h"))
    assert answer.series.sha256.hex() == bars.digest()
    assert sum(part.num_bars for part in answer.series.parts) == len(bars)


async def test_series_that_has_not_changed_is_not_read_again(market: Market) -> None:
    request = pb.GetSeriesRequest(symbol="EURUSD", timeframe="1d")
    before = await market.stub.GetSeries(request)
    for path in (market.bars_dir / "EURUSD_1d").glob("*.parquet"):
        path.write_bytes(bytes(path.stat().st_size))
    assert await market.stub.GetSeries(request) == before


async def test_replaced_series_is_seen_at_once(market: Market) -> None:
    request = pb.GetSeriesRequest(symbol="EURUSD", timeframe="1d")
    await market.stub.GetSeries(request)
    other = make_bars(800, seed=9, timeframe="1d")
    write_series(market.bars_dir, other)
    assert (await market.stub.GetSeries(request)).series.sha256.hex() == other.digest()


@pytest.mark.parametrize(
    ("symbol", "timeframe", "error"),
    [
        ("EURUSD", "5m", SeriesNotFoundError),
        ("NONE", "1h", SeriesNotFoundError),
        ("", "1h", InvalidInputError),
        ("../bars/EURUSD", "1h", InvalidInputError),
        ("EURUSD", "../1h", InvalidInputError),
        ("EURUSD\0", "1h", InvalidInputError),
    ],
)
async def test_names_that_are_none_and_series_that_are_not_there(
    market: Market, symbol: str, timeframe: str, error: type[Exception]
) -> None:
    for call in (
        market.stub.GetSeries(pb.GetSeriesRequest(symbol=symbol, timeframe=timeframe)),
        market.stub.GetBars(pb.GetBarsRequest(symbol=symbol, timeframe=timeframe)).read(),
    ):
        assert isinstance(await refused(call), error)


async def test_unknown_series_names_those_there_are(market: Market) -> None:
    problem = await refused(market.stub.GetSeries(pb.GetSeriesRequest(symbol="EURUSD", timeframe="5m")))
    assert "EURUSD exists in 1d, 1h" in problem.message


async def test_damaged_series_is_refused(market: Market) -> None:
    path = next((market.bars_dir / "EURUSD_1d").glob("2018-*.parquet"))
    path.write_bytes(b"x" * path.stat().st_size)
    for call in (
        market.stub.GetSeries(pb.GetSeriesRequest(symbol="EURUSD", timeframe="1d")),
        market.stub.GetBars(pb.GetBarsRequest(symbol="EURUSD", timeframe="1d")).read(),
    ):
        problem = await refused(call)
        assert isinstance(problem, InvalidBarsError)
        assert "differs from its digest" in problem.message


async def test_range_of_a_part_is_the_part_itself(market: Market) -> None:
    answer = await market.stub.GetSeries(pb.GetSeriesRequest(symbol="EURUSD", timeframe="1d"))
    for part in answer.series.parts:
        request = part_request("EURUSD", "1d", part)
        first, content = await get(
            market, start_time=request.start_time, end_time=request.end_time, sha256=request.sha256
        )
        assert (first.sha256, first.total_size_bytes) == (part.sha256, part.size_bytes)
        assert hashlib.sha256(content).digest() == part.sha256
        assert first.series.num_bars == part.num_bars


async def test_any_range_has_its_bars_and_always_the_same_bytes(market: Market, tmp_path: Path) -> None:
    wanted = DAILY.rows(slice(100, 700))
    bounds = {"start_time": time_of(int(wanted.times[0])), "end_time": time_of(int(wanted.times[-1]))}
    first, content = await get(market, **bounds)
    assert read(content, tmp_path, wanted).digest() == wanted.digest()
    assert (first.series.num_bars, first.series.sha256.hex()) == (600, wanted.digest())
    assert (first.series.start_time, first.series.end_time) == tuple(bounds.values())
    assert (first.sha256, first.total_size_bytes) == (hashlib.sha256(content).digest(), len(content))
    # Bounds between bars are the same range.
    bounds = {
        "start_time": time_of(int(wanted.times[0]) - HOUR_NS),
        "end_time": time_of(int(wanted.times[-1]) + HOUR_NS + 1),
    }
    assert (await get(market, **bounds))[1] == content


async def test_whole_series_without_a_range(market: Market, tmp_path: Path) -> None:
    first, content = await get(market)
    assert read(content, tmp_path, DAILY).digest() == DAILY.digest()
    assert first.series.sha256.hex() == DAILY.digest()
    assert content == bars_parquet(DAILY)


@pytest.mark.parametrize("is_part", [True, False])
async def test_broken_off_stream_is_resumed_at_any_byte(market: Market, is_part: bool) -> None:
    write_series(market.bars_dir, MINUTES)
    fields: dict[str, Any] = {"symbol": "GBPUSD", "timeframe": "1m"}
    if not is_part:
        fields["start_time"] = time_of(int(MINUTES.times[3]))
    first, content = await get(market, **fields)
    assert len(content) > 3 * CHUNK_SIZE_BYTES
    for offset in (1, CHUNK_SIZE_BYTES, len(content) - 1, len(content)):
        again, rest = await get(market, **fields, read_offset=offset, sha256=first.sha256)
        assert rest == content[offset:]
        assert (again.sha256, again.total_size_bytes) == (first.sha256, first.total_size_bytes)


async def test_bars_that_have_changed_are_not_mixed(market: Market) -> None:
    first, content = await get(market)
    write_series(market.bars_dir, make_bars(800, seed=9, timeframe="1d"))
    request = pb.GetBarsRequest(symbol="EURUSD", timeframe="1d", read_offset=10, sha256=first.sha256)
    problem = await refused(market.stub.GetBars(request).read())
    assert isinstance(problem, SeriesChangedError)
    assert problem.metadata == {"symbol": "EURUSD", "timeframe": "1d"}
    assert len(content) > 10


async def test_part_that_is_gone_with_its_bars_has_changed(market: Market) -> None:
    answer = await market.stub.GetSeries(pb.GetSeriesRequest(symbol="EURUSD", timeframe="1d"))
    write_series(market.bars_dir, DAILY.head(100))
    request = part_request("EURUSD", "1d", answer.series.parts[2])
    assert isinstance(await refused(market.stub.GetBars(request).read()), SeriesChangedError)


async def test_stream_goes_on_although_the_series_is_replaced(market: Market) -> None:
    write_series(market.bars_dir, MINUTES)
    call = market.stub.GetBars(pb.GetBarsRequest(symbol="GBPUSD", timeframe="1m"))
    responses = aiter(call)
    first = await anext(responses)
    directory = market.bars_dir / "GBPUSD_1m"
    for path in directory.glob("*.parquet"):
        path.unlink()
    write_series(market.bars_dir, make_bars(100, symbol="GBPUSD", timeframe="1m"))
    content = first.data + b"".join([response.data async for response in responses])
    assert hashlib.sha256(content).digest() == first.sha256


@pytest.mark.parametrize(
    "fields",
    [
        {"start_time": time_of(int(DAILY.times[5])), "end_time": time_of(int(DAILY.times[4]))},
        {"start_time": time_of(int(DAILY.times[4]) + 1), "end_time": time_of(int(DAILY.times[5]) - 1)},
        {"end_time": time_of(int(DAILY.times[0]) - 1)},
        {"start_time": Timestamp(seconds=2**62)},
        {"end_time": Timestamp(seconds=1, nanos=10**9)},
        {"read_offset": -1},
        {"read_offset": 10**9},
        {"sha256": b"short"},
    ],
)
async def test_range_without_bars_and_offsets_outside_are_refused(market: Market, fields: dict[str, Any]) -> None:
    request = pb.GetBarsRequest(symbol="EURUSD", timeframe="1d", **fields)
    assert isinstance(await refused(market.stub.GetBars(request).read()), InvalidInputError)


async def test_nothing_is_left_of_ranges(market: Market) -> None:
    write_series(market.bars_dir, MINUTES)
    await get(market, start_time=time_of(int(DAILY.times[3])))
    request = pb.GetBarsRequest(symbol="GBPUSD", timeframe="1m", end_time=time_of(int(MINUTES.times[-2])))
    call = market.stub.GetBars(request)
    await call.read()
    call.cancel()
    assert market.files_left() == []
    await eventually(lambda: not market.open_files(), what="the range is closed")


async def test_watcher_that_takes_nothing_is_left(tmp_path: Path) -> None:
    write_series(tmp_path / "bars", MINUTES)
    # Without the probe nothing is taken beyond what is read, but for 64 KiB.
    options = [("grpc.http2.bdp_probe", 0)]
    async with (
        running_market(tmp_path, take_timeout_s=0.2) as market,
        grpc.aio.insecure_channel(market.address, options=options) as channel,
    ):
        stub: Any = MarketDataServiceStub(channel)
        call = stub.GetBars(
            pb.GetBarsRequest(symbol="GBPUSD", timeframe="1m", end_time=time_of(int(MINUTES.times[-2])))
        )
        await call.read()
        await eventually(lambda: not market.open_files(), what="the range is closed")
        problem = await refused(_read_all(call))
        assert isinstance(problem, UnavailableError)
        assert "were not taken for 0.2 s" in problem.message


async def _read_all(call: Any) -> None:
    while await call.read():
        pass
