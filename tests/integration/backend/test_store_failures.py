"""The operations store while its database takes no reads or writes, and after: the real causes, no stand-ins."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from backend_service.operations.postgres import LOCK_KEY
from backend_service.operations.records import TrainingRow
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.store import TrainingQuery
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CorruptDataError, IllegalStateError, StorageError
from tests.kit.eventually import eventually
from tests.kit.postgres import PASSWORD, PostgresServer, postgres_server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> PostgresServer:
    return postgres_server(request)


@asynccontextmanager
async def opened(place: str | Path, *, busy_timeout_s: float = 0.2) -> AsyncIterator[SqlOperationsStore]:
    store = await SqlOperationsStore.open(place, busy_timeout_s=busy_timeout_s)
    try:
        yield store
    finally:
        await store.close()


def make_row(training_id: str = "t1", *, text: str = "name: s") -> TrainingRow:
    return TrainingRow(
        training_id=training_id,
        content_digest="d",
        strategy_name="s",
        spec=TrainingSpec(strategy_yaml=text, symbols=("EURUSD",), epochs=3),
        create_time=utc_now(),
    )


def make_event(sequence: int = 1, state: TrainingState = TrainingState.QUEUED) -> ProgressEvent:
    return ProgressEvent(sequence=sequence, create_time=utc_now(), detail=StateDetail(state=state, message="m"))


async def is_whole(store: SqlOperationsStore, num_accepted: int) -> bool:
    """Return whether just the accepted trainings are there, each with its event."""
    listed = await store.list_trainings(TrainingQuery(limit=10_000))
    logs = [await store.load_events(entry.row.training_id) for entry in listed]
    return len(listed) == num_accepted and all(len(log) == 1 for log in logs)


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: what a full disk does to the one that grows."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def insert_until_refused(store: SqlOperationsStore) -> int:
    """Insert trainings of 100 kB until the database takes no more; return how many it took."""
    for number in range(1_000):
        try:
            await store.insert_training(make_row(f"t{number}", text="x" * 100_000), make_event())
        except StorageError:
            return number
    raise AssertionError("nothing was ever refused")


async def test_disk_that_is_full_refuses_whole_calls_until_there_is_space(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    async with opened(path) as store:
        with file_size_limit(2 << 20):
            num_accepted = await insert_until_refused(store)
            with pytest.raises(StorageError, match="takes no reads or writes now"):
                await store.insert_training(make_row("again", text="x" * 3_000_000), make_event())
            assert await is_whole(store, num_accepted)
        await store.insert_training(make_row("later", text="x" * 3_000_000), make_event())
        assert await is_whole(store, num_accepted + 1)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


async def test_locked_database_refuses_within_its_patience_and_then_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    async with opened(path) as store:
        await store.insert_training(make_row(), make_event())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        outcomes = await asyncio.gather(
            *(store.save_training(make_row(), event=make_event(2 + number)) for number in range(100)),
            return_exceptions=True,
        )
        assert time.monotonic() - begun < 10, "its patience is 0.2 s"
        assert all(isinstance(outcome, StorageError) and "locked" in outcome.message for outcome in outcomes)
        assert len({id(outcome) for outcome in outcomes}) == 100, "callers must not share one exception"
        assert len(await store.load_events("t1")) == 1, "reads go on"
        other.execute("ROLLBACK")
        other.close()
        await store.save_training(make_row(), event=make_event(2))
        assert len(await store.load_events("t1")) == 2


async def test_row_is_stored_whole_after_a_save_that_failed_in_its_commit(tmp_path: Path) -> None:
    running = replace(make_row(), state=TrainingState.RUNNING, cancel_reason="because")
    huge = ProgressEvent(sequence=2, create_time=utc_now(), detail=WarningDetail(reason="R", message="x" * 3_000_000))
    async with opened(tmp_path / "o.db") as store:
        await store.insert_training(make_row(), make_event())
        with file_size_limit(2 << 20), pytest.raises(StorageError):
            await store.save_training(running, event=huge)
        found = await store.find_training("t1")
        assert found is not None
        assert found.state is TrainingState.QUEUED
        await store.save_training(running, event=make_event(2))
        found = await store.find_training("t1")
        assert found is not None
        assert (found.state, found.cancel_reason) == (TrainingState.RUNNING, "because")
        assert len(await store.load_events("t1")) == 2


@pytest.mark.parametrize(
    "content", [b"no database at all, but a text of some length", b"SQLite format 3\0" + b"?" * 4096]
)
async def test_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "o.db"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"o\.db is damaged or no database"):
        await SqlOperationsStore.open(path)
    assert path.read_bytes() == content


async def test_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere/o\.db.*cannot be opened"):
        await SqlOperationsStore.open(tmp_path / "nowhere" / "o.db")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut_down", "crashed"])
async def test_server_that_is_gone_refuses_calls_until_it_is_back(server: PostgresServer, how: signal.Signals) -> None:
    async with opened(server.new_database(), busy_timeout_s=10) as store:
        await store.insert_training(make_row(), make_event())
        await asyncio.gather(*(store.find_training("t1") for _ in range(8)))  # every pooled connection is open
        server.stop(how)
        try:
            for call in (
                store.save_training(make_row(), event=make_event(2)),
                store.find_training("t1"),
                store.save_training(make_row(), event=make_event(2)),
                store.find_training("t1"),
            ):
                with pytest.raises(StorageError) as caught:
                    await call
                assert PASSWORD not in _whole_text(caught.value)
        finally:
            server.start()
        assert await store.find_training("t1") is not None, "the first read after it"
        await store.save_training(make_row(), event=make_event(2))
        assert [event.sequence for event in await store.load_events("t1")] == [1, 2]


async def test_lock_of_somebody_else_refuses_within_the_patience_and_then_goes_on(server: PostgresServer) -> None:
    url = server.new_database()
    async with opened(url) as store:
        await store.insert_training(make_row(), make_event())
        with server.connection(url) as other:
            other.execute("LOCK TABLE training_events")
            for _ in range(2):
                with pytest.raises(StorageError):
                    await store.save_training(replace(make_row(), cancel_reason="r"), event=make_event(2))
                with pytest.raises(StorageError):
                    await store.load_events("t1")
            found = await store.find_training("t1")
            assert found is not None
            assert found.cancel_reason == ""
        await store.save_training(replace(make_row(), cancel_reason="r"), event=make_event(2))
        found = await store.find_training("t1")
        assert found is not None
        assert found.cancel_reason == "r"
        assert len(await store.load_events("t1")) == 2


async def test_first_write_after_a_restart_in_a_quiet_hour_succeeds(server: PostgresServer) -> None:
    async with opened(server.new_database(), busy_timeout_s=10) as store:
        server.stop(signal.SIGINT)
        server.start()
        await store.insert_training(make_row(), make_event())
        assert await is_whole(store, 1)


async def test_second_backend_on_one_database_is_refused(server: PostgresServer) -> None:
    url = server.new_database()
    async with opened(url) as store:
        with pytest.raises(IllegalStateError, match="another backend uses the operations database postgresql://") as e:
            await SqlOperationsStore.open(url)
        assert PASSWORD not in _whole_text(e.value)
        await store.write_config("k", "v")
    async with opened(url) as store:
        assert await store.read_config("k") == "v"


async def test_writer_that_was_cut_off_takes_its_lock_again(server: PostgresServer) -> None:
    url = server.new_database()
    async with opened(url, busy_timeout_s=10) as store:
        await store.insert_training(make_row(), make_event())
        server.run(_CUT_OFF_WRITERS)
        await store.save_training(make_row(), event=make_event(2))
        with pytest.raises(IllegalStateError, match="another backend"):
            await SqlOperationsStore.open(url)


async def test_writer_that_was_cut_off_while_another_wrote_never_writes_again(server: PostgresServer) -> None:
    url = server.new_database()
    async with opened(url, busy_timeout_s=10) as first:
        await first.insert_training(make_row(), make_event())
        server.run(_CUT_OFF_WRITERS)
        async with opened(url, busy_timeout_s=10) as second:
            await second.save_training(make_row(), event=make_event(2))
            with pytest.raises(StorageError, match="another backend uses"):
                await first.save_training(make_row(), event=make_event(3))
        for _ in range(2):
            with pytest.raises(StorageError, match="has written to the operations database"):
                await first.save_training(make_row(), event=make_event(3))
        assert len(await first.load_events("t1")) == 2


@pytest.mark.parametrize("is_committed", [True, False], ids=["answer_lost", "commit_lost"])
async def test_connection_lost_in_a_commit_is_told_as_it_was(server: PostgresServer, is_committed: bool) -> None:
    event = make_event(2)
    async with cutting_proxy(server.port) as proxy:
        url = server.new_database().replace(f":{server.port}/", f":{proxy.port}/")
        async with opened(url, busy_timeout_s=10) as store:
            await store.insert_training(make_row(), make_event())
            proxy.cut = "answer" if is_committed else "commit"
            if is_committed:
                await store.save_training(make_row(), event=event)
            else:
                with pytest.raises(StorageError):
                    await store.save_training(make_row(), event=event)
                assert len(await store.load_events("t1")) == 1
                await store.save_training(make_row(), event=event)
            assert proxy.cut == "", "nothing was cut"
            assert (await store.load_events("t1"))[1:] == [event]


async def test_crashes_under_writes_lose_nothing_and_double_nothing(server: PostgresServer) -> None:
    """What was taken is there, what was refused is not: it is given again under the same number, as another event."""
    async with opened(server.new_database(), busy_timeout_s=10) as store:
        await store.insert_training(make_row(), make_event())
        num_taken, num_refused = 1, 0
        is_enough = False

        async def write() -> None:
            nonlocal num_taken, num_refused
            while not is_enough:
                try:
                    await store.save_training(make_row(), event=make_event(num_taken + 1))
                except StorageError:
                    num_refused += 1
                else:
                    num_taken += 1

        def has_taken(number: int) -> bool:
            return writing.done() or num_taken >= number

        def has_refused(number: int) -> bool:
            return writing.done() or num_refused >= number

        writing = asyncio.create_task(write())
        for number in range(1, 5):
            await eventually(partial(has_taken, 30 * number))
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            await eventually(partial(has_refused, num_refused + 1))
            await asyncio.to_thread(server.start)
        is_enough = True
        await writing
        assert [event.sequence for event in await store.load_events("t1")] == list(range(1, num_taken + 1))


_CUT_OFF_WRITERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' "  # noqa: S608
    f"AND (classid::bigint << 32 | objid::bigint) = {LOCK_KEY}"
)


class _CuttingProxy:
    """Between the store and its server. `cut` what comes next: "commit" (on its way there) or its "answer"."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._calls: list[asyncio.Task[None]] = []
        self.port = 0
        self.cut = ""

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._calls.append(asyncio.create_task(self._join(client, to_client)))

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.wait(self._calls)

    async def _join(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        pumps = [
            asyncio.create_task(self._pump(client, to_server, self._lets_through)),
            asyncio.create_task(self._pump(server, to_client, lambda data: self.cut != "now")),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if self.cut == "now":
                self.cut = ""
        finally:
            for pump in pumps:
                pump.cancel()
            for writer in (to_client, to_server):
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    def _lets_through(self, data: bytes) -> bool:
        if self.cut and b"COMMIT" in data:
            goes_on = self.cut == "answer"
            self.cut = "now"
            return goes_on
        return True

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, lets_through: Callable[[bytes], bool]
    ) -> None:
        while data := await source.read(65_536):
            if not lets_through(data):
                return
            sink.write(data)
            await sink.drain()


@asynccontextmanager
async def cutting_proxy(server_port: int) -> AsyncIterator[_CuttingProxy]:
    proxy = _CuttingProxy(server_port)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.close()


def _whole_text(error: BaseException | None) -> str:
    """Return all that a traceback of `error` could print."""
    text = ""
    while error is not None:
        text += f"{error!r} {error} {getattr(error, 'metadata', '')}"
        error = error.__cause__ or error.__context__
    return text
