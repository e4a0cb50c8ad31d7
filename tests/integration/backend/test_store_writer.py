"""The one writer of the operations store: what it bounds, and what becomes of what waits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend_service.operations import migrations
from backend_service.operations.database import open_database
from backend_service.operations.group_commit import GroupCommitWriter
from backend_service.operations.sql_store import MAX_WAITING_READS, SqlOperationsStore
from backend_service.operations.sqlite import SqliteDatabase
from backend_service.operations.writes import Command, WriteConfig, WriteRunner
from ktrdr_core.errors import StorageError, UnavailableError


class CountingRunner(WriteRunner):
    """Keeps the size of every group, and the keys in the order they were written."""

    def __init__(self) -> None:
        super().__init__("?")
        self.sizes: list[int] = []
        self.keys: list[str] = []

    def run(self, cursor: Any, commands: Sequence[Command]) -> list[Any]:
        self.sizes.append(len(commands))
        self.keys += [command.key for command in commands if isinstance(command, WriteConfig)]
        return super().run(cursor, commands)


def make_writer(path: Path, runner: WriteRunner, **limits: int) -> GroupCommitWriter[Command]:
    database = open_database(path)
    with database.engine.begin() as connection:
        migrations.bring_up_to_date(connection, "x")
    database.engine.dispose()
    return GroupCommitWriter(database, runner, **limits)


async def test_commands_are_grouped_within_the_limit_and_keep_their_order(tmp_path: Path) -> None:
    runner = CountingRunner()
    writer = make_writer(tmp_path / "o.db", runner, max_group=8)
    keys = [f"k{number}" for number in range(100)]
    await asyncio.gather(*(writer.submit(WriteConfig(key, "v")) for key in keys))
    await writer.close()
    assert runner.keys == keys
    assert max(runner.sizes) == 8
    assert len(runner.sizes) < 20


async def test_callers_beyond_the_bound_wait_to_hand_in_and_all_are_served(tmp_path: Path) -> None:
    runner = CountingRunner()
    writer = make_writer(tmp_path / "o.db", runner, max_pending=5, max_group=2)
    await asyncio.gather(*(writer.submit(WriteConfig(f"k{number}", "v")) for number in range(50)))
    await writer.close()
    assert sorted(runner.keys) == sorted(f"k{number}" for number in range(50))


async def test_close_commits_what_was_handed_in_and_refuses_who_still_waited(tmp_path: Path) -> None:
    runner = CountingRunner()
    writer = make_writer(tmp_path / "o.db", runner, max_pending=5, max_group=2)
    calls = [asyncio.ensure_future(writer.submit(WriteConfig(f"k{number}", "v"))) for number in range(20)]
    await asyncio.sleep(0)
    await writer.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    # The first began a group of its own, five were in the line.
    assert outcomes[:6] == [None] * 6
    assert all(isinstance(outcome, UnavailableError) for outcome in outcomes[6:])
    assert runner.keys == [f"k{number}" for number in range(6)]


class CountingDatabase(SqliteDatabase):
    """Counts the transactions that were to begin."""

    num_begun = 0

    def begin(self, cursor: sqlite3.Cursor) -> None:
        self.num_begun += 1
        super().begin(cursor)


async def test_who_waits_behind_a_locked_database_does_not_wait_for_its_own_turn(tmp_path: Path) -> None:
    database = CountingDatabase(tmp_path / "o.db", busy_timeout_s=0.2)
    with database.engine.begin() as connection:
        migrations.bring_up_to_date(connection, "x")
    database.engine.dispose()
    writer: GroupCommitWriter[Command] = GroupCommitWriter(database, WriteRunner("?"), max_group=1)
    other = sqlite3.connect(tmp_path / "o.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    outcomes = await asyncio.gather(
        *(writer.submit(WriteConfig(f"k{number}", "v")) for number in range(50)), return_exceptions=True
    )
    assert all(isinstance(outcome, StorageError) for outcome in outcomes)
    assert database.num_begun == 1
    other.execute("ROLLBACK")
    other.close()
    assert await writer.submit(WriteConfig("k", "v")) is None
    await writer.close()


async def test_flood_of_reads_is_refused_beyond_the_bound(tmp_path: Path) -> None:
    store = await SqlOperationsStore.open(tmp_path / "o.db")
    outcomes = await asyncio.gather(
        *(store.read_config("k") for _ in range(MAX_WAITING_READS + 10)), return_exceptions=True
    )
    assert outcomes[:MAX_WAITING_READS] == [None] * MAX_WAITING_READS
    assert all(isinstance(outcome, StorageError) for outcome in outcomes[MAX_WAITING_READS:])
    assert await store.read_config("k") is None
    await store.close()
