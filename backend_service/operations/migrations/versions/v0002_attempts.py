"""Attempts with their story, scheduling, cancels of requests that have not arrived; events in order of arrival.

Columns are only ever added: on SQLite every other change of a table is a copy and a drop, and dropping `trainings`
would delete what refers to it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("trainings", sa.Column("scheduling", sa.Text, nullable=True))
    op.add_column("trainings", sa.Column("cancel_reason", sa.Text, nullable=False, server_default=""))
    for column in (
        sa.Column("trainer_id", sa.String, nullable=False, server_default=""),
        sa.Column("reasons", sa.Text, nullable=False, server_default="[]"),
        sa.Column("start_time", sa.String, nullable=True),
        sa.Column("end_time", sa.String, nullable=True),
        sa.Column("outcome", sa.String, nullable=False, server_default=""),
        sa.Column("error_reason", sa.String, nullable=False, server_default=""),
        sa.Column("message", sa.Text, nullable=False, server_default=""),
        sa.Column("resumed_from_epoch", sa.Integer, nullable=False, server_default="0"),
        sa.Column("fence", sa.String, nullable=False, server_default="none"),
    ):
        op.add_column("sessions", column)
    op.create_index(
        "sessions_to_end",
        "sessions",
        ["fence"],
        sqlite_where=sa.text("fence = 'pending'"),
        postgresql_where=sa.text("fence = 'pending'"),
    )
    op.create_table(
        "request_cancels",
        sa.Column("request_id", sa.String, primary_key=True),
        sa.Column("save_checkpoint", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("create_time", sa.String, nullable=False),
    )
    # A training of version 1 had one attempt, which ended when and as the training did.
    op.execute(
        "UPDATE sessions SET"
        " outcome = (SELECT state FROM trainings WHERE trainings.training_id = sessions.training_id),"
        " end_time = (SELECT end_time FROM trainings WHERE trainings.training_id = sessions.training_id)"
        " WHERE training_id IN (SELECT training_id FROM trainings WHERE end_time IS NOT NULL)"
    )
    if op.get_bind().dialect.name == "sqlite":
        _order_events_by_arrival()
    op.execute("UPDATE config SET value = '2' WHERE key = 'schema_version'")


def _order_events_by_arrival() -> None:
    op.create_table(
        "new_training_events",
        sa.Column(
            "training_id", sa.String, sa.ForeignKey("trainings.training_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("event", sa.Text, nullable=False),
    )
    op.execute("INSERT INTO new_training_events SELECT training_id, sequence, event FROM training_events")
    op.drop_table("training_events")
    op.rename_table("new_training_events", "training_events")
