"""Brings a database to the shape in `schema`: creates it, upgrades an older one, refuses a newer one.

`alembic_version` says which shape a database has. alembic itself is imported only to upgrade: it takes longer than
everything else at open.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select

from backend_service.operations import schema
from ktrdr_core.errors import IllegalStateError
from ktrdr_core.logging import get_logger

HEAD = "0003"
_FIRST = "0001"
# Programs of version 1 know this row of `config` and no alembic: it tells them to keep off.
FIRST_VERSION_KEY = "schema_version"
_VERSION_TABLE = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
_log = get_logger(__name__)


def bring_up_to_date(connection: Connection, name: str) -> None:
    """Create or upgrade the tables, all in the transaction of `connection`.

    Args:
        connection: To the database, in a transaction.
        name: What to call the database in messages.

    Raises:
        IllegalStateError: A newer version of this program, or another program, wrote it.
    """
    revision = _revision(connection)
    if revision == HEAD:
        return
    if revision is None:
        _create(connection)
    elif revision < HEAD:
        _log.info("upgrading the operations database %s from schema version %s to %s", name, revision, HEAD)
        upgrade(connection, HEAD)
    else:
        raise IllegalStateError(
            f"{name} has schema version {_shown(revision)}, this program knows {_shown(HEAD)}; "
            "run the version that wrote it, or start with another data directory or database"
        )


def upgrade(connection: Connection, revision: str) -> None:
    """Run the migrations that lead to `revision`, in the transaction of `connection`."""
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # an upgrade may copy much
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _revision(connection: Connection) -> str | None:
    """Return the revision of the database; None of an empty one."""
    tables = inspect(connection)
    if tables.has_table(_VERSION_TABLE.name):
        return connection.execute(select(_VERSION_TABLE.c.version_num)).scalar_one_or_none()
    if not tables.has_table(schema.config.name):
        return None
    first = select(schema.config.c.value).where(schema.config.c.key == FIRST_VERSION_KEY)
    revision = (connection.execute(first).scalar_one_or_none() or "").zfill(4)
    if revision == _FIRST:
        _VERSION_TABLE.create(connection)
        connection.execute(insert(_VERSION_TABLE), {"version_num": _FIRST})
    return revision


def _create(connection: Connection) -> None:
    schema.metadata.create_all(connection)
    _VERSION_TABLE.create(connection, checkfirst=True)
    connection.execute(insert(_VERSION_TABLE), {"version_num": HEAD})
    connection.execute(insert(schema.config), {"key": FIRST_VERSION_KEY, "value": _shown(HEAD)})


def _shown(revision: str) -> str:
    return revision.lstrip("0") or revision
