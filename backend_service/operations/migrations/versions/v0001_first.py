"""The schema of version 1, as its `create_all` made it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "trainings",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("training_id", sa.String, nullable=False, unique=True),
        sa.Column("request_id", sa.String, nullable=True, unique=True),
        sa.Column("content_digest", sa.String, nullable=False),
        sa.Column("strategy_name", sa.String, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("create_time", sa.String, nullable=False),
        sa.Column("start_time", sa.String, nullable=True),
        sa.Column("end_time", sa.String, nullable=True),
        sa.Column("placement", sa.Text, nullable=True),
        sa.Column("result", sa.Text, nullable=True),
        sa.Column("cancel_save_checkpoint", sa.Integer, nullable=True),
        sa.Column("summary", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("trainings_by_strategy", "trainings", ["strategy_name", "position"])
    op.create_index("trainings_by_state", "trainings", ["state"])
    op.create_table(
        "training_events",
        sa.Column(
            "training_id", sa.String, sa.ForeignKey("trainings.training_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("event", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("training_id", sa.String, sa.ForeignKey("trainings.training_id", ondelete="CASCADE"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("trainer", sa.String, nullable=False),
        sa.Column("last_sequence", sa.Integer, nullable=False),
    )
    op.create_index("ix_sessions_training_id", "sessions", ["training_id"])
    op.create_table(
        "config",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.execute("INSERT INTO config (key, value) VALUES ('schema_version', '1')")
