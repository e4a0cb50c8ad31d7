"""Databases of every version open, are upgraded with what they hold, and end in the shape the program expects."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from backend_service.operations import migrations, schema
from backend_service.operations.database import Database, open_database
from backend_service.operations.records import Fence, SessionRow
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.store import TrainingQuery
from ktrdr_core.domain.progress import EpochDetail, StateDetail
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import IllegalStateError
from tests.kit.builders import REPOSITORY
from tests.kit.postgres import postgres_server

FIRST = (Path(__file__).parent / "operations_v1.sql").read_text()
"""Written by version 1 of the store: a completed, a running, a queued and a failed training."""


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    return postgres_server(request).new_database() if request.param == "postgresql" else tmp_path / "o.db"


def write_first(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(FIRST)
    connection.close()


def upgraded(database: Database, revision: str) -> None:
    with database.engine.begin() as connection:
        migrations.upgrade(connection, revision)


def shape_of(path: Path) -> list[tuple[str, str]]:
    """Return the name and the statement of every table and index of a SQLite file."""
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_master WHERE name NOT LIKE 'alembic%'")
        shape = sorted((name, " ".join(sql.split())) for name, sql in found if "alembic_version" not in name)
    connection.close()
    return shape


def test_first_migration_makes_the_schema_of_version_1(tmp_path: Path) -> None:
    write_first(tmp_path / "written.db")
    upgraded(open_database(tmp_path / "migrated.db"), "0001")
    assert shape_of(tmp_path / "migrated.db") == shape_of(tmp_path / "written.db")


def test_newest_migration_is_the_head_the_program_knows() -> None:
    assert ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head() == migrations.HEAD


@pytest.mark.parametrize("is_migrated", [True, False], ids=["migrated", "created"])
def test_schema_of_a_database_agrees_with_the_tables_in_code(place: str | Path, is_migrated: bool) -> None:
    database = open_database(place)
    try:
        if is_migrated:
            upgraded(database, "head")
        else:
            with database.engine.begin() as connection:
                migrations.bring_up_to_date(connection, "x")
        with database.engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, schema.metadata) == []
            assert context.get_current_revision() == migrations.HEAD
    finally:
        database.engine.dispose()


def test_created_and_migrated_files_are_alike(tmp_path: Path) -> None:
    upgraded(open_database(tmp_path / "migrated.db"), "head")
    with open_database(tmp_path / "created.db").engine.begin() as connection:
        migrations.bring_up_to_date(connection, "x")
    migrated, created = dict(shape_of(tmp_path / "migrated.db")), dict(shape_of(tmp_path / "created.db"))
    assert migrated.keys() == created.keys()
    # The columns that were added stand last, in another place of the text; this one was copied as a whole.
    assert "WITHOUT ROWID" not in migrated["training_events"]


async def test_database_of_version_1_is_upgraded_with_what_it_holds(tmp_path: Path) -> None:
    write_first(tmp_path / "o.db")
    store = await SqlOperationsStore.open(tmp_path / "o.db")
    try:
        rows = {entry.row.training_id: entry.row for entry in await store.list_trainings(TrainingQuery(limit=9))}
        assert list(rows) == ["failed", "queued", "running", "done"]
        done, running = rows["done"], rows["running"]
        assert (done.state, done.request_id, done.cancel_save_checkpoint) == (TrainingState.COMPLETED, "", True)
        assert done.result is not None
        assert done.result["feature_importance"] == {"a": 0.25}
        assert running.placement is not None
        assert running.placement.reasons == ("healthy", "has a GPU")
        assert running.spec.symbols == ("EURUSD", "GBPUSD")
        assert running.summary.warnings == ["slow disk"]
        assert all((row.scheduling, row.cancel_reason) == (DEFAULT_SCHEDULING, "") for row in rows.values())

        log = await store.load_events("done")
        assert [event.sequence for event in log] == [1, 2, 3, 4, 5]
        assert isinstance(log[2].detail, EpochDetail)
        assert isinstance(log[4].detail, StateDetail)
        assert [len(await store.load_events(name)) for name in rows] == [5, 1, 4, 5]

        sessions = await store.load_sessions(list(rows))
        of_running = SessionRow(
            session_id="running-1", training_id="running", attempt=1, trainer="gpu:9001", last_sequence=4
        )
        assert sessions["running"] == [of_running]
        assert sessions["queued"] == []
        (of_failed,) = sessions["failed"]
        assert (of_failed.outcome, of_failed.fence) == ("FAILED", Fence.NONE)
        assert of_failed.end_time == datetime(2026, 1, 2, 3, 30, 5, 678, tzinfo=UTC)
        assert await store.read_config("default_mode") == "host"

        await store.delete_training("done")
        assert await store.load_events("done") == []
        assert await store.load_sessions(["done"]) == {"done": []}
    finally:
        await store.close()


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "upgraded"])
async def test_database_tells_version_1_to_keep_off(tmp_path: Path, is_new: bool) -> None:
    if not is_new:
        write_first(tmp_path / "o.db")
    await (await SqlOperationsStore.open(tmp_path / "o.db")).close()
    with sqlite3.connect(tmp_path / "o.db") as connection:
        found = connection.execute("SELECT value FROM config WHERE key = 'schema_version'").fetchall()
    connection.close()
    assert found == [(migrations.HEAD.lstrip("0"),)]


def test_upgrade_that_fails_half_way_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    write_first(tmp_path / "o.db")
    with sqlite3.connect(tmp_path / "o.db") as connection:
        connection.execute("CREATE TABLE new_training_events (x)")  # in the way of the last part of the migration
    connection.close()
    before = shape_of(tmp_path / "o.db")
    database = open_database(tmp_path / "o.db")
    with pytest.raises(Exception, match="already exists"), database.engine.begin() as connection_:
        migrations.bring_up_to_date(connection_, "x")
    database.engine.dispose()
    assert shape_of(tmp_path / "o.db") == before


@pytest.mark.parametrize("revision", ["0099", "somebody else's"])
async def test_database_of_a_newer_version_is_refused_and_left_as_it_is(place: str | Path, revision: str) -> None:
    await (await SqlOperationsStore.open(place)).close()
    database = open_database(place)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
    database.engine.dispose()
    shown, known = revision.lstrip("0"), migrations.HEAD.lstrip("0")
    message = rf"schema version {shown}, this program knows {known}; .* another data dir"
    with pytest.raises(IllegalStateError, match=message):
        await SqlOperationsStore.open(place)


def test_opening_an_up_to_date_database_does_not_import_alembic(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from backend_service.operations.sql_store import SqlOperationsStore\n"
        "async def main():\n"
        "    for _ in range(2):\n"
        f"        await (await SqlOperationsStore.open({str(tmp_path / 'o.db')!r})).close()\n"
        "asyncio.run(main())\n"
        "print('alembic' in sys.modules, 'psycopg' in sys.modules)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]
