"""What alembic runs: the migrations, on the connection and in the transaction it was given."""

from __future__ import annotations

from alembic import context

from backend_service.operations import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
context.run_migrations()
