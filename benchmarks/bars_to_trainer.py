"""What it costs that a trainer has no bars of its own: 360,000 bars to a cold and to a warm trainer.

Real processes on loopback. Against it, the same bars as a gzip'd CSV over HTTP, parsed and stored, which is what a
small service without this protocol would do; a plain copy of the same files with SHA-256 and fsync, which is what a
shared disk would cost; and a session that reads bars which are on the trainer's disk already.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ktrdr.data.v1 import market_data_service_pb2, market_data_service_pb2_grpc
from ktrdr.data.v1.series_pb2 import Series
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_service_pb2_grpc
from ktrdr.training.v1.data_mode_pb2 import DATA_MODE_BACKEND, DATA_MODE_LOCAL, DataMode

from benchmarks.bar_series import bootstrap_bars
from benchmarks.report import BenchRow
from benchmarks.sample import build_spec, quantile
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.wire.to_proto import spec_to_proto
from tests.kit.bar_source import store_bars
from tests.kit.processes import a_service

NUM_BARS = 360_000
_EPOCHS = 1_000_000  # nothing ends by itself while it is measured
_SERIES = "EURUSD_1h"


class _Sender(BaseHTTPRequestHandler):
    """Answers each GET with the bars of the server's store as a gzip'd CSV."""

    def do_GET(self) -> None:
        from pyarrow import csv, parquet

        files = sorted(getattr(self.server, "store").glob("*.parquet"))  # noqa: B009  the class knows no such attribute
        text = io.BytesIO()
        for path in files:
            csv.write_csv(parquet.read_table(path), text)
        body = gzip.compress(text.getvalue(), compresslevel=1, mtime=0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def _http_service(store: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sender)
    server.store = store  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _fetch_csv(url: str, target: Path) -> None:
    """Take the bars as a gzip'd CSV, parse them, and store them durably."""
    from pyarrow import csv

    with urllib.request.urlopen(url) as answer:  # noqa: S310  our own server
        text = gzip.decompress(answer.read())
    table = csv.read_csv(io.BytesIO(text.replace(b'"time","open","high","low","close","volume"\n', b"")), _no_header())
    assert len(table) == NUM_BARS
    with target.open("wb") as file:
        csv.write_csv(table, file)
        file.flush()
        os.fsync(file.fileno())
    target.unlink()


def _no_header() -> Any:
    from pyarrow import csv

    return csv.ReadOptions(column_names=["time", "open", "high", "low", "close", "volume"])


def _copy(store: Path, target: Path) -> None:
    """Copy the files of the series, each with its SHA-256 and fsync."""
    target.mkdir()
    for path in sorted(store.glob("*.parquet")):
        content = path.read_bytes()
        hashlib.sha256(content).hexdigest()
        with (target / path.name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for path in target.iterdir():
        path.unlink()
    target.rmdir()


def _times(num: int, call: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(num):
        begin_s = time.monotonic()
        call()
        found.append(time.monotonic() - begin_s)
    return found


class _Bench:
    """A trainer and the series it is to have."""

    def __init__(self, stub: Any, series: Series, source: str, cache: Path) -> None:
        self._stub = stub
        self._series = series
        self._source = source
        self._cache = cache

    async def cold(self) -> tuple[float, float]:
        """Return the seconds until the bars are there, and until a session on them is accepted."""
        for path in self._cache.iterdir():
            path.unlink()
        begin_s = time.monotonic()
        async for _ in self._stub.PrepareBars(pb.PrepareBarsRequest(series=[self._series], source=self._source)):
            pass
        fetched_s = time.monotonic() - begin_s
        return fetched_s, fetched_s + await self.accept(DATA_MODE_BACKEND)

    async def accept(self, data_mode: DataMode.ValueType) -> float:
        """Return the seconds until a session is accepted; it is ended then."""
        session_id = uuid.uuid4().hex
        request = pb.TrainRequest(session_id=session_id, spec=spec_to_proto(build_spec(_EPOCHS)))
        request.spec.data_mode = data_mode
        if data_mode == DATA_MODE_BACKEND:
            request.series.append(self._series)
        begin_s = time.monotonic()
        await self._stub.Train(request)
        accepted_s = time.monotonic() - begin_s
        await self._stub.Cancel(pb.CancelRequest(session_id=session_id))
        return accepted_s


async def _measure(bench: _Bench, num_tries: int) -> tuple[list[float], list[float], list[float], list[float]]:
    await bench.cold()  # the first worker of a process waits for the fork server
    colds = [await bench.cold() for _ in range(num_tries)]
    warm = [await bench.accept(DATA_MODE_BACKEND) for _ in range(2 * num_tries)]
    local = [await bench.accept(DATA_MODE_LOCAL) for _ in range(2 * num_tries)]
    return [fetched for fetched, _ in colds], [accepted for _, accepted in colds], warm, local


async def _run(directory: Path, num_tries: int) -> tuple[int, tuple[list[float], ...]]:
    bars_dir = directory / "bars"
    await asyncio.to_thread(store_bars, bars_dir, bootstrap_bars(NUM_BARS))
    shared = ("--bars-dir", str(bars_dir))
    with (
        a_service("trainer_service", *shared, "--data-dir", str(directory / "trainer")) as trainer,
        a_service("backend_service", *shared, "--data-dir", str(directory / "backend"), "--slots", "0") as backend,
    ):
        async with open_channel(backend.address) as to_backend, open_channel(trainer.address) as to_trainer:
            market: Any = market_data_service_pb2_grpc.MarketDataServiceStub(to_backend)
            request = market_data_service_pb2.GetSeriesRequest(symbol="EURUSD", timeframe="1h")
            series = (await market.GetSeries(request)).series
            stub: Any = trainer_service_pb2_grpc.TrainerServiceStub(to_trainer)
            bench = _Bench(stub, series, backend.address, directory / "trainer" / "trainer" / "bars")
            return sum(part.size_bytes for part in series.parts), await _measure(bench, num_tries)


def run(quick: bool) -> list[BenchRow]:
    """Fetch the bars into an empty cache five times (quick: twice), and begin sessions on a warm one twice as often."""
    num_tries = 2 if quick else 5
    with tempfile.TemporaryDirectory(prefix="ktrdr-bench-") as name:
        directory = Path(name)
        size_bytes, (fetched, cold, warm, local) = asyncio.run(_run(directory, num_tries))
        store = directory / "bars" / _SERIES
        with _http_service(store) as url:
            as_csv = _times(num_tries, lambda: _fetch_csv(url, directory / "fetched.csv"))
        copied = _times(num_tries, lambda: _copy(store, directory / "copy"))
    what = f"{NUM_BARS:,} bars ({size_bytes / 1e6:.1f} MB)"
    return [
        _row(
            f"{what} to a cold trainer: verified on its disk", fetched, "gzip'd CSV over HTTP, parsed, stored", as_csv
        ),
        _row(f"{what} to a cold trainer: verified on its disk", fetched, "copy of the files, SHA-256, fsync", copied),
        _row(f"Train with {what}, cold: accepted", cold, "warm", warm),
        _row(f"Train with {what}, warm: accepted", warm, "data mode local, bars on its disk", local),
    ]


def _row(name: str, seconds: list[float], baseline_name: str, baseline: list[float]) -> BenchRow:
    value, other = 1000 * quantile(seconds, 0.5), 1000 * quantile(baseline, 0.5)
    return BenchRow(
        name=f"{name} (p50 of {len(seconds)})",
        value=value,
        unit="ms",
        baseline_name=baseline_name,
        baseline_value=other,
        ratio=other / value,
    )
