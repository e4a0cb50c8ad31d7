"""The client's bars against a real service: over a network that breaks, and the commands `ktrdr data ... --remote`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
from ktrdr_client import AsyncClient, Client, ImportMode

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.files import load_bars
from ktrdr_core.errors import (
    AlreadyExistsError,
    InvalidBarsError,
    InvalidInputError,
    SeriesNotFoundError,
)
from tests.kit.builders import bars_csv, make_bars, write_bars_csv
from tests.kit.cli import Run
from tests.kit.eventually import eventually
from tests.kit.market import Market, running_market
from tests.kit.series_files import bars_parquet, write_series
from tests.kit.tcp_proxy import TcpProxy

DAILY = make_bars(800, timeframe="1d")
MINUTES = make_bars(100_000, symbol="GBPUSD", timeframe="1m")  # some 5 MB


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[Market]:
    (tmp_path / "bars").mkdir()
    async with running_market(tmp_path) as running:
        yield running


@pytest.fixture
async def client(market: Market) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(market.address) as made:
        yield made


async def test_series_as_the_library_would_read_them(market: Market, client: AsyncClient) -> None:
    write_series(market.bars_dir, DAILY)
    write_bars_csv(market.bars_dir, make_bars(30))
    daily, hourly = await client.list_series()
    assert (daily.symbol, daily.timeframe, daily.num_bars) == ("EURUSD", "1d", 800)
    assert (hourly.timeframe, hourly.num_bars, hourly.start_time, hourly.digest) == ("1h", 0, None, "")
    series = await client.get_series("EURUSD", "1d")
    assert series.digest == DAILY.digest()
    assert [part.num_bars for part in series.parts] == [365, 365, 70]
    assert daily.start_time == series.start_time == series.parts[0].start_time
    assert await client.list_series(symbol="NONE") == []
    with pytest.raises(SeriesNotFoundError, match="these exist: EURUSD 1d, EURUSD 1h"):
        await client.get_series("NONE", "1h")


async def test_bars_of_days_are_both_days_whole(market: Market, client: AsyncClient, tmp_path: Path) -> None:
    bars = make_bars(200)
    write_series(market.bars_dir, bars)
    days = date(2017, 1, 3), date(2017, 1, 5)
    path = tmp_path / "got.parquet"
    series = await client.get_bars("EURUSD", "1h", path, start=days[0], end=days[1])
    wanted = bars.between(*days)
    assert load_bars(path, symbol="EURUSD", timeframe="1h").digest() == wanted.digest() == series.digest
    assert series.num_bars == len(wanted) == 72
    series = await client.get_bars("EURUSD", "1h", path)
    assert load_bars(path, symbol="EURUSD", timeframe="1h").digest() == bars.digest() == series.digest
    with pytest.raises(InvalidInputError, match="has no bars in this range"):
        await client.get_bars("EURUSD", "1h", path, start=date(2030, 1, 1))
    assert load_bars(path, symbol="EURUSD", timeframe="1h").digest() == bars.digest()


async def test_fetch_goes_on_after_each_cut_of_the_network_and_fetches_nothing_twice(
    market: Market, tmp_path: Path
) -> None:
    write_series(market.bars_dir, MINUTES)
    path = tmp_path / "got.parquet"
    async with TcpProxy(market.address) as proxy, AsyncClient(proxy.address) as client:
        await proxy.slow(bytes_per_s=8e6)
        here: list[tuple[int, int]] = []
        fetching = asyncio.create_task(
            client.get_bars("GBPUSD", "1m", path, progress=lambda *sizes: here.append(sizes))
        )
        for size in (1 << 20, 3 << 20):

            def has_come(wanted: int = size) -> bool:
                return bool(here) and here[-1][0] >= wanted

            await eventually(has_come, what="bytes")
            await proxy.cut()
            await proxy.slow(bytes_per_s=8e6)
        series = await fetching
    assert load_bars(path, symbol="GBPUSD", timeframe="1m").digest() == MINUTES.digest() == series.digest
    sizes = [size for size, _ in here]
    assert sizes == sorted(sizes)
    assert sizes[-1] == here[-1][1] == path.stat().st_size


async def test_import_that_breaks_is_sent_again_and_stored_once(market: Market, tmp_path: Path) -> None:
    path = tmp_path / "GBPUSD_1m.parquet"
    path.write_bytes(bars_parquet(MINUTES))
    async with TcpProxy(market.address) as proxy, AsyncClient(proxy.address) as client:
        await proxy.slow(bytes_per_s=4e6)
        sending = asyncio.create_task(client.import_bars(path))
        await eventually(lambda: proxy.num_bytes > 2 << 20, what="some bytes")
        await proxy.cut()
        await proxy.restore()
        series = await sending
    assert series.digest == MINUTES.digest()
    assert DirectoryBarStore(market.bars_dir).load("GBPUSD", "1m").digest() == MINUTES.digest()
    assert market.files_left() == []


async def test_import_modes_and_what_may_be_imported(market: Market, client: AsyncClient, tmp_path: Path) -> None:
    whole = make_bars(300)
    path = tmp_path / "x.parquet"
    path.write_bytes(bars_parquet(whole.head(200)))
    with pytest.raises(InvalidInputError, match=r"x\.parquet does not say them as EURUSD_1h\.parquet does"):
        await client.import_bars(path)
    assert (await client.import_bars(path, symbol="EURUSD", timeframe="1h")).num_bars == 200
    directory = write_series(tmp_path / "other", whole.rows(slice(100, 300)))  # a series that was imported here
    with pytest.raises(AlreadyExistsError):
        await client.import_bars(directory)
    assert (await client.import_bars(directory, mode=ImportMode.APPEND)).digest == whole.digest()
    assert (await client.import_bars(directory, mode=ImportMode.REPLACE)).num_bars == 200
    with pytest.raises(InvalidBarsError, match="is no readable Parquet file"):
        await client.import_bars(write_bars_csv(tmp_path, whole), symbol="A", timeframe="1h")
    with pytest.raises(InvalidInputError, match=r"none\.parquet cannot be read: No such file"):
        await client.import_bars(tmp_path / "none.parquet", symbol="A", timeframe="1h")


async def test_synchronous_client_does_the_same(market: Market, tmp_path: Path) -> None:
    def use() -> None:
        with Client(market.address) as client:
            path = tmp_path / "EURUSD_1d.parquet"
            path.write_bytes(bars_parquet(DAILY))
            assert client.import_bars(path).digest == DAILY.digest()
            assert [series.num_bars for series in client.list_series()] == [800]
            assert client.get_series("EURUSD", "1d").digest == DAILY.digest()
            assert client.get_bars("EURUSD", "1d", tmp_path / "got.parquet").digest == DAILY.digest()

    await asyncio.to_thread(use)
    assert (tmp_path / "got.parquet").read_bytes() == (tmp_path / "EURUSD_1d.parquet").read_bytes()


async def test_command_imports_csv_files_into_the_backend_and_lists_them(
    market: Market, ktrdr: Run, tmp_path: Path
) -> None:
    bars = make_bars(400)
    lines = bars_csv(bars).splitlines()
    (tmp_path / "x.csv").write_text("\n".join([*lines, lines[-1]]))
    words = ("data", "import", str(tmp_path / "x.csv"), "--symbol", "EURUSD", "--timeframe", "1h", "--remote")
    ran = await ktrdr(market.address, *words, "--yes")
    assert ran.code == 2
    assert "x.csv, row 401 " in ran.err
    ran = await ktrdr(market.address, *words, "--repair")
    assert (ran.code, "--yes" in ran.err) == (2, True)
    assert "EURUSD 1h   400" in ran.out
    ran = await ktrdr(market.address, *words, "--yes", "--repair")
    assert ran.code == 0, ran.err
    assert f"imported EURUSD 1h into the backend at {market.address}: 400 bars" in ran.out
    assert DirectoryBarStore(market.bars_dir).load("EURUSD", "1h").digest() == bars.digest()
    write_bars_csv(market.bars_dir, make_bars(30, symbol="GBPUSD"))
    ran = await ktrdr(market.address, "data", "list", "--remote", "--json")
    assert [(line["symbol"], line["num_bars"], line["first_day"], line["file_format"]) for line in ran.lines] == [
        ("EURUSD", 400, "2017-01-01", None),
        ("GBPUSD", 30, "2017-01-01", None),
    ]
    ran = await ktrdr(market.address, "data", "list", "--remote")
    assert "EURUSD   1h          -        400" in ran.out


async def test_command_says_what_is_stored_after_a_merge(market: Market, ktrdr: Run, tmp_path: Path) -> None:
    whole = make_bars(400)
    for name, piece in (("a", whole.head(300)), ("b", whole.rows(slice(200, 400)))):
        (tmp_path / f"{name}.csv").write_text(bars_csv(piece))
    words = ("data", "import", "--symbol", "EURUSD", "--timeframe", "1h", "--remote", "--yes", "--json")
    assert (await ktrdr(market.address, *words, str(tmp_path / "a.csv"))).code == 0
    refused = await ktrdr(market.address, *words, str(tmp_path / "b.csv"))
    assert (refused.code, refused.lines[0]["reason"]) == (2, "ALREADY_EXISTS")
    asked = await ktrdr(market.address, *words[:-2], str(tmp_path / "b.csv"), "--merge")  # nobody there to say yes
    assert asked.code == 2
    assert "EURUSD 1h   200         300 " in asked.out
    (line,) = (await ktrdr(market.address, *words, str(tmp_path / "b.csv"), "--merge")).lines
    assert line["bars_dir"] is None
    (series,) = line["series"]
    assert (series["num_bars"], series["num_stored_before"]) == (400, 300)
    assert (series["first_time"], series["last_time"]) == ("2017-01-01T22:00:00Z", "2017-01-18T13:00:00Z")


async def test_command_pulls_bars_into_a_file(market: Market, ktrdr: Run, tmp_path: Path) -> None:
    write_series(market.bars_dir, DAILY)
    path = tmp_path / "got.parquet"
    words = ("data", "pull", "EURUSD", "1d", "--to", str(path))
    ran = await ktrdr(market.address, *words, "--start", "2018-01-01", "--end", "2018-01-31")
    assert ran.code == 0, ran.err
    assert f"EURUSD 1d is in {path}: 31 bars, 2018-01-01 22:00:00 to 2018-01-31 22:00:00 UTC" in ran.out
    (line,) = (await ktrdr(market.address, *words, "--json")).lines
    assert (line["type"], line["num_bars"], line["digest"]) == ("data_pull", 800, DAILY.digest())
    assert load_bars(path, symbol="EURUSD", timeframe="1d").digest() == DAILY.digest()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["list", "--remote", "--bars-dir", "x"], "--bars-dir is a store of this machine"),
        (["import", "x.csv", "--timeframe", "1h", "--remote", "--bars-dir", "x"], "--bars-dir is a store"),
        (["import", "x.csv", "--timeframe", "1h", "--remote", "--merge", "--replace"], "exclude each other"),
        (["pull", "EURUSD", "1h", "--start", "soon"], "--start must be"),
        (["pull", "EURUSD", "1h"], "no bars for EURUSD 1h"),
        (["pull", "../x", "1h"], "symbol must be 1 to 128"),
    ],
)
async def test_commands_refuse_in_one_sentence(market: Market, ktrdr: Run, words: list[str], text: str) -> None:
    ran = await ktrdr(market.address, "data", *words)
    assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    assert text in ran.err
