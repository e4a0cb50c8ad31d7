"""The bars that an attempt was handed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("bars", sa.Text, nullable=False, server_default="[]"))
    op.execute("UPDATE config SET value = '3' WHERE key = 'schema_version'")
