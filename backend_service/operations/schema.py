"""Tables of the operations database."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, MetaData, String, Table, Text, text

metadata = MetaData()

IS_TO_END = text("fence = 'pending'")
"""Of sessions; the condition of their partial index, which a database uses for these very words only."""

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
    Column("scheduling", Text, nullable=True),  # NULL: the default
    Column("cancel_reason", Text, nullable=False, server_default=""),
    Index("trainings_by_strategy", "strategy_name", "position"),
    Index("trainings_by_state", "state"),
    sqlite_autoincrement=True,
)

# In order of arrival, with an index, not clustered by training: measured, an insert costs half as much.
training_events = Table(
    "training_events",
    metadata,
    Column("training_id", String, ForeignKey("trainings.training_id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("event", Text, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("training_id", String, ForeignKey("trainings.training_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("trainer", String, nullable=False),
    Column("last_sequence", Integer, nullable=False),
    Column("trainer_id", String, nullable=False, server_default=""),
    Column("reasons", Text, nullable=False, server_default="[]"),
    Column("start_time", String, nullable=True),
    Column("end_time", String, nullable=True),
    Column("outcome", String, nullable=False, server_default=""),
    Column("error_reason", String, nullable=False, server_default=""),
    Column("message", Text, nullable=False, server_default=""),
    Column("resumed_from_epoch", Integer, nullable=False, server_default="0"),
    Column("fence", String, nullable=False, server_default="none"),
    Column("bars", Text, nullable=False, server_default="[]"),
    # Partial: the few that are asked for, so that no other row pays for it.
    Index("sessions_to_end", "fence", sqlite_where=IS_TO_END, postgresql_where=IS_TO_END),
)

request_cancels = Table(
    "request_cancels",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("save_checkpoint", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("create_time", String, nullable=False),
)

config = Table(
    "config",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", Text, nullable=False),
)
