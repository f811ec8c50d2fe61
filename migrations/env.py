"""How Alembic runs the migrations: on the connection, and inside the transaction, that `store.schema` opened."""

from __future__ import annotations

from alembic import context

from store.tables import Table

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    render_as_batch=True,  # SQLite changes a table by rebuilding it
)
context.run_migrations()
