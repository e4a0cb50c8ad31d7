"""Tables of the operations database, and the version of their shape."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, MetaData, String, Table, Text

SCHEMA_VERSION = 1
SCHEMA_VERSION_KEY = "schema_version"

metadata = MetaData()

# `position` gives a total order for pages: create times may tie.
trainings = Table(
    "trainings",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("training_id", String, nullable=False, unique=True),
    Column("request_id", String, nullable=True, unique=True),
    Column("content_digest", String, nullable=False),
    Column("strategy_name", String, nullable=False),
    Column("spec", Text, nullable=False),
    Column("state", String, nullable=False),
    Column("create_time", String, nullable=False),
    Column("start_time", String, nullable=True),
    Column("end_time", String, nullable=True),
    Column("placement", Text, nullable=True),
    Column("result", Text, nullable=True),
    Column("cancel_save_checkpoint", Integer, nullable=True),
    Column("summary", Text, nullable=False),
    Index("trainings_by_strategy", "strategy_name", "position"),
    Index("trainings_by_state", "state"),
    sqlite_autoincrement=True,
)

training_events = Table(
    "training_events",
    metadata,
    Column("training_id", String, ForeignKey("trainings.training_id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("event", Text, nullable=False),
    sqlite_with_rowid=False,
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("training_id", String, ForeignKey("trainings.training_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("trainer", String, nullable=False),
    Column("last_sequence", Integer, nullable=False),
)

config = Table(
    "config",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", Text, nullable=False),
)
